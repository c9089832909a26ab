"""Score a result against the annotations, on the competition's three levels.

    S1  the item is right: item id and video id are equal, and the video has a positive frame
    S2  S1, and the frame shows the item: the annotated frame nearest to the answer's frame is positive
    S3  S2, and an item box of the answer has IoU > 0.5 with a positive box of the image it names

    precision = answers that reach the level / all answers
    recall    = answers that reach the level / videos with a positive frame
    final     = 0.2·F1(S1) + 0.6·F1(S2) + 0.2·F1(S3)

A frame box is positive if its nonzero instance_id occurs in the images of the item with the video's id. An image box
is positive if its nonzero instance_id occurs in the annotated frames of the video with the item's id. A frame is
positive if it has a positive box. The competition's official text is lost; these are the levels on which the scoring
scripts of its participants agree.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from livematch.errors import InputError
from livematch.evaluation.ground_truth import GroundTruth
from livematch.evaluation.results import Answer
from livematch.types import Box

LEVEL_WEIGHTS = (0.2, 0.6, 0.2)
MIN_IOU = 0.5


@dataclass(frozen=True)
class LevelScore:
    """Holds the scores of one level, each 0..1, and 0 where the denominator is 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Score:
    """Holds the scores of the three levels, and `final`, the weighted mean of their F1.

    frame_box_iou: over the answers of level 2 and 3, the mean of the best IoU between a frame box of the answer and a
        positive box of the judged frame; None without such answers. If the answer's frame is not annotated, this is a
        lower bound, because the garment may have moved between the two frames.
    levels: for each answer's video id, the highest level reached, 0 (wrong item) to 3.
    """

    s1: LevelScore
    s2: LevelScore
    s3: LevelScore
    final: float
    frame_box_iou: float | None
    num_answers: int
    num_positive_videos: int
    levels: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the content of score.json."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """Return the content of score.json without the levels, which have one entry per answer."""
        return {name: value for name, value in self.to_json().items() if name != "levels"}


def evaluate(result: Mapping[str, Answer], truth: GroundTruth) -> Score:
    """Score the answers of a result against the annotations of the same videos and items.

    >>> score = evaluate(read_result("result.json"), read_ground_truth("wab/part1"))
    >>> print(score.final, score.s1.f1)

    Raises:
        InputError: no video or no item of the result is annotated, so that every answer would count as wrong.
    """
    _require_common("video", list(result), truth.frames)
    _require_common("item", [answer.item_id for answer in result.values()], truth.images)
    positive_videos = set(truth.positive_videos())
    levels = {
        video_id: _reached_level(video_id, answer, truth) if video_id in positive_videos else 0
        for video_id, answer in result.items()
    }
    s1, s2, s3 = (
        _level_score(sum(reached >= level for reached in levels.values()), len(result), len(positive_videos))
        for level in (1, 2, 3)
    )
    ious = [_frame_box_iou(v, answer, truth) for v, answer in result.items() if levels[v] >= 2]
    return Score(
        s1=s1,
        s2=s2,
        s3=s3,
        final=sum(weight * level.f1 for weight, level in zip(LEVEL_WEIGHTS, (s1, s2, s3), strict=True)),
        frame_box_iou=sum(ious) / len(ious) if ious else None,
        num_answers=len(result),
        num_positive_videos=len(positive_videos),
        levels=levels,
    )


def iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes x0 y0 x1 y1, x1 and y1 exclusive; 0 if both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0) * max(height, 0)
    union = _area(first) + _area(second) - intersection
    return intersection / union if union else 0.0


def _require_common(kind: str, ids: Sequence[str], annotated: Collection[str]) -> None:
    if ids and not any(name in annotated for name in ids):
        raise InputError(
            f"no {kind} of the result is annotated, for example {ids[0]}; annotated is "
            f"{min(annotated, default='none')}. A video must have the id of the item that it shows"
        )


def _reached_level(video_id: str, answer: Answer, truth: GroundTruth) -> int:
    """Return the highest level, 0 to 3, that the answer reaches; the video must have a positive frame."""
    if answer.item_id != video_id:
        return 0
    judged_frame = truth.judged_frame(video_id, answer.frame_index)
    if not truth.positive_frame_boxes(video_id, judged_frame):
        return 1
    ious = (
        iou(pair.item_box, box)
        for pair in answer.pairs
        for box in truth.positive_image_boxes(answer.item_id, pair.img_name)
    )
    return 3 if any(value > MIN_IOU for value in ious) else 2


def _frame_box_iou(video_id: str, answer: Answer, truth: GroundTruth) -> float:
    judged_frame = truth.judged_frame(video_id, answer.frame_index)
    positive_boxes = truth.positive_frame_boxes(video_id, judged_frame)
    return max((iou(pair.frame_box, box) for pair in answer.pairs for box in positive_boxes), default=0.0)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _level_score(num_hits: int, num_answers: int, num_positive_videos: int) -> LevelScore:
    precision = num_hits / num_answers if num_answers else 0.0
    recall = num_hits / num_positive_videos if num_positive_videos else 0.0
    f1 = 2 * precision * recall / (precision + recall) if num_hits else 0.0
    return LevelScore(precision, recall, f1)
