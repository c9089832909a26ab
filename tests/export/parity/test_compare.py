"""Detections are read from a detector's outputs only if it says that they are exact, and match within their class."""

import numpy as np
import pytest
import torch

from export.parity.compare import DETECTOR_LIMITS, ParityError, compare_detections, detections_of

OUTPUTS = {
    "boxes": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "scores": np.array([[0.9, 0.8, 0.0], [0.7, 0.6, 0.5]], np.float32),
    "num_detections": np.array([[2], [-1]], np.int32),
    "labels": np.array([[7, 0, 0], [3, 3, 3]], np.int32),
}


def test_rows_past_the_count_are_left_out() -> None:
    boxes, scores, labels = detections_of(OUTPUTS, 0)
    assert boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and scores.tolist() == pytest.approx([0.9, 0.8])
    assert labels.tolist() == [7, 0]


def test_inexact_detections_are_an_error() -> None:
    with pytest.raises(ParityError, match="image 1 of the batch: the detections are not exact or not finite"):
        detections_of(OUTPUTS, 1)


def test_a_detection_of_another_class_does_not_match() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([0.9, 0.8])
    expected = boxes, scores, torch.tensor([1, 2])
    assert compare_detections(expected, expected, DETECTOR_LIMITS["fp32"]) == (2, 0, 0)
    found = boxes + 0.01, scores, torch.tensor([3, 2])
    assert compare_detections(found, expected, DETECTOR_LIMITS["fp32"])[0] == 1
