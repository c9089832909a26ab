"""PyTorch graphs to ONNX files."""

from pathlib import Path

import onnx
import torch
from onnxscript import FLOAT
from onnxscript import opset18 as op

from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.graphs.detector import DetectorGraph
from export.graphs.embedder import ServedEmbedder
from export.onnx import files
from export.onnx.precision import PRECISIONS, to_half
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig

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
        precision: "fp32" or "fp16"; inputs and outputs are the same in both (see `export.onnx.precision`).

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
    files.save(program.model_proto, output)


def export_embedder(
    checkpoint: Path | None,
    output: Path,
    *,
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
) -> None:
    """Writes the ONNX file of a checkpoint, or of random weights for a config, in "fp32" or "fp16"; makes its folder.

    The errors are those of `build_embedder`, and ValueError for another precision.
    """
    served = ServedEmbedder(build_embedder(checkpoint, config=config, random_seed=random_seed), precision).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Sizes 0 and 1 are special to the exporter, and equal sizes would be taken for one symbol.
    example = torch.zeros(2, 97, 66, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        served,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["crops"],
        output_names=["embedding"],
        dynamic_shapes={"crops": {0: torch.export.Dim("n"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")}},
        external_data=False,
        verbose=False,
    )
    files.save(_cast_first(program.model_proto), output)


def detector_to_half(graph: DetectorGraph) -> None:
    """Turns backbone and heads into float16, in place; the rest stays float32 (see `export.onnx.precision`)."""
    for module in (graph.backbone, graph.proposal_generator.rpn_head.conv, graph.roi_heads.box_head):
        to_half(module)


def _nms_mask_onnx(boxes: FLOAT, scores: FLOAT, max_iou: float) -> FLOAT:
    """`nms_mask` in ONNX: the groups are NonMaxSuppression's batch, and its indices are scattered into the mask."""
    selected = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), [scores.shape[1]], [max_iou], [0.0])
    group_and_box = op.Gather(selected, [0, 2], axis=1)
    ones = op.Expand(1.0, op.Shape(selected, start=0, end=1))
    return op.ScatterND(op.Sub(scores, scores), group_and_box, ones)


def _cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes sizes from the cast pixels: TensorRT allows no reader of a UINT8 input but a Cast."""
    nodes = model.graph.node
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == "crops")
    nodes.remove(cast)
    for node in nodes:
        node.input[:] = [cast.output[0] if name == "crops" else name for name in node.input]
    nodes.insert(0, cast)
    return model
