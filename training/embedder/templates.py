"""The crop sizes: a crop is resized to the template of the nearest aspect ratio, so that a batch has one shape."""

import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

ASPECT_RATIOS: tuple[float, ...] = (
    0.25,
    0.335,
    0.415,
    0.5,
    0.5721925,
    0.66857143,
    0.8,
    1.0,
    1.25,
    1.4957264,
    1.74766355,
    2.0,
)
"""Width over height, ascending."""

_SM = (
    (100, 400),
    (134, 400),
    (166, 400),
    (200, 400),
    (214, 374),
    (234, 350),
    (256, 320),
    (290, 290),
    (320, 256),
    (350, 234),
    (374, 214),
    (400, 200),
)


def _scaled(factor: float) -> tuple[tuple[int, int], ...]:
    return tuple((round(factor * width), round(factor * height)) for width, height in _SM)


TEMPLATES: dict[str, tuple[tuple[int, int], ...]] = {
    "XS-S": _scaled(0.32),
    "XS": _scaled(0.4),
    "XS-M": _scaled(0.48),
    "S": (
        (80, 320),
        (106, 320),
        (134, 320),
        (160, 320),
        (170, 298),
        (186, 280),
        (214, 266),
        (234, 234),
        (266, 214),
        (280, 186),
        (298, 170),
        (320, 160),
    ),
    "SM": _SM,
    "M": (
        (120, 480),
        (160, 480),
        (200, 480),
        (240, 480),
        (256, 448),
        (280, 420),
        (320, 400),
        (352, 352),
        (400, 320),
        (420, 280),
        (448, 256),
        (480, 240),
    ),
}
"""Sets of templates: one (width, height) in pixels per aspect ratio.

The production networks are trained with S, SM and M and used with SM. The demo uses XS; XS-S and XS-M are smaller and
larger by about the same factors."""


def crop_sizes(name: str) -> dict[float, tuple[int, int]]:
    """Return the (width, height) in pixels of a crop by aspect ratio (width / height).

    `name` is a key of TEMPLATES, or one size for all crops, width x height, such as "224x224"; ValueError otherwise.
    """
    if name in TEMPLATES:
        return dict(zip(ASPECT_RATIOS, TEMPLATES[name], strict=True))
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"crops is {name!r}, not one of {', '.join(TEMPLATES)} or a size such as '224x224'")
    width, height = int(match[1]), int(match[2])
    return {width / height: (width, height)}


def crop_size(name: str, aspect: int) -> tuple[int, int]:
    """Return the (width, height) of a crop in `crop_sizes(name)`, given the index of its aspect ratio."""
    sizes = list(crop_sizes(name).values())
    return sizes[aspect] if len(sizes) > 1 else sizes[0]


def cached_side_px(names: Iterable[str]) -> int:
    """Return how long the longer side of a cached crop must be at most, to be resized to these sets of sizes.

    A cached crop has a margin, so its sides are up to 1.3 times as long as the crop's. Few different lengths let
    trainings and evaluations share a cache.
    """
    needed = math.ceil(1.25 * max(max(size) for name in names for size in crop_sizes(name).values()))
    return next((side for side in (240, 600) if side >= needed), needed)


_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(ASPECT_RATIOS))


def nearest_template(width: float, height: float) -> int:
    """Return the index of the aspect ratio nearest to width / height, the smaller one on a tie.

    Raises:
        ValueError: a side is not positive.
    """
    if not (width > 0 and height > 0):
        raise ValueError(f"a crop of {width} × {height} pixels has no aspect ratio")
    return bisect_left(_MIDDLES, width / height)
