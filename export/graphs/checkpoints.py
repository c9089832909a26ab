"""Build the networks from checkpoints, or with random weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
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
    """Return the detector of a checkpoint, or one with random weights; float32, in eval mode.

    Args:
        checkpoint: read by `training.detector.weights.load_checkpoint`; None for random weights.
        config: the architecture; by default that in the JSON beside the checkpoint.
        random_seed: the seed of the random weights.
        backbone: the backbone of a checkpoint without JSON; its other settings are those of production.
        max_proposals: replaces post_nms_top_k of the config.
        max_detections: replaces max_detections of the config.

    Raises:
        ValueError: the checkpoint's keys or shapes do not match the config, or the arguments contradict each other.
        FileNotFoundError: the checkpoint is missing.
    """
    if (checkpoint is None) == (random_seed is None) or (checkpoint is None and config is None):
        raise ValueError("give either a checkpoint, or a config and a random seed")
    if config is None:
        assert checkpoint is not None
        config = _read_config(checkpoint, backbone)
    elif backbone not in (None, config.backbone):
        raise ValueError(f"backbone is {backbone!r}, but {config.backbone!r} in the config")
    if max_proposals is not None:
        config = replace(config, post_nms_top_k=max_proposals)
    if max_detections is not None:
        config = replace(config, max_detections=max_detections)
    if checkpoint is not None:
        graph = DetectorGraph(config).eval()
        weights = load_checkpoint(checkpoint, config)
        _require_classes(weights, config, checkpoint)
        load_weights(graph, weights, checkpoint)
        return graph
    assert random_seed is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        graph = DetectorGraph(config).eval()
        _fit_random_weights(graph)
    return graph


def build_embedder(
    checkpoint: Path | None, *, config: EmbedderConfig | None = None, random_seed: int | None = None
) -> Embedder:
    """Return the embedder of a checkpoint or, for a config and a seed, one with random weights; in eval mode.

    Raises FileNotFoundError if the checkpoint or its JSON is missing, ValueError if they do not match.
    """
    if checkpoint is not None:
        return load_embedder(checkpoint)
    if config is None or random_seed is None:
        raise ValueError("give either a checkpoint, or a config and a random seed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        return Embedder(config).eval()


def _read_config(checkpoint: Path, backbone: str | None) -> DetectorConfig:
    path = checkpoint.with_suffix(".json")
    if not path.exists():
        if backbone is None:
            raise ValueError(
                f"{path} is missing: give --config-file, or name the backbone: {', '.join(sorted(ARCHITECTURES))}"
            )
        return replace(PRODUCTION, backbone=backbone)
    config = DetectorConfig.load(path)
    if backbone not in (None, config.backbone):
        raise ValueError(f"backbone is {backbone!r}, but {config.backbone!r} in {path}")
    return config


def _require_classes(weights: Mapping[str, Tensor], config: DetectorConfig, checkpoint: Path) -> None:
    """Raise ValueError, with both numbers, if the weights are for another number of classes than the config says."""
    logits = weights.get("roi_heads.box_predictor.cls_score.bias")
    if logits is not None and len(logits) != config.num_classes + 1:  # the last one is of the background
        raise ValueError(
            f"{checkpoint} has {len(logits) - 1} classes, but its config has {config.num_classes}: "
            "correct NUM_CLASSES in the YAML, or num_classes in the JSON"
        )


@torch.no_grad()
def _fit_random_weights(graph: DetectorGraph) -> None:
    """Fit norms and predicting layers to a few random images, so that an untrained network has many detections.

    With the constructor's weights, activations after frozen norms overflow. If the norms only standardised, a hundred
    layers would amplify small differences of inputs, and of rounded weights, until the results of two precisions had
    nothing in common. Shifting most activations above zero, where ReLU is linear, prevents that.
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
        values = norm.state_dict()
        values["running_mean"].copy_(mean)
        values["running_var"].copy_(variance)
        values["bias"].fill_(shift)

    def fit_predictor(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer not in predictors:  # already fitted, on the first and largest pyramid level
            return output
        channels = output.transpose(0, 1).flatten(1)
        means = channels.mean(dim=1)
        factor = predictors.pop(layer) / (channels - means[:, None]).std()
        layer.weight.mul_(factor)
        bias = layer.get_parameter("bias")
        bias.copy_((bias - means) * factor)
        return layer.forward(inputs[0])

    norms = [module for module in graph.modules() if isinstance(module, BatchNormAct2d | FrozenBatchNormAct2d)]
    hooks = [norm.register_forward_pre_hook(fit_norm) for norm in norms]
    hooks += [layer.register_forward_hook(fit_predictor) for layer in predictors]
    images = [
        F.interpolate(torch.rand(1, 3, cells, cells) * 255 - 110, (192, 192), mode="bicubic")
        for cells in (3, 6, 12, 24)
    ]
    pixels = torch.cat(images) / torch.tensor(graph.config.pixel_std_bgr).view(3, 1, 1)
    graph(pixels, torch.full((len(images), 2), 192.0))
    for hook in hooks:
        hook.remove()
