"""Score matches against a table of the items that each clip shows, for any number of items and clips.

    precision = right pairs / answered pairs      F1 = 2 · precision · recall / (precision + recall)
    recall    = right pairs / labelled pairs

A pair is a clip and an item; a right pair is answered and labelled. Only labelled clips count. Average precision is
that of the answered pairs, the largest evidence first, where labelled pairs without an answer add 0: the sum over the
right pairs of the precision among all pairs of at least their evidence, divided by the number of labelled pairs.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from livematch.errors import LivematchError
from livematch.types import Match

_log = logging.getLogger(__name__)

_NUM_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 50  # bounds the memory for many clips


@dataclass(frozen=True)
class Estimate:
    """Holds a score, 0..1, 0 where the denominator is 0, and its 95 % interval by a bootstrap over clips.

    low, high: percentiles 2.5 and 97.5 of the score over 2000 resamples of the clips; None with fewer than two clips.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MatchScore:
    """Holds the scores of matches; the module says how they are calculated.

    average_precision: 0..1, 0 without labelled pairs. Only the given matches are ranked; for the weaker ones too, match
        with a small `min_evidence`.
    empty_clips_answered: fraction of the clips labelled as showing no item that have an answer; None without such.
    num_clips, num_empty_clips: labelled clips, and those of them that show no item.
    num_unlabelled_clips: clips that have an answer and no label; they do not count.
    num_answers: answered pairs of labelled clips.
    num_labelled: labelled pairs.
    wrong, missing: the answered pairs that are not labelled and the labelled pairs that are not answered, as (video id,
        item id).
    """

    precision: Estimate
    recall: Estimate
    f1: Estimate
    average_precision: float
    empty_clips_answered: float | None
    num_clips: int
    num_empty_clips: int
    num_unlabelled_clips: int
    num_answers: int
    num_labelled: int
    wrong: list[tuple[str, str]]
    missing: list[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Return the content of score.json."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """Return the content of score.json without the single pairs."""
        return {name: value for name, value in self.to_json().items() if name not in ("wrong", "missing")}


def evaluate_matches(matches: Sequence[Match], truth: Mapping[str, Collection[str]]) -> MatchScore:
    """Score matches, of `find_products` or `match`, against the items that each clip shows.

    Matches are ranked by evidence, those of `match` by distance. Equal matches always give the same intervals.
    If no clip with a match is labelled, a warning is logged.

    >>> score = evaluate_matches(find_products(clips, products), read_truth_table("truth.csv"))
    >>> print(score.f1.value, score.f1.low, score.f1.high)

    Args:
        truth: item ids by video id, of all labelled clips, also of those that show none.

    Raises:
        LivematchError: scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        reason = "scores of matches need scikit-learn: pip install 'livematch[evaluation]'"
        raise LivematchError(reason) from error
    evidence: dict[tuple[str, str], float] = {}
    for match in matches:
        if match.video_id in truth:
            evidence[match.video_id, match.item_id] = -match.distance if match.evidence is None else match.evidence
    if matches and not evidence:
        # Not an error: clips that show nothing may be the only labelled ones, and right to have no match.
        ids = matches[0].video_id, next(iter(truth), "no clip")
        _log.warning("no clip with a match is labelled; are the ids the same? The first are %s and %s", *ids)
    labelled_pairs = {(video_id, item_id) for video_id, items in truth.items() for item_id in items}
    right = [pair in labelled_pairs for pair in evidence]
    precision, recall, f1 = _estimates(evidence.keys(), labelled_pairs, list(truth))
    empty = {video_id for video_id, items in truth.items() if not items}
    answered = {video_id for video_id, _ in evidence}
    return MatchScore(
        precision=precision,
        recall=recall,
        f1=f1,
        # scikit-learn divides by the number of right pairs: without the factor, missing pairs would not count.
        average_precision=float(average_precision_score(right, [*evidence.values()])) * recall.value
        if any(right)
        else 0.0,
        empty_clips_answered=len(empty & answered) / len(empty) if empty else None,
        num_clips=len(truth),
        num_empty_clips=len(empty),
        num_unlabelled_clips=len({match.video_id for match in matches} - truth.keys()),
        num_answers=len(evidence),
        num_labelled=len(labelled_pairs),
        wrong=sorted(evidence.keys() - labelled_pairs),
        missing=sorted(labelled_pairs - evidence.keys()),
    )


def _estimates(
    answered: Collection[tuple[str, str]], labelled: Collection[tuple[str, str]], video_ids: Sequence[str]
) -> list[Estimate]:
    """Return precision, recall and F1 of the answered pairs of these clips."""
    from scipy.stats import bootstrap  # scikit-learn needs scipy

    number_of = {video_id: number for number, video_id in enumerate(video_ids)}
    num_right, num_answered, num_labelled = (
        np.bincount([number_of[video_id] for video_id, _ in pairs], minlength=len(video_ids))
        for pairs in (set(answered) & set(labelled), answered, labelled)
    )
    counts = num_right, num_answered, num_labelled
    values = _scores(*counts)
    if len(video_ids) < 2:
        return [Estimate(value, None, None) for value in values.tolist()]
    interval = bootstrap(
        counts,
        _scores,
        paired=True,
        vectorized=True,
        n_resamples=_NUM_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        method="percentile",  # the default, BCa, is undefined if all resamples have the same score, such as 1
        rng=np.random.default_rng(0),
    ).confidence_interval
    ends = zip(values.tolist(), interval.low.tolist(), interval.high.tolist(), strict=True)
    return [Estimate(*end) for end in ends]


def _scores(
    num_right: npt.NDArray[np.int64],
    num_answered: npt.NDArray[np.int64],
    num_labelled: npt.NDArray[np.int64],
    axis: int = -1,
) -> npt.NDArray[np.float64]:
    """Return precision, recall and F1, float64 [3,…], of the clips along `axis`, from the numbers of pairs of each."""
    right, answered, labelled = (counts.sum(axis) for counts in (num_right, num_answered, num_labelled))
    # Where a denominator is 0, so is the numerator: dividing by 1 gives 0. 2PR / (P + R) is 2R / (A + L).
    fractions = (right, answered), (right, labelled), (2 * right, answered + labelled)
    return np.stack([numerator / np.maximum(denominator, 1) for numerator, denominator in fractions])
