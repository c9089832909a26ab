"""Export the PyTorch graphs to ONNX files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from onnxscript import FLOAT, INT64

from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.graphs.embedder import EmbedderGraph
from export.graphs.precision import set_precision
from export.onnx import files
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig
from training.embedder.templates import crop_sizes

OPSET = 18
op: Any = onnxscript.opset18  # Any, because its operators take Python constants, which its annotations do not admit


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
) -> DetectorConfig:
    """Write the detector as one ONNX file that includes its weights.

    Args:
        output: the file to write; missing parent folders are created.
        precision: "fp32" or "fp16"; inputs and outputs are the same in both (see `export.graphs.precision`).

    The other arguments, and the errors, are those of `build_detector_graph`. Returns the config of what was exported.
    """
    graph = build_detector_graph(
        checkpoint,
        config=config,
        random_seed=random_seed,
        backbone=backbone,
        max_proposals=max_proposals,
        max_detections=max_detections,
    )
    set_precision(graph, precision)
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("B", "H", "W"))
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, 128, 192), torch.tensor([[128.0, 192.0], [100.0, 150.0]])),
            input_names=["pixels", "image_size"],
            output_names=["boxes", "scores", "num_detections", "labels"],
            dynamic_shapes={"pixels": {0: batch, 2: 32 * height, 3: 32 * width}, "image_size": {0: batch}},
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.livematch.nms_mask.default: _nms_mask_onnx,
                torch.ops.livematch.class_nms_mask.default: _class_nms_mask_onnx,
            },
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    for node in program.model.graph:
        if node.op_type == "ScatterND":  # of _mask_of_selected
            del node.attributes["reduction"]  # TensorRT up to 10.7 rejects it, even with the default value "none"
    files.save(program.model_proto, output)
    return graph.config


def export_embedder(
    checkpoint: Path | None,
    output: Path,
    *,
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
    crop_size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> None:
    """Write an embedder as one ONNX file that includes its weights.

    Args:
        output: the file to write; missing parent folders are created.
        crop_size: the height and width of all crops; None for a file that takes any size.
        precision: "fp32" or "fp16"; inputs and outputs are the same in both (see `export.graphs.precision`).

    The other arguments, and the errors, are those of `build_embedder`.
    """
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    graph = EmbedderGraph(embedder)
    set_precision(graph, precision)
    sizes = {0: torch.export.Dim("n")}
    if crop_size is None:
        # Some networks take no images below a certain size; the exporter wants to know that there are none.
        widths, heights = zip(*crop_sizes(embedder.config.template).values(), strict=True)
        sizes |= {1: torch.export.Dim("h", min=min(heights)), 2: torch.export.Dim("w", min=min(widths))}
        crop_size = max(heights) + 1, min(widths)  # not equal: the exporter treats equal sizes as one symbol
    example = torch.zeros(2, *crop_size, 3, dtype=torch.uint8)  # 2, because it treats a batch of 1 as a constant
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["crops"],
        output_names=["embedding"],
        dynamic_shapes={"crops": sizes},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    files.save(_cast_first(program.model_proto), output)


def _nms_mask_onnx(boxes: FLOAT, scores: FLOAT, max_iou: float) -> FLOAT:
    """Return `nms_mask` in ONNX: the groups form NonMaxSuppression's batch; its indices are scattered into the mask."""
    return _mask_of_selected(boxes, scores, op.Unsqueeze(scores, [1]), max_iou)


def _class_nms_mask_onnx(boxes: FLOAT, scores: FLOAT, labels: INT64, num_classes: int, max_iou: float) -> FLOAT:
    """Return `class_nms_mask` in ONNX: each class has a row of scores, which are 0 for boxes of other classes.

    The operator skips zeros, so the rows cost one comparison for each class and box: on a CPU, 5 ms for 1,203 classes
    and 2,000 boxes.
    """
    classes = op.Constant(value=onnx.numpy_helper.from_array(np.arange(num_classes).reshape(1, num_classes, 1)))
    rows = op.Where(op.Equal(op.Unsqueeze(labels, [1]), classes), op.Unsqueeze(scores, [1]), 0.0)
    return _mask_of_selected(boxes, scores, rows, max_iou)


def _mask_of_selected(boxes: FLOAT, scores: FLOAT, rows: FLOAT, max_iou: float) -> FLOAT:
    """Return the mask [G, K] of what NonMaxSuppression selects from the scores in `rows` [G, number of classes, K]."""
    num_boxes = scores.shape[1]  # type: ignore[index]
    selected = op.NonMaxSuppression(boxes, rows, [num_boxes], [max_iou], [0.0])
    group_and_box = op.Gather(selected, [0, 2], axis=1)
    ones = op.Expand(1.0, op.Shape(selected, start=0, end=1))
    mask: FLOAT = op.ScatterND(op.Sub(scores, scores), group_and_box, ones)
    return mask


def _cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let all nodes read the cast pixels, not `crops` itself, because TensorRT lets only a Cast read a UINT8 input."""
    nodes = model.graph.node
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == "crops")
    nodes.remove(cast)
    for node in nodes:
        node.input[:] = [cast.output[0] if name == "crops" else name for name in node.input]
    nodes.insert(0, cast)
    return model
