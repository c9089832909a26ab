"""Exports the detector to ONNX.

    python -m export.detector --checkpoint FILE.pth --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

Inputs and outputs are those of `export.detector_graph.DetectorGraph.forward`; batch, height and width are free.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from onnxscript import FLOAT
from onnxscript import opset18 as op
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

from export.detector_graph import DetectorGraph
from training.detector.config import DEMO, PRODUCTION, DetectorConfig

CONFIGS = {"demo": DEMO, "production": PRODUCTION}
OPSET = 18


def export_detector(
    checkpoint: Path | None,
    output: Path,
    *,
    config: DetectorConfig | None = None,
    random_seed: int | None = None,
) -> None:
    """Writes one ONNX file, weights inside.

    Args:
        checkpoint: a `detector.pth` with its `detector.json` beside it; or None for random weights.
        output: the file to write; its folder is made.
        config: with random weights, the architecture.
        random_seed: with random weights, their seed.

    Raises:
        ValueError: the checkpoint's keys or shapes are not the config's, or the arguments do not fit together.
    """
    graph = build_detector_graph(checkpoint, config=config, random_seed=random_seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("B", "H", "W"))
    with torch.no_grad():
        torch.onnx.export(
            graph,
            (torch.zeros(2, 3, 128, 192), torch.tensor([[128.0, 192.0], [100.0, 150.0]])),
            str(output),
            input_names=["pixels", "image_size"],
            output_names=["boxes", "scores", "num_detections"],
            dynamic_shapes={"pixels": {0: batch, 2: 32 * height, 3: 32 * width}, "image_size": {0: batch}},
            opset_version=OPSET,
            custom_translation_table={torch.ops.livematch.nms_mask.default: _nms_mask_onnx},
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def build_detector_graph(
    checkpoint: Path | None, *, config: DetectorConfig | None = None, random_seed: int | None = None
) -> DetectorGraph:
    """The checkpoint's network or, for a config and a seed, one with random weights; in eval mode."""
    if checkpoint is not None:
        return _load(checkpoint)
    if config is None or random_seed is None:
        raise ValueError("either a checkpoint, or a config and a random seed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        graph = DetectorGraph(config).eval()
        _spread(graph)
    return graph


def _load(checkpoint: Path) -> DetectorGraph:
    graph = DetectorGraph(DetectorConfig.load(checkpoint.with_suffix(".json")))
    state_dict = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    expected = graph.state_dict()
    missing, unexpected = sorted(expected.keys() - state_dict.keys()), sorted(state_dict.keys() - expected.keys())
    reshaped = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state_dict.keys())
        if state_dict[key].shape != expected[key].shape
    ]
    if missing or unexpected or reshaped:
        raise ValueError(f"{checkpoint}: missing {missing}, unexpected {unexpected}, wrong shapes {reshaped}")
    graph.load_state_dict(state_dict)
    return graph.eval()


@torch.no_grad()
def _spread(graph: DetectorGraph) -> None:
    """Fits norms and predicting layers to one image, so that an untrained network, too, has many different detections.

    Without it the activations of the frozen norms overflow, and neither speed nor parity would mean anything.
    """
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

    def fit_predictor(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer not in predictors:  # the first, largest pyramid level has set it
            return output
        factor = predictors.pop(layer) / output.std()
        layer.weight.mul_(factor)
        layer.bias.copy_((layer.bias - output.transpose(0, 1).flatten(1).mean(dim=1)) * factor)
        return layer.forward(inputs[0])

    norms = [module for module in graph.modules() if isinstance(module, BatchNormAct2d | FrozenBatchNormAct2d)]
    hooks = [norm.register_forward_pre_hook(fit_norm) for norm in norms]
    hooks += [layer.register_forward_hook(fit_predictor) for layer in predictors]
    image = F.interpolate(torch.rand(1, 3, 16, 16) * 255 - 110, (256, 256), mode="bicubic")
    graph(image, torch.tensor([[256.0, 256.0]]))
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
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="detector.pth, with detector.json beside it")
    parser.add_argument("--config", choices=sorted(CONFIGS), help="with --random-weights")
    parser.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    config = CONFIGS[arguments.config] if arguments.config else None
    export_detector(arguments.checkpoint, arguments.output, config=config, random_seed=arguments.random_weights)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
