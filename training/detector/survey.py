"""The pictures to train and to evaluate on, looked at once before a training starts."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from training.wab.dataset import Picture, check_bad, usable_boxes
from training.wab.frames import read_parts, read_size

HELD_OUT = 0.05  # of the items, where there is no validation set


def read_data(
    data: Sequence[Path], validation: Sequence[Path], cache: Path, *, max_bad_pictures: int
) -> tuple[list[Picture], list[Picture], list[dict[str, Any]]]:
    """Returns the readable pictures to train on and to evaluate on, and lines for the log: bad pictures, then counts.

    Raises ValueError, listing them, if more than `max_bad_pictures` pictures or annotation files cannot be read.
    """
    bad: list[str] = []
    parts = read_parts([*data, *validation], cache, bad)
    to_train, held_out = list(chain(*parts[: len(data)])), list(chain(*parts[len(data) :]))
    if not validation:
        to_train, held_out = split_by_item(to_train)
    to_train, training_counts = survey(to_train, bad)
    held_out, validation_counts = survey(held_out, bad)
    check_bad(bad, max_bad_pictures)
    if not to_train or not held_out:
        raise ValueError(f"{len(to_train)} pictures to train on and {len(held_out)} to evaluate on")
    notes: list[dict[str, Any]] = [{"bad_picture": reason} for reason in bad]
    notes.append({"num_bad_pictures": len(bad), "training": training_counts, "validation": validation_counts})
    return to_train, held_out, notes


def split_by_item(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Returns the pictures to train on and those of the last 5 % of the items (one at least), held out."""
    items = sorted({picture.item_id for picture in pictures})
    if len(items) < 2:
        raise ValueError(f"{len(items)} items; two are the least, as one is held out")
    held_out = set(items[-max(1, round(HELD_OUT * len(items))) :])
    return (
        [picture for picture in pictures if picture.item_id not in held_out],
        [picture for picture in pictures if picture.item_id in held_out],
    )


@dataclass
class Survey:
    """Counts over the readable pictures of a data set; `num_boxes` leaves out the dropped ones."""

    num_pictures: int = 0
    num_boxes: int = 0
    num_clipped_boxes: int = 0  # that overran their picture and are still large enough
    num_dropped_boxes: int = 0  # of which too little lies inside their picture
    num_pictures_without_boxes: int = 0

    def add(self, picture: Picture, height: int, width: int) -> None:
        boxes, usable = usable_boxes(picture.annotations, height, width)
        stored = np.array([annotation.box for annotation in picture.annotations]).reshape(-1, 4)[usable]
        self.num_pictures += 1
        self.num_boxes += len(boxes)
        self.num_clipped_boxes += int((boxes != stored).any(axis=1).sum())
        self.num_dropped_boxes += int((~usable).sum())
        self.num_pictures_without_boxes += not len(boxes)


def survey(pictures: Sequence[Picture], bad: list[str]) -> tuple[list[Picture], dict[str, int]]:
    """Decodes every picture; returns those that could be read and the counts of `Survey`, describes the rest in `bad`.

    Frames must have been extracted (`training.wab.frames.cache_frames`).
    """
    counts = Survey()
    readable = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for picture, size in zip(pictures, pool.map(_size_or_reason, pictures), strict=True):
            if isinstance(size, str):
                bad.append(size)
            else:
                readable.append(picture)
                counts.add(picture, *size)
    return readable, asdict(counts)


def _size_or_reason(picture: Picture) -> tuple[int, int] | str:
    try:
        return read_size(picture)
    except ValueError as error:
        return str(error)
