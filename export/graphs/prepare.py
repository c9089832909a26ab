"""The graphs before the detector: they turn a decoded image into what detectron2's predictor would give its model.

They resize uint8 pixels, because Pillow (which detectron2 uses) rounds to uint8 between and after its two passes; the
same Resize on float32 differs by 0.3 grey levels on average. They have no weights, and run on the CPU only, because
TensorRT has no antialiasing.
"""

# ONNX Script's annotations hold shapes, and its operators take Python constants, so no checker can read its functions.
# ruff: noqa: F821

from typing import Any, no_type_check

import numpy as np
import onnx
from onnxscript import DOUBLE, FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op

from export.config import PipelineConfig
from export.signature import PADDING_MULTIPLE


def build_prepare(config: PipelineConfig, kind: str) -> onnx.ModelProto:
    """Return the graph of `prepare_<kind>`, where `kind` is "image" or "frame"."""
    constants: dict[str, np.ndarray[Any, Any]] = {
        "short_side": np.array([config.kind(kind).short_side_px], np.float64),
        "max_side": np.array([config.max_side_px], np.float64),
        "max_image_side": np.array([config.max_image_side_px], np.int64),
        "score": np.array([[config.kind(kind).min_score]], np.float32),
        "mean_bgr": np.array(config.detector_config.pixel_mean_bgr, np.float32).reshape(3, 1, 1),
        "multiple": np.array([PADDING_MULTIPLE], np.int64),
    }
    model = bind(_prepare.to_model_proto(), constants)
    if any(std != 1 for std in config.detector_config.pixel_std_bgr):
        _divide_by_std(model, np.array(config.detector_config.pixel_std_bgr, np.float32).reshape(3, 1, 1))
    guard = next(node for node in model.graph.node if "guard" in node.output)
    guard.name = f"image sides must be 1 to {config.max_image_side_px} pixels"
    return model


def bind(model: onnx.ModelProto, constants: dict[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """Turn the inputs of a graph that `constants` names into constants; changes the graph in place and returns it."""
    free = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(free)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def _divide_by_std(model: onnx.ModelProto, std_bgr: np.ndarray[Any, Any]) -> None:
    """Divide the centred pixels by the standard deviation of each channel, float32 [3, 1, 1]."""
    nodes = model.graph.node
    position = next(index for index, node in enumerate(nodes) if "centred" in node.output)
    nodes[position].output[:] = ["unscaled"]
    nodes.insert(position + 1, onnx.helper.make_node("Div", ["unscaled", "std_bgr"], ["centred"], name="divide_by_std"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(std_bgr, "std_bgr"))


@script(default_opset=op)
@no_type_check
def _prepare(
    image: UINT8["B", "H", "W", 3],
    short_side: DOUBLE[1],
    max_side: DOUBLE[1],
    max_image_side: INT64[1],
    score: FLOAT[1, 1],
    mean_bgr: FLOAT[3, 1, 1],
    multiple: INT64[1],
) -> tuple[FLOAT["B", 3, "PH", "PW"], FLOAT["B", 2], FLOAT["B", 2], FLOAT["B", 1]]:
    batch = op.Shape(image, start=0, end=1)
    sides = op.Shape(image, start=1, end=3)
    # Gather from a list of one element: for an image to refuse the index is 1, so the run fails and names this node.
    is_refused = op.Or(
        op.ReduceMax(sides, keepdims=1) > max_image_side,
        op.ReduceMin(sides, keepdims=1) < 1,
    )
    guard = op.Gather([0], op.CastLike(is_refused, sides))
    sides = sides + guard

    # detectron2's ResizeShortestEdge.get_output_shape, step by step in float64, so that halves round the same way.
    exact = op.CastLike(sides, max_side)
    shortest = op.ReduceMin(exact, keepdims=1)
    wanted = op.Where(exact == shortest, short_side, (short_side / shortest) * exact)
    longest = op.ReduceMax(wanted, keepdims=1)
    wanted = op.Where(longest > max_side, wanted * (max_side / longest), wanted)
    size = op.Max(op.CastLike(op.Floor(wanted + 0.5), sides), 1)

    rgb = op.Resize(image, None, None, op.Concat(batch, size, [3], axis=0), mode="linear", antialias=1)
    bgr = op.Gather(op.Transpose(rgb, perm=[0, 3, 1, 2]), [2, 1, 0], axis=1)  # BGR by moving whole channels
    centred = op.CastLike(bgr, mean_bgr) - mean_bgr
    pixels = op.Pad(centred, op.Concat([0, 0, 0, 0, 0, 0], op.Mod(-size, multiple), axis=0))

    rows = op.Concat(batch, [1], axis=0)
    image_size = op.Expand(op.CastLike(size, mean_bgr), rows)
    scale = op.Expand(op.CastLike(op.CastLike(size, max_side) / exact, mean_bgr), rows)
    min_score = op.Expand(score, rows)
    return pixels, image_size, scale, min_score
