import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.detector.evaluate import average_precision, iou, match, precision_and_recall

pytestmark = pytest.mark.detectron2

NONE = np.zeros((0, 4), np.float32)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_iou() -> None:
    overlaps = iou(boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30), (3, 3, 3, 3)))
    assert overlaps[0] == pytest.approx([1, 1 / 3, 0, 0])


def test_each_true_box_is_found_once() -> None:
    truths = boxes((0, 0, 10, 10), (20, 0, 30, 10))
    found = boxes((0, 0, 10, 9), (0, 0, 10, 10), (20, 0, 30, 6), (21, 0, 31, 10))
    assert match(found, truths, 0.5).tolist() == [True, False, True, False]


def test_half_an_overlap_is_not_enough() -> None:
    assert match(boxes((0, 0, 10, 5)), boxes((0, 0, 10, 10)), 0.5).tolist() == [False]


def test_precision_and_recall_count_over_pictures() -> None:
    found = [
        (
            boxes((0, 0, 10, 10), (50, 50, 60, 60), (20, 0, 30, 10)),
            scores(0.99, 0.96, 0.9),
            boxes((0, 0, 10, 10), (20, 0, 30, 10)),
        ),
        (NONE, scores(), boxes((0, 0, 5, 5))),
    ]
    assert precision_and_recall(found, min_score=0.95) == (1 / 2, 1 / 3)
    assert precision_and_recall(found, min_score=0.5) == (2 / 3, 2 / 3)
    assert precision_and_recall(found, min_score=0.99) == (1.0, 0.0)


def test_average_precision_by_hand() -> None:
    # In order of score: hit, miss, hit; two truths. Precision 1 up to recall 0.5 (51 of 101 places), then 2/3.
    found = [
        (boxes((0, 0, 10, 10), (50, 50, 60, 60)), scores(0.9, 0.8), boxes((0, 0, 10, 10))),
        (boxes((0, 0, 10, 10)), scores(0.7), boxes((0, 0, 10, 10))),
    ]
    assert average_precision(found, min_iou=0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_average_precision_of_nothing_found_is_zero() -> None:
    assert average_precision([(NONE, scores(), boxes((0, 0, 5, 5)))], min_iou=0.5) == 0.0
