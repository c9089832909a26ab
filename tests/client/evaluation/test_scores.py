import pytest

from livematch import GroundTruth, InputError, evaluate
from livematch.evaluation.results import Answer
from livematch.evaluation.scores import iou
from livematch.media.annotations import Annotation
from livematch.types import Pair

BOX = (0, 0, 10, 10)
FAR = (50, 50, 60, 60)


def answer(item_id: str, frame_index: int, item_box=BOX, frame_box=BOX, img_name="0") -> Answer:
    return Answer(item_id, frame_index, (Pair(img_name, item_box, frame_box),))


def garment(instance_id: int) -> Annotation:
    return Annotation(None, None, None, instance_id, BOX)


def truth_of(*video_ids: str, **frames) -> GroundTruth:
    """Return a truth in which each video's image 0 and its frames 40 and 80, but not 0, show garment 1."""
    shown = (garment(1),)
    return GroundTruth(
        images={v: {"0": shown, "1": (garment(0),)} for v in video_ids},
        frames={v: frames.get("frames", {0: (), 40: shown, 80: shown}) for v in video_ids},
    )


def test_hand_calculated_score():
    """Five positive videos, four answers: one on each level 0 to 3.

    S1: 3 hits, precision 3/4, recall 3/5, F1 2/3; S2: 2 hits, 1/2, 2/5, F1 4/9; S3: 1 hit, 1/4, 1/5, F1 2/9.
    Final: 0.2 * 6/9 + 0.6 * 4/9 + 0.2 * 2/9 = 0.4444.
    """
    result = {
        "a": answer("b", 40),
        "b": answer("b", 0),
        "c": answer("c", 40, item_box=FAR, frame_box=(0, 0, 10, 5)),
        "d": answer("d", 80),
    }
    score = evaluate(result, truth_of("a", "b", "c", "d", "e"))
    assert score.levels == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert (score.s1.precision, score.s1.recall, score.s1.f1) == pytest.approx((3 / 4, 3 / 5, 2 / 3))
    assert (score.s2.precision, score.s2.recall, score.s2.f1) == pytest.approx((1 / 2, 2 / 5, 4 / 9))
    assert (score.s3.precision, score.s3.recall, score.s3.f1) == pytest.approx((1 / 4, 1 / 5, 2 / 9))
    assert score.final == pytest.approx(4 / 9)
    assert score.frame_box_iou == pytest.approx((0.5 + 1.0) / 2)
    assert (score.num_answers, score.num_positive_videos) == (4, 5)
    assert score.to_json()["s2"] == {"precision": 0.5, "recall": 0.4, "f1": pytest.approx(4 / 9)}


@pytest.mark.parametrize(
    ("frame_index", "level"),
    [
        (19, 1),  # nearest to 0, where it is not shown
        (20, 1),  # equally near to 0 and 40: the earlier one
        (21, 3),
        (60, 3),
        (380, 3),  # past the last annotated frame
    ],
)
def test_frames_off_the_grid_are_judged_by_the_nearest(frame_index, level):
    assert evaluate({"a": answer("a", frame_index)}, truth_of("a")).levels == {"a": level}


@pytest.mark.parametrize(
    ("pair", "level"),
    [
        (Pair("0", (0, 0, 10, 5), BOX), 2),  # IoU exactly 0.5
        (Pair("0", (0, 0, 10, 6), BOX), 3),
        (Pair("1", BOX, BOX), 2),  # instance 0 has no counterpart
        (Pair("9", BOX, BOX), 2),  # no such image
    ],
)
def test_item_box(pair, level):
    assert evaluate({"a": Answer("a", 40, (pair,))}, truth_of("a")).levels == {"a": level}


def test_one_good_item_box_of_several_is_enough():
    pairs = (Pair("0", FAR, FAR), Pair("0", BOX, BOX))
    score = evaluate({"a": Answer("a", 40, pairs)}, truth_of("a"))
    assert (score.levels, score.frame_box_iou) == ({"a": 3}, 1.0)


def test_an_answer_without_boxes_reaches_level_2():
    score = evaluate({"a": Answer("a", 40, ())}, truth_of("a"))
    assert (score.levels, score.frame_box_iou) == ({"a": 2}, 0.0)


def test_a_garment_of_another_id_is_not_positive():
    truth = truth_of("a", frames={0: (garment(2),), 40: (garment(0),)})
    assert truth.positive_videos() == []


def test_a_video_that_never_shows_its_item_has_no_right_answer():
    truth = truth_of("a")
    truth.frames["quiet"] = {0: (), 40: ()}
    truth.images["quiet"] = truth.images["a"]
    score = evaluate({"a": answer("a", 40), "quiet": answer("quiet", 40), "unknown": answer("unknown", 0)}, truth)
    assert score.levels == {"a": 3, "quiet": 0, "unknown": 0}
    assert (score.s1.precision, score.s1.recall) == (pytest.approx(1 / 3), 1.0)


def test_nothing_answered_scores_zero():
    score = evaluate({}, truth_of("a"))
    assert (score.s1.precision, score.s1.recall, score.s1.f1, score.final) == (0, 0, 0, 0)
    assert score.frame_box_iou is None
    assert evaluate({}, GroundTruth({}, {})).final == 0


def test_a_perfect_result_scores_one():
    score = evaluate({v: answer(v, 80) for v in "abc"}, truth_of(*"abc"))
    assert score.final == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (BOX, BOX, 1.0),
        (BOX, (5, 0, 15, 10), 1 / 3),
        (BOX, (10, 0, 20, 10), 0.0),
        (BOX, FAR, 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        (BOX, (9, 9, 3, 3), 0.0),
    ],
)
def test_iou(first, second, expected):
    assert iou(first, second) == pytest.approx(expected)
    assert iou(second, first) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"v": answer("a", 40)}, "no video of the result is annotated, for example v; annotated is a"),
        ({"a": answer("sku-1", 40), "v": answer("sku-2", 40)}, "no item .* for example sku-1; annotated is a"),
    ],
)
def test_ids_of_another_data_set_are_refused(result, message):
    with pytest.raises(InputError, match=message):
        evaluate(result, truth_of("a", "b"))


def test_one_annotated_video_and_item_suffice():
    score = evaluate({"a": answer("sku-1", 40), "v": answer("b", 40)}, truth_of("a", "b"))
    assert score.levels == {"a": 0, "v": 0}
