"""The graph that cuts boxes out of an image and resizes them as cv2.resize(image[y0:y1, x0:x1], (w, h)) does.

It interpolates bilinearly without antialiasing, and clamps the samples to the box, not to the image. The result differs
by at most 1 grey level from cv2's INTER_LINEAR, which computes in fixed point. The graph has no weights.
"""

# ONNX Script's annotations hold shapes, and its operators take Python constants, so no checker can read its functions.
# ruff: noqa: F821

from typing import no_type_check

import onnx
import onnx.inliner
from onnxscript import INT32, INT64, UINT8, script
from onnxscript import opset18 as op


def build_crop() -> onnx.ModelProto:
    """Return the graph of `crop`; its boxes must lie inside the image and be at least one pixel wide and high."""
    return onnx.inliner.inline_local_functions(_crop.to_model_proto())


@script(default_opset=op)
@no_type_check
def _sample_axis(start: INT32["n", 1], end: INT32["n", 1], num_samples: INT64[1]):
    """Return the pixel before and after each sample along one axis, and the weight of the one after; [n, samples]."""
    length = op.CastLike(end - start, 0.0)
    centre = op.CastLike(op.Range(0, op.Squeeze(num_samples), 1), 0.0) + 0.5
    sample = centre * (length / op.CastLike(num_samples, 0.0)) - 0.5
    sample = op.Min(op.Max(sample, 0.0), length - 1.0)
    before = op.Floor(sample)
    after = op.Min(before + 1.0, length - 1.0)
    return start + op.CastLike(before, start), start + op.CastLike(after, start), sample - before


@script(default_opset=op)
@no_type_check
def _crop(image: UINT8[1, "H", "W", 3], boxes: INT32["n", 4], size: INT64[2]) -> UINT8["n", "h", "w", 3]:
    x0, y0, x1, y1 = op.Split(boxes, axis=1, num_outputs=4)
    width, height = op.Split(size, axis=0, num_outputs=2)
    left, right, x_weight = _sample_axis(x0, x1, width)
    top, bottom, y_weight = _sample_axis(y0, y1, height)
    left = op.Unsqueeze(left, [1])  # [n, 1, w]
    right = op.Unsqueeze(right, [1])
    x_weight = op.Unsqueeze(x_weight, [1, 3])  # [n, 1, w, 1]
    y_weight = op.Unsqueeze(y_weight, [2, 3])  # [n, h, 1, 1]

    pixels = op.Reshape(image, [-1, 3])
    stride = op.CastLike(op.Shape(image, start=2, end=3), boxes)
    top = op.Unsqueeze(top, [2]) * stride  # [n, h, 1]
    bottom = op.Unsqueeze(bottom, [2]) * stride
    top_left = op.CastLike(op.Gather(pixels, top + left), 0.0)  # [n, h, w, 3]
    top_right = op.CastLike(op.Gather(pixels, top + right), 0.0)
    bottom_left = op.CastLike(op.Gather(pixels, bottom + left), 0.0)
    bottom_right = op.CastLike(op.Gather(pixels, bottom + right), 0.0)
    upper = top_left + (top_right - top_left) * x_weight
    lower = bottom_left + (bottom_right - bottom_left) * x_weight
    crops = op.CastLike(op.Round(upper + (lower - upper) * y_weight), image)
    return crops
