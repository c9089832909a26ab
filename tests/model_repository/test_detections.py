from types import ModuleType
from typing import Any

import numpy as np
import pytest

from training.embedder.templates import ASPECT_RATIOS, nearest_template

IMAGE = np.zeros((400, 300, 3), np.uint8)  # height 400, width 300


DETECTION = {
    "boxes": [[1, 2, 3, 4]],
    "scores": [0.99],
    "labels": [0],
    "num_detections": 1,
    "num_classes": 3,
    "scale": [1, 1],
    "min_score": 0.9,
    "image": IMAGE,
}


def select(detections: ModuleType, **changes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Call `select` for one valid detection, changed."""
    dtypes = {"boxes": np.float32, "scores": np.float32, "labels": np.int32, "scale": np.float32}
    inputs = {name: np.array(value, dtypes[name]) if name in dtypes else value for name, value in changes.items()}
    defaults = {name: np.array(DETECTION[name], dtype) for name, dtype in dtypes.items()}
    return detections.select(**(DETECTION | defaults | inputs))


def test_select_scales_each_axis_by_its_own_factor_and_clips(detections: ModuleType) -> None:
    boxes, scores, labels = select(
        detections,
        boxes=[[10, 20, 30, 40], [-5, 0, 700, 900], [1, 1, 2, 2]],
        scores=[0.99, 0.98, 0.97],
        labels=[2, 0, 1],
        num_detections=2,
        scale=[2.0, 0.5],  # height, width
    )
    np.testing.assert_array_equal(boxes, [[20, 10, 60, 20], [0, 0, 300, 400]])
    np.testing.assert_array_equal(scores, np.float32([0.99, 0.98]))
    assert labels.tolist() == [2, 0]
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)


def test_select_requires_more_than_the_minimum_score(detections: ModuleType) -> None:
    minimum = np.float32(0.9)
    scores = [0.5, np.nextafter(minimum, np.float32(1)), minimum]
    changes = {"boxes": [[1, 1, 9, 9]] * 3, "labels": [0, 1, 2], "num_detections": 3, "min_score": minimum}
    boxes, _, labels = select(detections, scores=scores, **changes)
    assert len(boxes) == 1 and labels.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [[1, 2, np.nan, 4]]}, r"boxes has \[1.0, 2.0, nan, 4.0\], which is not finite"),
        ({"boxes": [[1, 2, np.inf, 4]]}, r"boxes has .*inf.*, which is not finite"),
        ({"boxes": [[9, 1, 8, 4]]}, "boxes has .* of negative width or height"),
        ({"boxes": [[-9, -9, -2, -2]]}, "boxes has .* outside the image of 300 x 400 pixels"),
        ({"boxes": [[1, 401, 2, 402]]}, "boxes has .* outside the image"),
        ({"scores": [np.nan]}, "scores has nan"),
        ({"labels": [3]}, "labels has 3, which is not 0 to 2"),
        ({"labels": [-1]}, "labels has -1, which is not 0 to 2"),
        ({"num_detections": 2}, "num_detections is 2, not 0 to 1"),
        ({"num_detections": -2}, "num_detections is -2"),
        ({"num_detections": -1}, "the detections are not exact or not finite"),
        ({"scale": [0, 1]}, "scale is"),
        ({"scale": [np.nan, 1]}, "scale is"),
        ({"image": IMAGE[:0]}, r"image has no pixels: \[0, 300, 3\]"),
    ],
)
def test_select_refuses_invalid_detections(detections: ModuleType, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(detections, **changes)


def test_select_does_not_check_boxes_with_low_scores(detections: ModuleType) -> None:
    boxes = [[1, 2, 3, 4], [9, 9, 1, 1]]
    kept, *_ = select(detections, boxes=boxes, scores=[0.99, 0.1], labels=[0, 0], num_detections=2)
    assert kept.tolist() == [[1, 2, 3, 4]]


def test_select_ignores_rows_past_the_count(detections: ModuleType) -> None:
    rows = {"boxes": np.ones((100, 4)), "scores": np.ones(100), "labels": np.full(100, 7)}
    boxes, scores, labels = select(detections, **rows, num_detections=0)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([10.9, 20.9, 30.9, 40.9], [10, 20, 30, 40]),
        ([5.2, 5.2, 5.8, 5.9], [5, 5, 6, 6]),
        ([300.0, 400.0, 300.0, 400.0], [299, 399, 300, 400]),
        ([0.0, 0.0, 300.0, 400.0], [0, 0, 300, 400]),
    ],
)
def test_to_pixels_truncates_and_keeps_a_pixel(detections: ModuleType, box: list[float], pixels: list[int]) -> None:
    found = detections.to_pixels(np.array([box], np.float32), IMAGE)
    np.testing.assert_array_equal(found, [pixels])
    assert found.dtype == np.int32


def test_widen_keeps_the_middle(detections: ModuleType) -> None:
    boxes = np.array([[10, 20, 30, 60], [0, 0, 300, 400]], np.float32)
    wider = detections.widen(boxes, 1.5)
    np.testing.assert_allclose(wider, [[5, 10, 35, 70], [-75, -100, 375, 500]])
    np.testing.assert_array_equal(detections.to_pixels(wider, IMAGE), [[5, 10, 35, 70], [0, 0, 300, 400]])
    np.testing.assert_array_equal(detections.widen(boxes, 1.0), boxes)


@pytest.mark.parametrize("factor", [0.99, 2.01, float("nan")])
def test_widen_has_limits(detections: ModuleType, factor: float) -> None:
    with pytest.raises(ValueError, match=r"crop_scale is .*, not from 1 to 2"):
        detections.widen(np.ones((1, 4), np.float32), factor)


def test_to_pixels_of_nothing(detections: ModuleType) -> None:
    assert detections.to_pixels(np.empty((0, 4), np.float32), IMAGE).shape == (0, 4)


def test_templates_are_those_of_training(detections: ModuleType) -> None:
    random = np.random.default_rng(3)
    sides = random.integers(1, 1000, (500, 2))
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1).astype(np.int32)
    found = detections.nearest_templates(boxes, np.array(ASPECT_RATIOS))
    assert found.tolist() == [nearest_template(width, height) for width, height in sides]


def test_template_of_a_tie_is_the_narrower(detections: ModuleType) -> None:
    assert detections.nearest_templates(np.array([[0, 0, 9, 8]]), np.array([1.0, 1.25])).tolist() == [0]  # 1.125


def test_chunks_cover_everything_once(detections: ModuleType) -> None:
    assert list(detections.chunks(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(detections.chunks(0, 2)) == []


def test_pad_rows(detections: ModuleType) -> None:
    padded = detections.pad_rows([np.ones((1, 2), np.float32), np.empty((0, 2), np.float32), np.full((2, 2), 3.0)])
    np.testing.assert_array_equal(padded, [[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[3, 3], [3, 3]]])
    assert detections.pad_rows([np.empty((0, 4), np.float32)]).shape == (1, 0, 4)


def test_to_unit_length(detections: ModuleType) -> None:
    np.testing.assert_allclose(detections.to_unit_length(np.array([[3.0, 4.0]])), [[0.6, 0.8]])
