"""Read the annotations of the Watch and Buy (WAB) data set.

The data set comes in parts. A part is a folder:

    image/<item_id>/<k>.jpg               product photos
    image_annotation/<item_id>/<k>.json   {"annotations": [{label, viewpoint, display, instance_id, box}]}
    video/<id>.mp4                        live clips; a clip and the item it shows have the same id
    video_annotation/<id>.json            {"frames": [{"frame_index", "annotations": [...]}]}

Boxes are `x0, y0, x1, y1` in pixels of the whole image, counted from 0; x1 and y1 are exclusive. A box may extend
beyond the image.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from livematch.media.annotations import Annotation, read_image_annotations, read_video_annotations

LABELS: tuple[str, ...] = (
    "短袖上衣",
    "长袖上衣",
    "短袖衬衫",
    "长袖衬衫",
    "背心上衣",
    "吊带上衣",
    "无袖上衣",
    "短外套",
    "短马甲",
    "长袖连衣裙",
    "短袖连衣裙",
    "无袖连衣裙",
    "长马甲",
    "长外套",
    "连体衣",
    "古风",
    "短裙",
    "中等半身裙",
    "长半身裙",
    "短裤",
    "中裤",
    "长裤",
    "背带裤",
)
"""The 23 garment kinds; the id of a kind is its index here."""

NO_INSTANCE = 0
"""`instance_id` of a garment that occurs only in the item's photos or only in its clip."""

MAX_LISTED = 20
"""Number of bad images that one error message lists."""

MIN_BOX_SIDE_PX = 2
"""Minimum width and height of a box after clipping to its image; smaller boxes are not trained on."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One product photo, or one annotated frame of a clip.

    `path` is the photo or the clip; `training.wab.frames.cache_frames` replaces the clip by the extracted frame.
    """

    item_id: str
    name: str  # file name of the photo without extension, or f<frame_index>
    path: Path
    frame_index: int | None  # None for a photo
    annotations: tuple[Annotation, ...]

    @property
    def is_frame(self) -> bool:
        return self.frame_index is not None


def usable_boxes(
    annotations: Sequence[Annotation], height: int, width: int
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


def read_part(directory: Path, bad: list[str] | None = None) -> list[AnnotatedImage]:
    """Return the photos, then the annotated frames of one part, each sorted by item and number.

    Args:
        directory: the part.
        bad: if given, an unusable annotation file is skipped, and the reason appended to it instead of raised.

    Raises:
        FileNotFoundError: there is no annotation folder, or the photo or clip of an annotation is missing.
        ValueError: an annotation file is malformed; the message names it.
    """
    images = []
    for folder, pattern, read in (("image_annotation", "*/*.json", _photo), ("video_annotation", "*.json", _frames)):
        for path in _annotation_files(directory / folder, pattern):
            try:
                images += read(directory, path)
            except (FileNotFoundError, ValueError) as error:
                if bad is None:
                    raise
                bad.append(str(error))
    return images


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


def _photo(directory: Path, path: Path) -> list[AnnotatedImage]:
    photo = _existing(directory / "image" / path.parent.name / f"{path.stem}.jpg", path)
    return [AnnotatedImage(path.parent.name, path.stem, photo, None, read_image_annotations(path))]


def _frames(directory: Path, path: Path) -> list[AnnotatedImage]:
    video = _existing(directory / "video" / f"{path.stem}.mp4", path)
    return [
        AnnotatedImage(path.stem, f"f{index}", video, index, annotations)
        for index, annotations in read_video_annotations(path)
    ]


def _annotation_files(directory: Path, pattern: str) -> list[Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; {directory.parent} is not a part of the data set")
    return sorted(directory.glob(pattern), key=lambda path: (path.parent.name, len(path.stem), path.stem))


def _existing(path: Path, annotation: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {annotation} describes it")
    return path
