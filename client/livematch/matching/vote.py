"""Decide which clip shows which item: exact nearest neighbours, then a vote of each item's boxes.

The rule is the one in the README of the reference solution; see `match`. All ties go to the row, clip or item that
comes first in its features.
"""

import logging
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from livematch.errors import InputError
from livematch.features.milvus import MilvusGallery
from livematch.features.table import Features, check_comparable, factorize, require_selection, without_label
from livematch.matching.nearest import DECIMALS, DEFAULT_MEMORY_BYTES, Distances, Indices, nearest
from livematch.types import Match, Pair

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """Options of `match`, which explains them; the defaults are those of the reference solution.

    Raises:
        InputError: a value is out of range.
    """

    quantile: float = 0.28
    vote_share: float = 0.5
    limit: float = 1.12
    num_pairs: int = 1
    same_label: bool = False

    def __post_init__(self) -> None:
        for name, high in (("quantile", 1.0), ("vote_share", 1.0), ("limit", np.inf)):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) <= high:
                raise InputError(f"{name} must be in 0..{high:g}, got {value}")
        if not isinstance(self.num_pairs, Integral) or int(self.num_pairs) < 1:
            raise InputError(f"num_pairs must be at least 1, got {self.num_pairs}")


def match(
    queries: Features,
    gallery: Features | MilvusGallery,
    options: MatchOptions | None = None,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> list[Match]:
    """Decide which clip shows which item.

    Let d be the squared distance 2 - 2·cos from a query to its nearest gallery box. For each item:

    (a) Each query votes for the clip of its nearest gallery box.
    (b) Queries whose d is below the `quantile` of the item's values of d are kept. The quantile is interpolated
        linearly; the comparison is strict, so an item with a single query keeps none.
    (c) If K queries are kept, clips with fewer than round(vote_share·K) of their votes drop out. A half is rounded to
        the even number.
    (d) Of the remaining clips, the item chooses the one whose voters have the smallest mean d. This mean is the
        distance of the match, and these voters decide the rest:
    (e) The voter with the highest score gives the image and the item's box.
    (f) Of the gallery boxes nearest to the voters, the one with the highest score gives the frame and the clip's box.

    With `same_label`, a query's nearest gallery box is the nearest of those whose label is the query's; a query for
    which there is none does not count.

    If several items choose the same clip, the one with the smallest distance gets it. Matches whose distance is not
    below `limit` are dropped. With `num_pairs` above 1, a match also has the pairs of the other voters whose nearest
    box is in the frame of (f), in descending order of score.

    In this example, d is 0.0099, 0.5134 and 0.2111. Only the first is below the quantile, 0.1226, so one vote decides:

    >>> gallery = Features(
    ...     sources=["clip", "clip"], names=["", ""], frame_indices=[80, 100],
    ...     boxes=[[10, 10, 50, 90], [12, 10, 52, 90]], scores=[0.9, 0.95], embeddings=[[1, 0], [0, 1]],
    ... )
    >>> queries = Features(
    ...     sources=["shirt"] * 3, names=["0", "1", "2"], frame_indices=[-1] * 3,
    ...     boxes=[[0, 0, 40, 80]] * 3, scores=[0.8, 0.9, 0.7], embeddings=[[1, 0.1], [1, 0.9], [0.5, 1]],
    ... )
    >>> (found,) = match(queries, gallery)
    >>> found.video_id, found.item_id, found.frame_index, found.num_votes, round(found.distance, 4)
    ('clip', 'shirt', 80, 1, 0.0099)

    Args:
        queries: boxes of the items' images; `sources` are item ids.
        gallery: boxes of the clips' frames; `sources` are video ids.
        memory_bytes: see `nearest`.

    Returns:
        At most one match per clip and per item, in the gallery's order of clips.

    Raises:
        FeaturesError: queries and gallery are exchanged or have embeddings of different models or sizes, boxes have no
            label although `same_label` is set, a file is damaged, or the Milvus gallery does not exist.
        InputError: `memory_bytes` is too small.
        UnavailableError: the Milvus cluster does not respond.
    """
    require_selection(queries, "images", "queries (product photos)")
    if isinstance(gallery, Features):
        require_selection(gallery, "frames", "a gallery (clips)")
    options = options or MatchOptions()
    if not len(queries):
        return []
    if options.same_label:
        _require_labels(queries)
    if isinstance(gallery, MilvusGallery):
        gallery = gallery.candidates(queries, same_label=options.same_label)
    if options.same_label and set(queries.labels).isdisjoint(gallery.labels):
        labels = ", ".join(dict.fromkeys(queries.labels))
        _log.warning("no box of %s has a label of %s: %s", gallery.origin, queries.origin, labels)
    if not len(gallery):
        return []
    check_comparable(queries, gallery.origin, gallery.model_identity, gallery.embedding_size)
    if not queries.model_identity or not gallery.model_identity:
        _log.warning("features without a model identity: cannot tell whether both are of the same models")
    if options.same_label:
        _require_labels(gallery)
    hits, distances = nearest(queries, gallery, same_label=options.same_label, memory_bytes=memory_bytes)
    return _vote(queries, gallery, hits, distances, options)


def _require_labels(features: Features) -> None:
    if "" in features.labels:
        raise without_label(features.origin, features.sources[features.labels.index("")])


def _vote(
    queries: Features, gallery: Features, hits: Indices, distances: Distances, options: MatchOptions
) -> list[Match]:
    """Return the matches, given each query's nearest gallery row and the distance to it."""
    clips, items = factorize(gallery.sources)[hits], factorize(queries.sources)
    nearest_item: dict[int, tuple[float, Indices]] = {}  # clip: distance and queries of its nearest item
    for members in np.split(np.argsort(items, kind="stable"), np.cumsum(np.bincount(items))[:-1]):
        rows = members[np.isfinite(distances[members])]
        contenders = [rows[voters] for voters in contending_queries(clips[rows], distances[rows], options)]
        if not contenders:
            continue
        # Rounded, because the last bit of a mean depends on the order in which its terms are added.
        means = [round(float(distances[voters].mean()), DECIMALS) for voters in contenders]
        distance, voters = min(zip(means, contenders, strict=True), key=lambda contender: contender[0])
        clip = int(clips[voters[0]])
        if clip not in nearest_item or distance < nearest_item[clip][0]:
            nearest_item[clip] = distance, voters
    return [
        _to_match(queries, gallery, voters, hits, distance, options.num_pairs)
        for _, (distance, voters) in sorted(nearest_item.items(), key=lambda entry: entry[0])
        if distance < options.limit
    ]


def contending_queries(clips: Indices, distances: Distances, options: MatchOptions) -> list[Indices]:
    """Apply steps (a) to (c) of `match` to the queries of one item.

    Args:
        clips: intp [n], number of the clip that each query is nearest to.
        distances: float64 [n], to that clip's nearest box.

    Returns:
        For each remaining clip, in order, the indices of the kept queries that voted for it.
    """
    if not len(distances):
        return []
    # Rounded, or a query that lies exactly at the quantile may be just below it: 25 * 0.28 is 7.000000000000001.
    threshold = np.round(np.quantile(distances, options.quantile), DECIMALS)
    kept = np.flatnonzero(distances < threshold)
    min_votes = round(options.vote_share * len(kept))
    voters_by_clip = [kept[clips[kept] == clip] for clip in np.unique(clips[kept])]
    return [voters for voters in voters_by_clip if len(voters) >= min_votes]


def _to_match(
    queries: Features, gallery: Features, voters: Indices, hits: Indices, distance: float, num_pairs: int
) -> Match:
    """Apply steps (e) and (f). argmax takes the first of equals, and voters and rows are both in table order."""
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
        pairs=tuple(
            Pair(queries.names[q], tuple(queries.boxes[q].tolist()), tuple(gallery.boxes[r].tolist()))
            for q, r in pairs[:num_pairs]
        ),
        distance=distance,
        num_votes=len(voters),
        title=queries.titles[best],
        url=queries.urls[best],
    )
