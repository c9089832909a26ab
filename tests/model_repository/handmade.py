"""A detector and embedders written by hand, so that tests can calculate every response of the pipeline.

Detector: the blue value of the image's first pixel is the number of valid detections. Detection i has the box
unit_boxes()[i] times the image's size, the score 0.999 - i / 10000 and the class i. NUM_WEAK more follow that score
WEAK_SCORE.
Embedder k: mean red, green, blue, height, width, 100 · (k + 1), then zeros; at unit length.
"""

import numpy as np
import onnx
from onnxscript import FLOAT, INT32, UINT8, script
from onnxscript import opset18 as op

from export.graphs.prepare import bind

NUM_CLASSES = 100
NUM_WEAK = 5
WEAK_SCORE = 0.6


def unit_boxes() -> np.ndarray:
    """FP32 [100, 4] in 0..1; the first is in the middle, the next are wide, high and smaller than a pixel."""
    random = np.random.default_rng(7)
    start = random.uniform(0, 0.6, (100, 2))
    boxes = np.concatenate([start, start + random.uniform(0.1, 0.4, (100, 2))], axis=1).astype(np.float32)
    boxes[:4] = [[0.25, 0.25, 0.75, 0.75], [0.0, 0.4, 1.0, 0.6], [0.4, 0.0, 0.6, 1.0], [0.5, 0.5, 0.5001, 0.5001]]
    return boxes


def make_image(num_detections: int, height: int = 320, width: int = 240, seed: int = 0) -> np.ndarray:
    """Return uint8 [1, H, W, 3]: blocks of 16 pixels; the blue value of the first is the number of detections."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    blocks[0, 0, 2] = num_detections
    return blocks.repeat(16, axis=0).repeat(16, axis=1)[None, :height, :width]


def scores() -> np.ndarray:
    return (0.999 - np.arange(100) / 10000).astype(np.float32)


def build_detector(blue_mean: float) -> onnx.ModelProto:
    constants = {
        "unit_boxes": unit_boxes()[None],
        "strong": scores()[None],
        "weak": np.full((1, 100), WEAK_SCORE, np.float32),
        "rank": np.arange(100, dtype=np.float32)[None],
        "blue_mean": np.array([[blue_mean]], np.float32),
        "num_weak": np.array([[NUM_WEAK]], np.float32),
    }
    return bind(_detector.to_model_proto(), constants)


@script(default_opset=op)
def _detector(
    pixels: FLOAT["B", 3, "PH", "PW"],  # noqa: F821
    image_size: FLOAT["B", 2],  # noqa: F821
    unit_boxes: FLOAT[1, 100, 4],
    strong: FLOAT[1, 100],
    weak: FLOAT[1, 100],
    rank: FLOAT[1, 100],
    blue_mean: FLOAT[1, 1],
    num_weak: FLOAT[1, 1],
) -> tuple[FLOAT["B", 100, 4], FLOAT["B", 100], INT32["B", 1], INT32["B", 100]]:  # noqa: F821
    blue = op.Squeeze(op.Slice(pixels, [0, 0, 0], [1, 1, 1], [1, 2, 3]), [2, 3]) + blue_mean
    num_strong = op.Round(blue)
    num_all = op.Min(num_strong + num_weak, 100.0)
    scores = op.Where(rank < num_strong, strong, weak) * op.CastLike(rank < num_all, strong)
    width_height = op.Gather(image_size, [1, 0, 1, 0], axis=1)
    boxes = unit_boxes * op.Unsqueeze(width_height, [1]) * op.CastLike(op.Unsqueeze(rank < num_all, [2]), strong)
    num_detections = op.Cast(num_all, to=6)
    labels = op.Cast(rank * op.CastLike(rank < num_all, strong), to=6)
    return boxes, scores, num_detections, labels


def build_slow_detector(blue_mean: float) -> onnx.ModelProto:
    """Return a detector with the same outputs that first multiplies matrices six times, for 0.1 to 0.3 s."""
    model = build_detector(blue_mean)
    nodes = [
        onnx.helper.make_node("ReduceMin", ["image_size"], ["side"], keepdims=0),
        onnx.helper.make_node("Mul", ["side", "zeros"], ["product0"]),
        *(onnx.helper.make_node("MatMul", [f"product{i}", f"product{i}"], [f"product{i + 1}"]) for i in range(6)),
        onnx.helper.make_node("ReduceMax", ["product6"], ["zero"], keepdims=0),
        onnx.helper.make_node("Add", ["pixels", "zero"], ["late_pixels"]),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1024, 1024), np.float32), "zeros"))
    _put_before(model, nodes, "pixels", "late_pixels")
    return model


def build_embedder(position: int, *, unit: float = 100) -> onnx.ModelProto:
    tail = np.zeros((1, 512 - 5), np.float32)
    tail[0, 0] = unit * (position + 1)
    return bind(_embedder.to_model_proto(), {"tail": tail})


@script(default_opset=op)
def _embedder(crops: UINT8["n", "h", "w", 3], tail: FLOAT[1, 507]) -> FLOAT["n", 512]:  # noqa: F821
    means = op.ReduceMean(op.CastLike(crops, tail), [1, 2], keepdims=0)
    rows = op.Shape(crops, start=0, end=1)
    size = op.Expand(op.CastLike(op.Shape(crops, start=1, end=3), tail), op.Concat(rows, [1], axis=0))
    features = op.Concat(means, size, op.Expand(tail, op.Concat(rows, [1], axis=0)), axis=1)
    embedding = features / op.ReduceL2(features, [1], keepdims=1)
    return embedding


def build_zero_embedder() -> onnx.ModelProto:
    model = build_embedder(0)
    division = model.graph.node[-1]
    division.op_type, division.input[1] = "Sub", division.input[0]
    return model


def build_failing_embedder(*, on_black: bool) -> onnx.ModelProto:
    """Return an embedder that fails at a node "out of order": on every call, or only on crops that are not black.

    The warm-up sends black crops.
    """
    model = build_embedder(0)
    make_node = onnx.helper.make_node
    sabotage = [
        make_node("ReduceMax", ["crops"], ["brightest"], keepdims=0),
        make_node("Cast", ["brightest"], ["is_bright"], to=onnx.TensorProto.BOOL),
        make_node("Cast", ["is_bright"], ["zero_or_one"], to=onnx.TensorProto.INT64),
        make_node("Add", ["zero_or_one", "offset"], ["index"]),
        make_node("Gather", ["tail", "index"], ["no_tail"], name="out of order", axis=0),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([int(on_black)]), "offset"))
    _put_before(model, sabotage, "tail", "no_tail")
    return model


def _put_before(model: onnx.ModelProto, nodes: list[onnx.NodeProto], old: str, new: str) -> None:
    """Run `nodes` first, and feed their output `new` to every node that read `old`."""
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
