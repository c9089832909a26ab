"""Read the images to train on and to validate on, and check before a training starts that each can be decoded."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.frames import read_size
from training.datasets.images import AnnotatedImage, check_bad, usable_boxes
from training.datasets.sources import read_boxes

HELD_OUT_FRACTION = 0.05
"""Fraction of the items (in COCO, the images) to validate on if no validation data are given."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The images to train on, those to validate on, and what else the training needs to know about them."""

    training: list[AnnotatedImage]
    validation: list[AnnotatedImage]
    class_names: tuple[str, ...]  # empty for WAB, which has one class
    notes: list[dict[str, Any]]  # lines for the log: the unusable images, then counts


def read_splits(data: Sequence[Path], validation: Sequence[Path], cache: Path, *, max_bad_images: int) -> Splits:
    """Read the images to train on and those to validate on, which are held out from `data` if none are given.

    Raises ValueError, listing them, if more than `max_bad_images` images or annotation files are unusable.
    """
    bad: list[str] = []
    sources, class_names = read_boxes([*data, *validation], cache, bad)
    training, held_out = list(chain(*sources[: len(data)])), list(chain(*sources[len(data) :]))
    check_bad(bad, max_bad_images)  # before decoding all others, and before complaining that few are left
    if not validation:
        training, held_out = split_by_item(training)
    training, training_counts = keep_readable(training, bad)
    held_out, validation_counts = keep_readable(held_out, bad)
    check_bad(bad, max_bad_images)
    if not training or not held_out:
        raise ValueError(f"{len(training)} images to train on and {len(held_out)} to validate on")
    notes: list[dict[str, Any]] = [{"bad_image": reason} for reason in bad]
    notes.append({"num_bad_images": len(bad), "training": training_counts, "validation": validation_counts})
    return Splits(training=training, validation=held_out, class_names=class_names, notes=notes)


def split_by_item(images: Sequence[AnnotatedImage]) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Hold out the last 5 % of the items, at least one; return the images to train on and the held-out ones."""
    items = sorted({image.item_id for image in images})
    if len(items) < 2:
        raise ValueError(f"at least two items are needed, as one is held out for validation; found {len(items)}")
    held_out = set(items[-max(1, round(HELD_OUT_FRACTION * len(items))) :])
    return (
        [image for image in images if image.item_id not in held_out],
        [image for image in images if image.item_id in held_out],
    )


@dataclass
class Counts:
    """Counts over the readable images of a data set. `num_boxes` does not include the dropped boxes."""

    num_images: int = 0
    num_boxes: int = 0
    num_clipped_boxes: int = 0  # extend beyond the image, but enough remains after clipping
    num_dropped_boxes: int = 0  # too little remains after clipping to the image
    num_images_without_boxes: int = 0

    def add(self, image: AnnotatedImage, height: int, width: int) -> None:
        boxes, usable = usable_boxes(image.annotations, height, width)
        stored = np.array([annotation.box for annotation in image.annotations]).reshape(-1, 4)[usable]
        self.num_images += 1
        self.num_boxes += len(boxes)
        self.num_clipped_boxes += int((boxes != stored).any(axis=1).sum())
        self.num_dropped_boxes += int((~usable).sum())
        self.num_images_without_boxes += not len(boxes)


def keep_readable(images: Sequence[AnnotatedImage], bad: list[str]) -> tuple[list[AnnotatedImage], dict[str, int]]:
    """Decode every image; return the readable ones and their `Counts`, and append the reasons for the rest to `bad`.

    Frames must have been extracted (`training.datasets.frames.cache_frames`).
    """
    counts = Counts()
    readable = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for image, size in zip(images, pool.map(_size_or_reason, images), strict=True):
            if isinstance(size, str):
                bad.append(size)
            else:
                readable.append(image)
                counts.add(image, *size)
    return readable, asdict(counts)


def _size_or_reason(image: AnnotatedImage) -> tuple[int, int] | str:
    try:
        return read_size(image)
    except ValueError as error:
        return str(error)
