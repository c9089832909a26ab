import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.detector.average_precision import (
    ImageDetections,
    average_precision,
    coco_evaluation,
    detection_metrics,
    precision_and_recall,
)

pytestmark = pytest.mark.detectron2

NONE = np.zeros((0, 4), np.float32)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def detections(
    is_frame: bool,
    found: np.ndarray,
    found_scores: np.ndarray,
    true: np.ndarray,
    classes: tuple[int, ...] | None = None,
    true_classes: tuple[int, ...] | None = None,
) -> ImageDetections:
    """All of class 0 by default."""
    return ImageDetections(
        is_frame,
        found,
        found_scores,
        np.array(classes or [0] * len(found), np.int64),
        true,
        np.array(true_classes or [0] * len(true), np.int64),
    )


def hit(*, is_frame: bool = False) -> ImageDetections:
    return detections(is_frame, boxes((0, 0, 10, 10)), scores(0.99), boxes((0, 0, 10, 10)))


def miss(*, is_frame: bool = False) -> ImageDetections:
    return detections(is_frame, boxes((50, 50, 60, 60)), scores(0.98), boxes((0, 0, 10, 10)))


def test_average_precision_by_hand() -> None:
    # In order of score: hit, miss, hit; two truths. Precision 1 up to recall 0.5 (51 of 101 places), then 2/3.
    found = [
        detections(False, boxes((0, 0, 10, 10), (50, 50, 60, 60)), scores(0.9, 0.8), boxes((0, 0, 10, 10))),
        detections(True, boxes((0, 0, 10, 10)), scores(0.7), boxes((0, 0, 10, 10))),
    ]
    expected = pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(coco_evaluation(found)) == {"ap": expected, "ap50": expected}


def test_average_precision_counts_ten_overlaps() -> None:
    # IoU 0.72 is a hit at 0.50, 0.55, 0.60, 0.65 and 0.70.
    found = [detections(False, boxes((0, 0, 10, 7.2)), scores(0.9), boxes((0, 0, 10, 10)))]
    assert average_precision(coco_evaluation(found)) == pytest.approx({"ap": 0.5, "ap50": 1.0})


def test_average_precision_of_nothing_found_is_zero_and_of_nothing_to_find_is_left_out() -> None:
    assert average_precision(coco_evaluation([detections(False, NONE, scores(), boxes((0, 0, 5, 5)))]))["ap"] == 0.0
    assert average_precision(coco_evaluation([detections(False, boxes((0, 0, 5, 5)), scores(0.9), NONE)])) == {}
    assert average_precision(coco_evaluation([])) == {}


def test_average_precision_is_the_mean_over_the_classes_that_are_there() -> None:
    """Class 0 is found, class 2 only as class 1, of which there is none: (1 + 0) / 2."""
    truth = boxes((0, 0, 10, 10), (20, 20, 40, 40))
    found = [detections(False, truth, scores(0.9, 0.8), truth, classes=(0, 1), true_classes=(0, 2))]
    evaluation = coco_evaluation(found)
    assert average_precision(evaluation) == pytest.approx({"ap": 0.5, "ap50": 0.5})
    assert precision_and_recall(evaluation, 0.5) == (1 / 2, 1 / 2)


def test_a_box_is_matched_within_its_class() -> None:
    """Both boxes have the same place; the better score is of the other class."""
    truth = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    found = [detections(False, truth, scores(0.9, 0.8), truth, classes=(1, 0), true_classes=(0, 1))]
    assert average_precision(coco_evaluation(found)) == pytest.approx({"ap": 1.0, "ap50": 1.0})


def test_precision_and_recall_count_over_pictures() -> None:
    found = [
        detections(
            False,
            boxes((0, 0, 10, 10), (50, 50, 60, 60), (20, 0, 30, 10), (0, 0, 10, 9)),
            scores(0.99, 0.96, 0.9, 0.3),
            boxes((0, 0, 10, 10), (20, 0, 30, 10)),
        ),
        detections(False, NONE, scores(), boxes((0, 0, 5, 5))),
        detections(False, NONE, scores(), NONE),
    ]
    evaluation = coco_evaluation(found)
    assert precision_and_recall(evaluation, 0.95) == (1 / 2, 1 / 3)
    assert precision_and_recall(evaluation, 0.5) == (2 / 3, 2 / 3)
    assert precision_and_recall(evaluation, 0.1) == (2 / 4, 2 / 3)  # each true box is found once
    assert precision_and_recall(evaluation, 0.999) == (1.0, 0.0)


def test_photos_and_frames_apart_and_together() -> None:
    values = detection_metrics([hit(), miss(is_frame=True), miss(is_frame=True)])
    assert values["num_photos"] == 1 and values["num_frames"] == 2
    assert values["photo_ap"] == pytest.approx(1.0)
    assert values["photo_precision"] == values["photo_recall"] == 1.0
    assert values["frame_ap"] == values["frame_precision"] == values["frame_recall"] == 0.0
    assert values["ap"] == pytest.approx(34 / 101)  # precision 1 up to recall 1/3


def test_a_kind_that_is_not_there_has_no_metrics() -> None:
    assert not [name for name in detection_metrics([hit()]) if "frame" in name]
