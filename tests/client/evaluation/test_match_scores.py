import numpy as np
import pytest

from livematch import Match, evaluate_matches
from livematch.evaluation.match_scores import Estimate

pytest.importorskip("sklearn", reason="needs livematch[evaluation]")


def match(video_id: str, item_id: str, evidence: float | None = 0.5, distance: float = 0.4) -> Match:
    return Match(video_id, item_id, 80, (), distance, 1, evidence=evidence)


TRUTH = {"a": {"x", "y"}, "b": {"x"}, "c": {"z"}, "d": set(), "e": set()}
ANSWERS = [("a", "x", 0.9), ("b", "y", 0.8), ("a", "y", 0.6), ("d", "x", 0.6), ("c", "z", 0.5)]


def test_hand_calculated_scores():
    """Five answered and four labelled pairs, three of which are the same: P = 3/5, R = 3/4, F1 = 6/9.

    The right pairs have ranks 1, 3 (equal to that of a wrong one, so 2 of 4 are right there) and 5:
    AP = (1/1 + 2/4 + 3/5) / 4. The clip u is unlabelled, and one of the two clips that show no item is answered.
    """
    score = evaluate_matches([match("u", "x", 0.95), *(match(*answer) for answer in ANSWERS)], TRUTH)
    assert (score.precision.value, score.recall.value, score.f1.value) == pytest.approx((3 / 5, 3 / 4, 2 / 3))
    assert score.average_precision == pytest.approx(0.525)
    assert score.empty_clips_answered == 0.5
    assert (score.num_clips, score.num_empty_clips, score.num_unlabelled_clips) == (5, 2, 1)
    assert (score.num_answers, score.num_labelled) == (5, 4)
    assert (score.wrong, score.missing) == ([("b", "y"), ("d", "x")], [("b", "x")])
    assert score.to_json()["missing"] == [("b", "x")]
    assert score.to_json().keys() - score.summary().keys() == {"wrong", "missing"}


def test_order_of_matches_and_of_labels_does_not_matter():
    matches = [match(*answer) for answer in ANSWERS]
    assert evaluate_matches(matches[::-1], TRUTH) == evaluate_matches(matches, TRUTH)


def test_matches_without_evidence_are_ranked_by_distance():
    """The nearest is wrong, the second right: AP = (1/2) / 1."""
    matches = [match("a", "x", None, 0.7), match("b", "y", None, 0.2)]
    assert evaluate_matches(matches, {"a": {"x"}, "b": set()}).average_precision == pytest.approx(1 / 2)


def test_the_interval_of_a_proportion_is_that_of_the_binomial_distribution():
    """Of 100 clips with one answer each, 50 are right; quantiles 0.025 and 0.975 of B(100, 1/2) are 40 and 60."""
    truth = {f"v{number}": {"x"} for number in range(100)}
    matches = [match(f"v{number}", "x" if number < 50 else "y") for number in range(100)]
    score = evaluate_matches(matches, truth)
    for estimate in (score.precision, score.recall, score.f1):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.4, 0.6), abs=0.011)
    assert evaluate_matches(matches, truth) == score


def test_clips_are_drawn_not_pairs():
    """Of 4 resamples of two clips, one has only the first, where all is right, and one only the second."""
    items = {f"i{number}" for number in range(50)}
    score = evaluate_matches([match("a", item) for item in items], {"a": items, "b": items})
    assert score.recall == Estimate(0.5, 0.0, 1.0)
    assert score.f1 == Estimate(pytest.approx(2 / 3), 0.0, 1.0)


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(4)
    clips, items = [f"v{n}" for n in range(30)], [f"i{n}" for n in range(8)]
    labelled, answered = rng.random((2, 30, 8)) < 0.2
    truth = {
        clip: {item for item, is_shown in zip(items, row, strict=True) if is_shown}
        for clip, row in zip(clips, labelled, strict=True)
    }
    score = evaluate_matches([match(clips[c], items[i]) for c, i in np.argwhere(answered)], truth)
    expected = precision_recall_fscore_support(labelled.ravel(), answered.ravel(), average="binary")[:3]
    assert (score.precision.value, score.recall.value, score.f1.value) == pytest.approx(expected)
    assert 0.05 < score.f1.value < 0.95
    for estimate in (score.precision, score.recall, score.f1):
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("matches", "truth", "value", "empty_clips_answered"),
    [
        ([], {"a": {"x"}, "b": set()}, 0, 0),
        ([], {"a": set(), "b": set()}, 0, 0),
        ([match("a", "x")], {"a": set(), "b": set()}, 0, 0.5),
        ([match("a", "y")], {"a": {"x"}, "b": {"x"}}, 0, None),
        ([match("a", "x"), match("b", "x")], {"a": {"x"}, "b": {"x"}}, 1, None),
    ],
)
def test_all_or_nothing(matches, truth, value, empty_clips_answered):
    score = evaluate_matches(matches, truth)
    assert score.precision == score.recall == score.f1 == Estimate(value, value, value)
    assert (score.average_precision, score.empty_clips_answered) == (value, empty_clips_answered)


def test_one_clip_has_no_interval():
    score = evaluate_matches([match("a", "x")], {"a": {"x", "y"}})
    assert score.recall == Estimate(0.5, None, None)


def test_ids_that_differ_cause_a_warning(caplog):
    score = evaluate_matches([match("v1", "x")], {"v1.mp4": {"x"}, "v2.mp4": set()})
    assert (score.num_unlabelled_clips, score.num_answers, score.recall.value) == (1, 0, 0)
    message = "no clip with a match is labelled; are the ids the same? The first are v1 and v1.mp4"
    assert [record.getMessage() for record in caplog.records] == [message]
    caplog.clear()
    evaluate_matches([match("v1", "x"), match("v2", "x")], {"v1": {"x"}, "v2.mp4": set()})
    evaluate_matches([], {"v1": {"x"}, "v2.mp4": set()})
    assert not caplog.records
