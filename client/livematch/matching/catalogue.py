"""Find all products that a clip or a stream shows: those that are seen in several frames that follow each other."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Self

import numpy as np

from livematch.errors import InputError
from livematch.features.table import Features
from livematch.matching.nearest import DEFAULT_MEMORY_BYTES, nearest
from livematch.matching.pairing import check_pairing
from livematch.types import Box, Match, Pair, Segment


@dataclass(frozen=True, kw_only=True)
class CatalogueOptions:
    """Options of `find_products`, which explains them.

    Raises:
        InputError: a value is out of range.
    """

    limit: float = 1.0
    window: int = 6
    min_evidence: float = 0.2
    same_label: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.limit, Real) or not 0 < float(self.limit) <= 4:
            raise InputError(f"limit must be more than 0 and at most 4, got {self.limit}")
        if not isinstance(self.window, Integral) or int(self.window) < 1:
            raise InputError(f"window must be at least 1 frame, got {self.window}")
        if not isinstance(self.min_evidence, Real) or not 0 < float(self.min_evidence) <= 1:
            raise InputError(f"min_evidence must be more than 0 and at most 1, got {self.min_evidence}")


@dataclass(frozen=True)
class Sighting:
    """A box in a frame whose nearest photo is near enough.

    item_id: the product in that photo.
    photo: the photo's row in the features of the products.
    distance: squared distance, 0..4, to that photo.
    weight: the detector's score of the box times (1 - distance / limit), 0..1.
    """

    item_id: str
    frame_index: int
    box: Box
    photo: int
    distance: float
    weight: float

    @classmethod
    def of(
        cls, products: Features, photo: int, frame_index: int, box: Box, score: float, distance: float, limit: float
    ) -> Self:
        """Return the sighting of a box with a detector's score, whose nearest photo is at `distance`, below `limit`."""
        return cls(products.sources[photo], frame_index, box, photo, distance, score * (1 - distance / limit))


class Window:
    """The products seen in the last `num_frames` analysed frames, and the evidence for each."""

    def __init__(self, num_frames: int) -> None:
        self._frames: deque[dict[str, Sighting]] = deque(maxlen=num_frames)
        self._num_frames = num_frames

    def add(self, sightings: Sequence[Sighting]) -> None:
        """Add the next frame, which may have no sightings; of each product, the one of the largest weight counts."""
        best: dict[str, Sighting] = {}
        for sighting in sightings:
            if sighting.item_id not in best or sighting.weight > best[sighting.item_id].weight:
                best[sighting.item_id] = sighting
        self._frames.append(best)

    def evidence(self) -> dict[str, float]:
        """Return the evidence of each product, 0..1, largest first: the mean weight, 0 where a frame does not show it.

        Frames that the window still lacks count as frames that do not show it.
        """
        sums: dict[str, float] = {}
        for frame in self._frames:
            for item_id, sighting in frame.items():
                sums[item_id] = sums.get(item_id, 0.0) + sighting.weight
        # Rounded, so that products of equal evidence keep the order in which they were seen first.
        ordered = sorted(sums.items(), key=lambda entry: -round(entry[1], 9))
        return {item_id: total / self._num_frames for item_id, total in ordered}

    def sightings(self, item_id: str) -> list[Sighting]:
        """Return the sightings of a product in the window, the earliest first."""
        return [frame[item_id] for frame in self._frames if item_id in frame]


def find_products(
    clips: Features,
    products: Features,
    options: CatalogueOptions | None = None,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> list[Match]:
    """Find the products that each clip shows, and when; a clip may show several, and a product be in several clips.

    (a) A box in a frame is a sighting of the product in the nearest photo, if their squared distance d = 2 - 2·cos is
        below `limit`. Its weight is the detector's score times (1 - d / limit).
    (b) The evidence for a product is the sum of its weights over `window` analysed frames that follow each other,
        divided by their number; of several boxes in one frame, the one of the largest weight counts. In a clip of fewer
        frames, the window is the whole clip.
    (c) A clip shows a product where the evidence is at least `min_evidence`: from the first to the last sighting in
        these windows. Windows that share sightings form one segment.
    (d) The match's evidence is the largest one of its segments; its boxes and distance are those of the sighting of the
        largest weight.

    With `same_label`, a box is compared only with boxes in photos whose label is the same.

    >>> products = Features(
    ...     sources=["shirt", "skirt"], names=["0", "0"], frame_indices=[-1, -1],
    ...     boxes=[[0, 0, 40, 80]] * 2, scores=[0.9, 0.9], embeddings=[[1, 0], [0, 1]],
    ... )
    >>> clips = Features(
    ...     sources=["clip"] * 4, names=[""] * 4, frame_indices=[0, 20, 40, 60],
    ...     boxes=[[10, 10, 50, 90]] * 4, scores=[0.9] * 4, embeddings=[[1, 0], [1, 0], [0.1, 1], [0, 1]],
    ... )
    >>> [(m.item_id, [(s.first_frame, s.last_frame) for s in m.segments], round(m.evidence, 2))
    ...  for m in find_products(clips, products)]
    [('shirt', [(0, 20)], 0.45), ('skirt', [(40, 60)], 0.45)]

    Args:
        clips: boxes of the clips' frames; `sources` are video ids. Frames with boxes count as analysed, and between
            them every n-th frame, where n is the smallest difference between two frames with boxes in one clip.
        products: boxes of the products' photos; `sources` are item ids.
        memory_bytes: see `nearest`.

    Returns:
        Matches in the order of the clips; those of one clip by evidence, largest first.

    Raises:
        FeaturesError: `clips` and `products` are exchanged or have embeddings of different models or sizes, boxes have
            no label although `same_label` is set, or a file is damaged.
        InputError: `memory_bytes` is too small.
    """
    options = options or CatalogueOptions()
    check_pairing(products, clips, same_label=options.same_label)
    if not len(clips) or not len(products):
        return []
    hits, distances = nearest(clips, products, same_label=options.same_label, memory_bytes=memory_bytes)
    sightings: dict[str, list[Sighting]] = {video_id: [] for video_id in clips.sources}
    for row in np.flatnonzero(distances[:, 0] < options.limit).tolist():
        seen = Sighting.of(
            products,
            photo=int(hits[row, 0]),
            frame_index=int(clips.frame_indices[row]),
            box=tuple(clips.boxes[row].tolist()),
            score=float(clips.scores[row]),
            distance=float(distances[row, 0]),
            limit=options.limit,
        )
        sightings[clips.sources[row]].append(seen)
    frames_of: dict[str, set[int]] = {}  # those with boxes
    for video_id, index in zip(clips.sources, clips.frame_indices.tolist(), strict=True):
        frames_of.setdefault(video_id, set()).add(index)
    step = min((int(np.diff(sorted(frames)).min()) for frames in frames_of.values() if len(frames) > 1), default=1)
    return [
        _to_match(video_id, product, products)
        for video_id, frames in frames_of.items()
        for product in _find_in_clip(
            sightings[video_id], sorted(frames.union(range(min(frames), max(frames), step))), options
        )
    ]


@dataclass
class _Found:
    """What is known of one product in one clip."""

    best: Sighting
    evidence: float = 0.0
    frames: set[int] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)

    def extend(self, seen: Sequence[Sighting], evidence: float) -> None:
        """Add the sightings of one window, whose evidence is large enough."""
        first, last = seen[0].frame_index, seen[-1].frame_index
        segment = Segment(first, last, evidence)
        if self.segments and first <= self.segments[-1].last_frame:
            other = self.segments.pop()
            segment = Segment(other.first_frame, last, max(evidence, other.evidence))
        self.segments.append(segment)
        self.evidence = max(self.evidence, evidence)
        self.frames.update(sighting.frame_index for sighting in seen)
        self.best = max(self.best, *seen, key=lambda sighting: (round(sighting.weight, 9), -sighting.frame_index))


def _find_in_clip(sightings: Sequence[Sighting], frames: Sequence[int], options: CatalogueOptions) -> list[_Found]:
    """Return the products found in one clip, of which `frames` were analysed, by evidence."""
    by_frame: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        by_frame.setdefault(sighting.frame_index, []).append(sighting)
    window = Window(min(options.window, len(frames)))
    found: dict[str, _Found] = {}
    for index in frames:
        window.add(by_frame.get(index, []))
        for item_id, evidence in window.evidence().items():
            if round(evidence, 9) < options.min_evidence:
                break
            seen = window.sightings(item_id)
            found.setdefault(item_id, _Found(seen[0])).extend(seen, evidence)
    return sorted(found.values(), key=lambda product: -round(product.evidence, 9))


def _to_match(video_id: str, found: _Found, products: Features) -> Match:
    best = found.best
    pair = Pair(products.names[best.photo], tuple(products.boxes[best.photo].tolist()), best.box)
    return Match(
        video_id=video_id,
        item_id=best.item_id,
        frame_index=best.frame_index,
        pairs=(pair,),
        distance=best.distance,
        num_votes=len(found.frames),
        title=products.titles[best.photo],
        url=products.urls[best.photo],
        evidence=found.evidence,
        segments=tuple(found.segments),
    )
