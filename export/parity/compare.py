"""Define the limits on differences between an exported file and its source, and compare detections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from export.graphs.detector import INEXACT

Report = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

Detections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of one image: boxes float32 [n, 4], scores float32 [n] and labels, integers [n]."""

MAX_CROP_DIFFERENCE = 1  # grey levels
MAX_PIXELS_DIFFERENCE = 3  # grey levels
MAX_MEAN_PIXELS_DIFFERENCE = 0.05  # grey levels
MAX_EMBEDDING_DIFFERENCE = 1e-5  # for fp32
MIN_EMBEDDING_COSINE = 0.999  # for fp16
MIN_WRAPPED_COSINE = 0.9999  # of an embedder that comes as an ONNX file, with what that file itself computes


@dataclass(frozen=True, kw_only=True)
class DetectorLimits:
    """Limits that define when two detections of a class match, and which fraction of all detections must match.

    The fraction is below 1 because rounding decides which of two equally good boxes survives NMS or ranks hundredth.
    """

    min_iou: float
    max_score_error: float
    min_matched_fraction: float


DETECTOR_LIMITS = {
    "fp32": DetectorLimits(min_iou=0.99, max_score_error=1e-3, min_matched_fraction=0.995),
    "fp16": DetectorLimits(min_iou=0.95, max_score_error=0.02, min_matched_fraction=0.98),
}
MIN_MATCHED_FRACTION_RANDOM = 0.85
"""For half precision with random weights, which leave many more boxes nearly tied than trained weights do."""


class ParityError(ValueError):
    """An ONNX file does not match its source; the message names the file, the measured value and its limit."""


def detections_of(outputs: Arrays, image: int) -> Detections:
    """Return the detections of one image of a batch from the outputs of the detector.

    Raises ParityError if the detector reports that they are not exact, or not finite.
    """
    count = int(outputs["num_detections"][image, 0])
    if count == INEXACT:
        raise ParityError(f"image {image} of the batch: the detections are not exact or not finite")
    boxes, scores, labels = (torch.from_numpy(outputs[name][image, :count]) for name in ("boxes", "scores", "labels"))
    return boxes, scores, labels


def compare_detections(found: Detections, expected: Detections, limits: DetectorLimits) -> tuple[int, float, float]:
    """Return the number of expected detections that were found, their largest box error in pixels and score error."""
    if not len(found[1]) or not len(expected[1]):
        return 0, 0.0, 0.0
    overlap = box_iou(expected[0], found[0])
    score_error = (expected[1][:, None] - found[1]).abs()
    overlap[(score_error > limits.max_score_error) | (expected[2][:, None] != found[2])] = 0
    best, match = overlap.max(dim=1)
    rows = torch.nonzero(best > limits.min_iou)[:, 0]
    if not len(rows):
        return 0, 0.0, 0.0
    box_error = (expected[0][rows] - found[0][match[rows]]).abs().max()
    return len(rows), float(box_error), float(score_error[rows, match[rows]].max())


def require_at_most(limit: float, value: float, what: str, path: Path) -> None:
    """Raise ParityError if `value` exceeds `limit` or is NaN."""
    if not value <= limit:
        raise ParityError(f"{path}: {what} is {value:.3g}, limit {limit:g}")
