"""Which clip shows which item: exact nearest neighbours, then a vote of each item's boxes.

The rule is that of the reference solution's README (see `match`), in exact arithmetic: distances are compared to 12
decimals, and all ties go to the row, clip or item that comes first in its features.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from livematch.errors import InputError
from livematch.features.table import AnyFeatures, Rows, check_comparable, factorize
from livematch.matching.assignment import assign_jointly, assign_nearest
from livematch.matching.nearest import DECIMALS, DEFAULT_MEMORY_BYTES, nearest
from livematch.types import Box

Assignment = Literal["nearest", "joint"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How boxes become matches; the defaults are the reference solution's. See `match` for what each means.

    Raises:
        InputError: a value is out of range.
    """

    quantile: float = 0.28
    vote_share: float = 0.5
    limit: float = 1.12
    assignment: Assignment = "nearest"
    num_pairs: int = 1

    def __post_init__(self) -> None:
        for name, high in (("quantile", 1.0), ("vote_share", 1.0), ("limit", np.inf)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise InputError(f"{name} must be in 0..{high:g}, got {value}")
        if self.assignment not in get_args(Assignment):
            raise InputError(f"assignment must be nearest or joint, got {self.assignment!r}")
        if self.num_pairs < 1:
            raise InputError(f"num_pairs must be at least 1, got {self.num_pairs}")


@dataclass(frozen=True)
class Pair:
    """One garment in an image of the item and in the clip's frame; boxes x0 y0 x1 y1 in their pixels, untruncated."""

    img_name: str
    item_box: Box
    frame_box: Box


@dataclass(frozen=True)
class Match:
    """A clip, the item it shows, and the boxes that show it, best pair first.

    `distance` is the mean squared distance of the deciding queries, 0 (same direction) to 4 (opposite).
    `num_votes` is the number of those queries.
    """

    video_id: str
    item_id: str
    frame_index: int
    pairs: tuple[Pair, ...]
    distance: float
    num_votes: int


def match(
    queries: AnyFeatures,
    gallery: AnyFeatures,
    rule: MatchOptions | None = None,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> list[Match]:
    """Match items (queries: boxes of images) to clips (gallery: boxes of frames).

    With d, for each query, the squared distance 2 - 2·cos to its nearest gallery box, for each item:

    (a) each query votes for its nearest gallery box's clip;
    (b) queries with d < quantile(d) are kept (linear interpolation; strict, so a single query is never kept);
    (c) among the K kept, clips with at least round(vote_share·K) votes stay (half to even);
    (d) of several the one with the smallest mean d of its kept queries is the item's clip, with that distance;
    (e) of those queries, the one with the highest score gives the image and the item box;
    (f) of the gallery boxes they hit, the one with the highest score gives the frame and the frame box.

    A clip keeps the item with the smallest distance, and matches with a distance of `limit` or more are dropped.
    With `assignment="joint"`, (d) and this are replaced: of all pairs of item and clip that (c) leaves, those are taken
    that together have the largest sum of limit - distance. With `num_pairs` above 1, other deciding queries that hit a
    box in the frame of (f) add that pair of boxes, those with higher scores first.

    Args:
        rule: the options; None for the reference solution's.
        memory_bytes: see `nearest`.

    Returns:
        At most one match per clip and per item, in the gallery's order of clips.

    Raises:
        FeaturesError: queries and gallery are of different models or dimension, or a file is damaged.
        InputError: `memory_bytes` is too little.
    """
    if not len(queries) or not len(gallery):
        return []
    check_comparable(queries, gallery)
    if not queries.model_identity or not gallery.model_identity:
        _log.warning("features without a model identity: cannot tell whether the same models made both")
    hits, distances = nearest(queries, gallery, memory_bytes=memory_bytes)
    return vote(queries, gallery, hits, distances, rule or MatchOptions())


def vote(
    queries: Rows, gallery: Rows, hits: npt.NDArray[np.intp], distances: npt.NDArray[np.float64], rule: MatchOptions
) -> list[Match]:
    """Matches from each query's nearest gallery row and the distance to it; see `match`."""
    clips, items = factorize(gallery.sources)[hits], factorize(queries.sources)
    voters_of: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
    for item, rows in enumerate(np.split(np.argsort(items, kind="stable"), np.cumsum(np.bincount(items))[:-1])):
        for voters in contending_queries(clips[rows], distances[rows], rule):
            voters_of[item, int(clips[rows[voters[0]]])] = rows[voters]
    edges = {edge: _mean(distances[voters]) for edge, voters in voters_of.items()}
    taken = assign_nearest(edges) if rule.assignment == "nearest" else assign_jointly(edges, rule.limit)
    return [
        _to_match(queries, gallery, voters_of[item, clip], hits, edges[item, clip], rule.num_pairs)
        for item, clip in sorted(taken, key=lambda edge: edge[1])
        if edges[item, clip] < rule.limit
    ]


def contending_queries(
    clips: npt.NDArray[np.intp], distances: npt.NDArray[np.float64], rule: MatchOptions
) -> list[npt.NDArray[np.intp]]:
    """Steps (a) to (c) of `match` for the queries of one item.

    Args:
        clips: intp [n], number of the clip that each query is nearest to.
        distances: float64 [n], to that clip's nearest box.

    Returns:
        For each clip that stays, in order, the indices of the kept queries that voted for it.
    """
    kept = np.flatnonzero(distances < np.round(np.quantile(distances, rule.quantile), DECIMALS))
    min_votes = round(rule.vote_share * len(kept))
    voters_by_clip = [kept[clips[kept] == clip] for clip in np.unique(clips[kept])]
    return [voters for voters in voters_by_clip if len(voters) >= min_votes]


def _to_match(
    queries: Rows,
    gallery: Rows,
    voters: npt.NDArray[np.intp],
    hits: npt.NDArray[np.intp],
    distance: float,
    num_pairs: int,
) -> Match:
    """Steps (e) and (f); argmax takes the first of equals, and both orders here are file order."""
    best = int(voters[queries.scores[voters].argmax()])
    rows = np.unique(hits[voters])
    row = int(rows[gallery.scores[rows].argmax()])
    in_frame = voters[gallery.frame_indices[hits[voters]] == gallery.frame_indices[row]]
    others = in_frame[np.argsort(-queries.scores[in_frame], kind="stable")]
    pairs = [(best, row), *((int(query), int(hits[query])) for query in others if query != best)]
    return Match(
        video_id=gallery.sources[row],
        item_id=queries.sources[best],
        frame_index=int(gallery.frame_indices[row]),
        pairs=tuple(Pair(queries.names[q], _box(queries, q), _box(gallery, r)) for q, r in pairs[:num_pairs]),
        distance=distance,
        num_votes=len(voters),
    )


def _box(rows: Rows, row: int) -> Box:
    x0, y0, x1, y1 = rows.boxes[row].tolist()
    return x0, y0, x1, y1


def _mean(distances: npt.NDArray[np.float64]) -> float:
    return round(math.fsum(distances) / len(distances), DECIMALS)
