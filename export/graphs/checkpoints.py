"""Networks from checkpoints, or with random weights."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

from export.graphs.detector import DetectorGraph
from training.detector.backbone import ARCHITECTURES
from training.detector.config import PRODUCTION, DetectorConfig
from training.detector.weights import load_checkpoint, load_weights
from training.embedder.model import Embedder, EmbedderConfig, load_embedder


def build_detector_graph(
    checkpoint: Path | None,
    *,
    config: DetectorConfig | None = None,
    random_seed: int | None = None,
    backbone: str | None = None,
    max_proposals: int | None = None,
    max_detections: int | None = None,
) -> DetectorGraph:
    """The checkpoint's network or, for a config and a seed, one with random weights; float32, in eval mode.

    Args:
        checkpoint: what `training.detector.weights.load_checkpoint` reads; or None for random weights.
        config: the architecture, for random weights; a checkpoint's is in the JSON beside it.
        random_seed: the seed of random weights.
        backbone: of a checkpoint without JSON, whose other settings are production's.
        max_proposals: instead of the config's post_nms_top_k.
        max_detections: instead of the config's.

    Raises:
        ValueError: the checkpoint's keys or shapes are not the config's, or the arguments do not fit together.
    """
    if (checkpoint is None) == (random_seed is None) or (checkpoint is None) != (config is not None):
        raise ValueError("either a checkpoint, or a config and a random seed")
    if checkpoint is not None:
        config = _config_of(checkpoint, backbone)
    changes = {"post_nms_top_k": max_proposals, "max_detections": max_detections}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if checkpoint is not None:
        graph = DetectorGraph(config).eval()
        load_weights(graph, load_checkpoint(checkpoint, config), checkpoint)
        return graph
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        graph = DetectorGraph(config).eval()
        _spread(graph)
    return graph


def build_embedder(
    checkpoint: Path | None, *, config: EmbedderConfig | None = None, random_seed: int | None = None
) -> Embedder:
    """The checkpoint's network or, for a config and a seed, one with random weights; in eval mode.

    Raises FileNotFoundError for a missing checkpoint or JSON, ValueError for one that does not fit.
    """
    if checkpoint is not None:
        return load_embedder(checkpoint)
    if config is None or random_seed is None:
        raise ValueError("either a checkpoint, or a config and a random seed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        return Embedder(config).eval()


def _config_of(checkpoint: Path, backbone: str | None) -> DetectorConfig:
    path = checkpoint.with_suffix(".json")
    if not path.exists():
        if backbone is None:
            raise ValueError(f"{path} is not there, so the backbone has to be named: one of {sorted(ARCHITECTURES)}")
        return replace(PRODUCTION, backbone=backbone)
    config = DetectorConfig.load(path)
    if backbone not in (None, config.backbone):
        raise ValueError(f"backbone is {backbone!r}, but {config.backbone!r} in {path}")
    return config


@torch.no_grad()
def _spread(graph: DetectorGraph) -> None:
    """Fits norms and predicting layers to a few pictures, so that an untrained network, too, has many detections.

    As it comes from its constructor, activations behind frozen norms overflow. Norms that only standardise make a
    hundred layers chaotic: they amplify what an input differs by, and the rounding of weights, until nothing is left to
    compare. A shift that carries most activations over the ReLU's kink ends that.
    """
    shift = 1.0  # standard deviations
    predictors = {
        graph.proposal_generator.rpn_head.objectness_logits: 2.0,
        graph.proposal_generator.rpn_head.anchor_deltas: 0.3,
        graph.roi_heads.box_predictor.cls_score: 1.0,
        graph.roi_heads.box_predictor.bbox_pred: 0.5,
    }

    def fit_norm(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.bias.fill_(shift)

    def fit_predictor(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer not in predictors:  # the first, largest pyramid level has set it
            return output
        channels = output.transpose(0, 1).flatten(1)
        means = channels.mean(dim=1)
        factor = predictors.pop(layer) / (channels - means[:, None]).std()
        layer.weight.mul_(factor)
        layer.bias.copy_((layer.bias - means) * factor)
        return layer.forward(inputs[0])

    norms = [module for module in graph.modules() if isinstance(module, BatchNormAct2d | FrozenBatchNormAct2d)]
    hooks = [norm.register_forward_pre_hook(fit_norm) for norm in norms]
    hooks += [layer.register_forward_hook(fit_predictor) for layer in predictors]
    pictures = [
        F.interpolate(torch.rand(1, 3, cells, cells) * 255 - 110, (192, 192), mode="bicubic")
        for cells in (3, 6, 12, 24)
    ]
    graph(torch.cat(pictures), torch.full((len(pictures), 2), 192.0))
    for hook in hooks:
        hook.remove()
