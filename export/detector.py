"""Exports the detector to ONNX.

    python -m export.detector --checkpoint detector.pth --output FILE.onnx --precision fp16
    python -m export.detector --checkpoint model_final.pth --backbone ese_vovnet99b --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

A checkpoint is of our training, with its JSON beside it, or a whole Faster R-CNN of the vovnet-detectron2 project,
whose backbone has to be named; its other settings are then production's. Inputs and outputs are those of
`export.detector_graph.DetectorGraph.forward`; batch, height and width are free.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from onnxscript import FLOAT
from onnxscript import opset18 as op
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

from export import onnx_files
from export.detector_graph import DetectorGraph
from export.precision import PRECISIONS, to_half
from training.detector.backbone import ARCHITECTURES
from training.detector.config import DEMO, PRODUCTION, DetectorConfig
from training.detector.weights import load_checkpoint, load_weights

CONFIGS = {"demo": DEMO, "production": PRODUCTION}
OPSET = 18


def export_detector(
    checkpoint: Path | None,
    output: Path,
    *,
    config: DetectorConfig | None = None,
    random_seed: int | None = None,
    backbone: str | None = None,
    max_proposals: int | None = None,
    max_detections: int | None = None,
    precision: str = "fp32",
) -> None:
    """Writes one ONNX file, weights inside.

    Args:
        output: the file to write; its folder is made.
        precision: "fp32" or "fp16"; inputs and outputs are the same in both (see `export.precision`).

    The other arguments, and the errors, are those of `build_detector_graph`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, not one of {PRECISIONS}")
    graph = build_detector_graph(
        checkpoint,
        config=config,
        random_seed=random_seed,
        backbone=backbone,
        max_proposals=max_proposals,
        max_detections=max_detections,
    )
    if precision == "fp16":
        detector_to_half(graph)
    output.parent.mkdir(parents=True, exist_ok=True)
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("B", "H", "W"))
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, 128, 192), torch.tensor([[128.0, 192.0], [100.0, 150.0]])),
            input_names=["pixels", "image_size"],
            output_names=["boxes", "scores", "num_detections"],
            dynamic_shapes={"pixels": {0: batch, 2: 32 * height, 3: 32 * width}, "image_size": {0: batch}},
            opset_version=OPSET,
            custom_translation_table={torch.ops.livematch.nms_mask.default: _nms_mask_onnx},
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph:
        if node.op_type == "ScatterND":
            del node.attributes["reduction"]  # TensorRT up to 10.7 refuses even its default, none
    onnx_files.save(program.model_proto, output)


def detector_to_half(graph: DetectorGraph) -> None:
    """Turns backbone and heads into float16, in place; the rest stays float32 (see `export.precision`)."""
    for module in (graph.backbone, graph.proposal_generator.rpn_head.conv, graph.roi_heads.box_head):
        to_half(module)


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


def _nms_mask_onnx(boxes: FLOAT, scores: FLOAT, max_iou: float) -> FLOAT:
    """`nms_mask` in ONNX: the groups are NonMaxSuppression's batch, and its indices are scattered into the mask."""
    selected = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), [scores.shape[1]], [max_iou], [0.0])
    group_and_box = op.Gather(selected, [0, 2], axis=1)
    ones = op.Expand(1.0, op.Shape(selected, start=0, end=1))
    return op.ScatterND(op.Sub(scores, scores), group_and_box, ones)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="its JSON beside it, or --backbone")
    parser.add_argument("--backbone", choices=sorted(ARCHITECTURES), help="of a checkpoint without JSON")
    parser.add_argument("--config", choices=sorted(CONFIGS), help="with --random-weights")
    parser.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="that reach the box head; default 1000")
    parser.add_argument("--max-detections", type=int, metavar="N", help="rows of the outputs; default 100")
    arguments = parser.parse_args(argv)
    try:
        export_detector(
            arguments.checkpoint,
            arguments.output,
            config=CONFIGS[arguments.config] if arguments.config else None,
            random_seed=arguments.random_weights,
            backbone=arguments.backbone,
            max_proposals=arguments.max_proposals,
            max_detections=arguments.max_detections,
            precision=arguments.precision,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"export.detector: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
