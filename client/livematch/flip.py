"""Flip averaging: a mirrored picture shows the same garments, so its embeddings make each box's steadier."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from livematch.types import Pixels, Recognition

MIN_IOU = 0.5
"""Of a box and the box in the mirrored picture that is taken for the same garment."""


def with_flip(recognize: Callable[[Pixels], Recognition]) -> Callable[[Pixels], Recognition]:
    """A `recognize` that asks twice: for the picture, and for its mirror image.

    Boxes and scores are the picture's own. The embedding of a box is averaged, and scaled to unit length again, with
    that of the mirrored box that overlaps it most; it stays as it is where none does by MIN_IOU.
    """

    def recognize_both(pixels: Pixels) -> Recognition:
        upright = recognize(pixels)
        mirrored = recognize(np.ascontiguousarray(pixels[:, ::-1]))
        if not len(upright) or not len(mirrored):
            return upright
        width = pixels.shape[1]
        boxes = mirrored.boxes.copy()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        overlaps = _ious(upright.boxes, boxes)
        partners = overlaps.argmax(axis=1)
        has_partner = overlaps[np.arange(len(upright)), partners] >= MIN_IOU
        sums = upright.embeddings + has_partner[:, np.newaxis] * mirrored.embeddings[partners]
        embeddings = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        return Recognition(upright.boxes, upright.scores, embeddings)

    return recognize_both


def _ious(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Intersection over union of boxes [n,4] and [m,4], as [n,m]; 0 for two empty boxes."""
    low = np.maximum(first[:, np.newaxis, :2], second[:, :2])
    high = np.minimum(first[:, np.newaxis, 2:], second[:, 2:])
    intersections = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (first, second)]
    unions = areas[0][:, np.newaxis] + areas[1] - intersections
    ious: npt.NDArray[np.float32] = intersections / np.maximum(unions, np.finfo(np.float32).tiny)
    return ious
