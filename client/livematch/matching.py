"""Which clip shows which item: exact nearest neighbours, then a vote of each item's boxes.

The rule is that of the reference solution's README (see `match`), in exact arithmetic. Nothing depends on the BLAS in
use, on its threads or on the tile size: a float32 matrix product only preselects, float64 decides, and distances are
compared to 12 decimals, so that what is equal on paper is equal here. All ties go to the row, clip or item that comes
first in its features.
"""

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livematch.errors import InputError
from livematch.features import Features, check_comparable

QUANTILE = 0.28
VOTE_SHARE = 0.5
LIMIT = 1.12

_DECIMALS = 12  # float64 is good for 15, the float32 embeddings themselves for 7
_TILE_ROWS = 256  # queries per matrix product; with it, a gallery of n boxes needs n KB
_REFINED_PAIRS = 4096  # per float64 step, 64 MB for 2048-d embeddings

Box = tuple[float, float, float, float]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """A clip, the item it shows, and the two boxes that show it best.

    Boxes are x0 y0 x1 y1 in pixels of the item's image and of the clip's frame, untruncated.
    `distance` is the mean squared distance of the deciding queries, 0 (same direction) to 4 (opposite).
    `num_votes` is the number of those queries.
    """

    video_id: str
    item_id: str
    frame_index: int
    img_name: str
    item_box: Box
    frame_box: Box
    distance: float
    num_votes: int


def match(
    queries: Features,
    gallery: Features,
    *,
    quantile: float = QUANTILE,
    vote_share: float = VOTE_SHARE,
    limit: float = LIMIT,
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

    Returns:
        At most one match per clip and per item, in the gallery's order of clips.

    Raises:
        FeaturesError: queries and gallery are of different models or dimension.
        InputError: `quantile` or `vote_share` is outside 0..1, or `limit` is not a number.
    """
    for name, value, high in (("quantile", quantile, 1.0), ("vote_share", vote_share, 1.0), ("limit", limit, np.inf)):
        if not 0 <= value <= high:
            raise InputError(f"{name} must be in 0..{high:g}, got {value}")
    if not len(queries) or not len(gallery):
        return []
    check_comparable(queries, gallery)
    if not queries.model_identity or not gallery.model_identity:
        _log.warning("features without a model identity: cannot tell whether the same models made both")
    hits, distances = nearest(queries, gallery)
    clips, items = _numbered(gallery.sources), _numbered(queries.sources)
    best: dict[int, Match] = {}
    for rows in np.split(np.argsort(items, kind="stable"), np.cumsum(np.bincount(items))[:-1]):
        voters = rows[deciding_queries(clips[hits[rows]], distances[rows], quantile=quantile, vote_share=vote_share)]
        if len(voters):
            clip = int(clips[hits[voters[0]]])
            candidate = _to_match(queries, gallery, voters, hits[voters], _mean(distances[voters]))
            if clip not in best or candidate.distance < best[clip].distance:
                best[clip] = candidate
    return [best[clip] for clip in sorted(best) if best[clip].distance < limit]


def nearest(queries: Features, gallery: Features) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The nearest gallery row of each query, and the squared distance 2 - 2·cos to it.

    Returns:
        hits: intp [n], the first row of those equally near.
        distances: float64 [n], 0..4.
    """
    hits = np.empty(len(queries), np.intp)
    distances = np.empty(len(queries), np.float64)
    # Each of two float32 cosines is off by at most (size + 4)·eps/2, whatever order it is summed in.
    margin = (queries.embedding_size + 4) * np.finfo(np.float32).eps
    inverse_lengths = (1 / gallery.lengths).astype(np.float32)
    for start in range(0, len(queries), _TILE_ROWS):
        tile = slice(start, min(start + _TILE_ROWS, len(queries)))
        cosines = queries.embeddings[tile] @ gallery.embeddings.T
        cosines *= inverse_lengths
        cosines /= queries.lengths[tile, np.newaxis].astype(np.float32)
        near_queries, near_rows = np.nonzero(cosines >= cosines.max(axis=1, keepdims=True) - margin)
        exact = _exact_cosines(queries, gallery, near_queries + start, near_rows)
        # Sorted by query, then by falling cosine, then by row: the first of each query is its hit.
        order = np.lexsort((near_rows, -exact, near_queries))
        _, first = np.unique(near_queries[order], return_index=True)
        hits[tile] = near_rows[order[first]]
        distances[tile] = np.round(np.clip(2 - 2 * exact[order[first]], 0, 4), _DECIMALS)
    return hits, distances


def _exact_cosines(
    queries: Features, gallery: Features, query_rows: npt.NDArray[np.intp], gallery_rows: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    cosines = np.empty(len(query_rows), np.float64)
    for start in range(0, len(query_rows), _REFINED_PAIRS):
        pairs = slice(start, start + _REFINED_PAIRS)
        products = queries.embeddings[query_rows[pairs]].astype(np.float64) * gallery.embeddings[gallery_rows[pairs]]
        cosines[pairs] = products.sum(axis=1)
    return np.round(cosines / (queries.lengths[query_rows] * gallery.lengths[gallery_rows]), _DECIMALS)


def deciding_queries(
    clips: npt.NDArray[np.intp],
    distances: npt.NDArray[np.float64],
    *,
    quantile: float = QUANTILE,
    vote_share: float = VOTE_SHARE,
) -> npt.NDArray[np.intp]:
    """Steps (a) to (d) of `match` for the queries of one item.

    Args:
        clips: intp [n], number of the clip that each query is nearest to.
        distances: float64 [n], to that clip's nearest box.

    Returns:
        Indices of the kept queries that voted for the item's clip, in order; none if the item matches no clip.
    """
    kept = np.flatnonzero(distances < np.round(np.quantile(distances, quantile), _DECIMALS))
    min_votes = round(vote_share * len(kept))
    voters_by_clip = [kept[clips[kept] == clip] for clip in np.unique(clips[kept])]
    contenders = [voters for voters in voters_by_clip if len(voters) >= min_votes]
    return min(contenders, key=lambda voters: _mean(distances[voters]), default=kept[:0])


def _to_match(
    queries: Features,
    gallery: Features,
    voters: npt.NDArray[np.intp],
    hits: npt.NDArray[np.intp],
    distance: float,
) -> Match:
    """Steps (e) and (f); argmax takes the first of equals, and both orders here are file order."""
    query = int(voters[queries.scores[voters].argmax()])
    rows = np.unique(hits)
    row = int(rows[gallery.scores[rows].argmax()])
    return Match(
        video_id=gallery.sources[row],
        item_id=queries.sources[query],
        frame_index=int(gallery.frame_indices[row]),
        img_name=queries.names[query],
        item_box=_box(queries, query),
        frame_box=_box(gallery, row),
        distance=distance,
        num_votes=len(voters),
    )


def _box(features: Features, row: int) -> Box:
    x0, y0, x1, y1 = features.boxes[row].tolist()
    return x0, y0, x1, y1


def _mean(distances: npt.NDArray[np.float64]) -> float:
    return round(math.fsum(distances) / len(distances), _DECIMALS)


def _numbered(ids: list[str]) -> npt.NDArray[np.intp]:
    """Each row's id as a number, 0 for the id that appears first."""
    number_of = {unique: number for number, unique in enumerate(dict.fromkeys(ids))}
    return np.array([number_of[row_id] for row_id in ids], np.intp)
