"""The embedder network: a timm backbone, generalised mean pooling, a projection to 512 dimensions, batch norm."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from training.checkpoint import JsonConfig, explain_unreadable, read_checkpoint, save_checkpoint
from training.embedder.templates import crop_sizes

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig(JsonConfig):
    """Architecture and preprocessing of an embedder, saved as JSON beside its weights."""

    backbone: str  # a timm model
    backbone_options: dict[str, Any] = field(default_factory=dict)
    embedding_size: int = 512
    gem_p: float = 3.0
    gem_learnable: bool = False
    template: str = "SM"  # the crop sizes at test time, see training.embedder.templates.crop_sizes
    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB, on the scale 0..255
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.embedding_size < 1:
            raise ValueError(f"embedding_size is {self.embedding_size}, not positive")


PRODUCTION: dict[str, EmbedderConfig] = {
    "b5a": EmbedderConfig(backbone="tf_efficientnet_b5"),
    "b5b": EmbedderConfig(backbone="tf_efficientnet_b5"),
    "b6": EmbedderConfig(backbone="tf_efficientnet_b6", gem_learnable=True),
    "b7": EmbedderConfig(backbone="tf_efficientnet_b7"),
}


def _demo(channel_multiplier: float, *, gem_learnable: bool = False) -> EmbedderConfig:
    """Return a small network with the same TensorFlow-style padding as the production networks."""
    options = {"pad_type": "same", "channel_multiplier": channel_multiplier}
    return EmbedderConfig(
        backbone="test_efficientnet", backbone_options=options, gem_learnable=gem_learnable, template="XS"
    )


DEMO: dict[str, EmbedderConfig] = {
    "b5a": _demo(1.25),
    "b5b": _demo(1.25),
    "b6": _demo(1.5, gem_learnable=True),
    "b7": _demo(1.75),
}


class GeM(nn.Module):
    """Generalised mean pooling (Radenović et al., "Fine-tuning CNN image retrieval with no human annotation", 2018)."""

    def __init__(self, p: float, *, learnable: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]), requires_grad=learnable)
        self.eps = eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Pool [n, C, h, w] to [n, C], always in float32: the cube of a feature above 40 overflows half precision."""
        features = features.float().clamp(min=self.eps)
        return features.pow(self.p).mean((-2, -1)).pow(1 / self.p)


class Embedder(nn.Module):
    """Network that maps pixels to an embedding; normalise embeddings to unit length before comparing them.

    Args:
        config: the architecture.
        pretrained: backbone weights to start from: a file with timm's tensor names, or True to let timm download them.

    Raises:
        ValueError: timm has no such backbone, the backbone takes one image size only and the config has several crop
            sizes, or the weights in the file, except for its classifier, do not match it.
    """

    def __init__(self, config: EmbedderConfig, *, pretrained: Path | bool = False) -> None:
        super().__init__()
        self.config = config
        backbone = _create_backbone(config, pretrained=pretrained is True)
        if isinstance(pretrained, Path):
            with explain_unreadable(pretrained):
                weights = timm.models.load_state_dict(str(pretrained))
            classifier = f"{backbone.default_cfg['classifier']}."
            weights = {key: value for key, value in weights.items() if not key.startswith(classifier)}
            _load_exactly(backbone, weights, f"{pretrained} does not fit {config.backbone}")
        self.backbone: nn.Module = backbone
        self.gem = GeM(config.gem_p, learnable=config.gem_learnable)
        self.projection = nn.Linear(backbone.head_hidden_size, config.embedding_size, bias=False)
        self.norm = nn.BatchNorm1d(config.embedding_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map float32 [n, 3, h, w] RGB, normalised by the config's mean and std, to [n, embedding_size]."""
        features = self.backbone(pixels)
        if features.ndim == 3:  # of a transformer: [n, tokens, C]
            features = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :].transpose(1, 2)[..., None]
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)
        embeddings: torch.Tensor = self.norm(self.projection(self.gem(features)))
        return embeddings


def _create_backbone(config: EmbedderConfig, *, pretrained: bool) -> Any:
    """Return a timm model without its classifier and its pooling, for the crop size if it takes one size only."""
    options = dict(config.backbone_options)
    description = timm.get_pretrained_cfg(config.backbone)
    if description is not None and description.fixed_input_size and "img_size" not in options:
        sizes = list(crop_sizes(config.template).values())
        if len(sizes) > 1:
            raise ValueError(f"{config.backbone} takes one image size: crops must be one size, such as 224x224")
        width, height = sizes[0]
        options["img_size"] = (height, width)
    try:
        return timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, global_pool="", **options)
    except (RuntimeError, TypeError) as error:  # an unknown model, or an option that it does not have
        raise ValueError(f"backbone {config.backbone!r}: {error}") from error


def save_embedder(model: Embedder, checkpoint: Path) -> None:
    """Write the weights to `checkpoint` (.pth) and the config to the .json file beside it."""
    model.config.save(checkpoint.with_suffix(".json"))
    save_checkpoint({"model": {name: value.cpu() for name, value in model.state_dict().items()}}, checkpoint)


def load_embedder(checkpoint: Path) -> Embedder:
    """Return the network of a checkpoint, in eval mode.

    Raises:
        FileNotFoundError: the checkpoint or its config is missing.
        ValueError: a file is unreadable, or tensors are missing, unexpected or misshapen; the message lists them.
    """
    model = Embedder(EmbedderConfig.load(checkpoint.with_suffix(".json")))
    content = read_checkpoint(checkpoint)
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{checkpoint} is not the checkpoint of an embedder")
    _load_exactly(model, content["model"], f"{checkpoint} does not fit its config")
    return model.eval()


def _load_exactly(module: nn.Module, state: dict[str, torch.Tensor], complaint: str) -> None:
    """Load the state. Raises ValueError, listing every missing and unexpected tensor and wrong shape."""
    expected = module.state_dict()
    faults = [f"missing {key}" for key in expected.keys() - state.keys()]
    faults += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    faults += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if faults:
        raise ValueError(f"{complaint}: {'; '.join(sorted(faults))}")
    module.load_state_dict(state)
