"""What every reader of a data set returns: images with annotated boxes."""

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NO_INSTANCE = 0
"""`instance_id` of an object that occurs only in the item's photos or only in its clip."""

WHOLE_IMAGE = (0, 0, 1 << 24, 1 << 24)
"""A box that covers any image, as boxes are clipped to their image; float32 represents it exactly."""

MAX_LISTED = 20
"""Number of bad images that one error message lists."""

MIN_BOX_SIDE_PX = 2
"""Minimum width and height of a box after clipping to its image; smaller boxes are not trained on."""


@dataclass(frozen=True)
class BoxAnnotation:
    """One object in one image.

    box: x0 y0 x1 y1 in pixels of the whole image, counted from 0, x1 and y1 exclusive; it may extend beyond the image.
    class_id: index of its class, for the detector.
    instance_id: with the image's `item_id` the identity of the object, for the embedders.
    """

    box: tuple[float, float, float, float]
    class_id: int = 0
    instance_id: int = NO_INSTANCE


@dataclass(frozen=True)
class AnnotatedImage:
    """One photo, or one annotated frame of a clip.

    `path` is the photo or the clip; `training.datasets.frames.cache_frames` replaces the clip by the extracted frame.
    """

    item_id: str
    name: str  # file name of the photo without extension, or f<frame_index>
    path: Path
    frame_index: int | None  # None for a photo
    annotations: tuple[BoxAnnotation, ...]
    described_in: str = field(default="", compare=False)  # the file, and the line or key, to name in an error

    @property
    def is_frame(self) -> bool:
        return self.frame_index is not None

    @property
    def cache_folder(self) -> str:
        """A folder name for the item in a cache: other items may have it, too, as an id may be any text."""
        return re.sub(r"[^\w-]", "_", self.item_id)[:60]


def usable_boxes(
    annotations: Sequence[BoxAnnotation], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip the boxes to an image of (height, width) and drop those with a side below MIN_BOX_SIDE_PX.

    Returns:
        boxes: float32 [n, 4] x0 y0 x1 y1, the boxes that were kept.
        usable: bool, one per annotation: whether its box was kept.
    """
    boxes = np.array([annotation.box for annotation in annotations], np.float32).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    usable = (widths >= MIN_BOX_SIDE_PX) & (heights >= MIN_BOX_SIDE_PX)
    return boxes[usable], usable


def digest(images: Sequence[AnnotatedImage]) -> str:
    """Return a hash of the images' ids, order and annotations; it does not depend on where the files are."""
    facts = [(image.item_id, image.name, image.frame_index, image.annotations) for image in images]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def add_max_bad_images_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad-images",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N unusable images, boxes and annotation files (default: 0)",
    )


def check_bad(bad: Sequence[str], limit: int) -> None:
    """Raise ValueError, listing the first reasons, if more than `limit` images, boxes or files are unusable."""
    if len(bad) > limit:
        listed = "\n".join(bad[:MAX_LISTED])
        more = f"\nand {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise ValueError(
            f"{len(bad)} images, boxes or annotation files are unusable, {limit} allowed (--max-bad-images):\n"
            f"{listed}{more}"
        )
