"""What counts as the same result, and the error for what does not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

Report = dict[str, Any]
Arrays = dict[str, np.ndarray]
Detected = list[tuple[torch.Tensor, torch.Tensor]]  # of each image: boxes float32 [n, 4], scores float32 [n]

MAX_CROP_DIFFERENCE = 1  # grey levels
MAX_PIXELS_DIFFERENCE = 3
MAX_MEAN_PIXELS_DIFFERENCE = 0.05
MAX_EMBEDDING_DIFFERENCE = 1e-5  # of fp32
MIN_EMBEDDING_COSINE = 0.999  # of fp16


@dataclass(frozen=True, kw_only=True)
class DetectorLimits:
    """What counts as the same detection, and which share of them has to be there.

    The share is below 1 because rounding decides which of two equally good boxes survives NMS or is the hundredth.
    """

    min_iou: float
    max_score_error: float
    min_matched_share: float


DETECTOR_LIMITS = {
    "fp32": DetectorLimits(min_iou=0.99, max_score_error=1e-3, min_matched_share=0.995),
    "fp16": DetectorLimits(min_iou=0.95, max_score_error=0.02, min_matched_share=0.98),
}
MIN_MATCHED_SHARE_MADE_UP = 0.85
"""Of half precision with random weights, which leave many more boxes nearly tied than trained ones."""


class ParityError(ValueError):
    """An ONNX file computes something else than its source; the message has the file, the figure and the limit."""


def compare_detections(
    found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], limits: DetectorLimits
) -> tuple[int, float, float]:
    """Returns how many expected detections were found, and their largest errors: of a box in pixels, of a score."""
    if not len(found[1]) or not len(expected[1]):
        return 0, 0.0, 0.0
    overlap = box_iou(expected[0], found[0])
    score_error = (expected[1][:, None] - found[1]).abs()
    overlap[score_error > limits.max_score_error] = 0
    best, match = overlap.max(dim=1)
    rows = torch.nonzero(best > limits.min_iou)[:, 0]
    if not len(rows):
        return 0, 0.0, 0.0
    box_error = (expected[0][rows] - found[0][match[rows]]).abs().max()
    return len(rows), float(box_error), float(score_error[rows, match[rows]].max())


def check_limit(path: Path, what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ParityError(f"{path}: {what} is {value:.3g}, limit {limit:g}")
