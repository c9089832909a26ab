"""Reading parts of the Watch and Buy (WAB) data set.

A part is a folder with `image/<item_id>/<k>.jpg`, `image_annotation/<item_id>/<k>.json`, `video/<id>.mp4` and
`video_annotation/<id>.json`. Boxes are absolute pixels `x0, y0, x1, y1`, 0-based, the second corner exclusive; they
may overrun the image.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
"""The 23 garment kinds; a kind's id is its place here."""

NO_INSTANCE = 0
"""`instance_id` of a garment that has no counterpart on the other side (photo or clip)."""


MAX_LISTED = 20
"""Bad pictures in one error."""

MIN_BOX_SIDE_PX = 2
"""Of a box, after clipping to its picture; what is smaller is not trained on."""


@dataclass(frozen=True)
class Annotation:
    """One garment in one picture, as stored."""

    label: str
    viewpoint: int  # 0 front, 1 back, 2 left, 3 right
    display: int  # 0 product only, 1 worn
    instance_id: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """One product photo (`frame_index` None) or one annotated frame of a clip.

    `path` is the photo, the clip, or, after `training.wab.frames.cache_frames`, the extracted frame.
    """

    item_id: str
    name: str  # img_name without extension, or f<frame_index>
    path: Path
    frame_index: int | None
    annotations: tuple[Annotation, ...]


def usable_boxes(
    annotations: Sequence[Annotation], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clips the boxes to the image of (height, width).

    Returns:
        boxes: float32 [n, 4] x0 y0 x1 y1, those of which at least 2 pixels of each side are left.
        usable: bool, one per annotation: which these are.
    """
    boxes = np.array([annotation.box for annotation in annotations], np.float32).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    usable = (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIDE_PX).all(axis=1)
    return boxes[usable], usable


def digest(pictures: Sequence[Picture]) -> str:
    """Changes with the order of the pictures and with their annotations, but not with where they are stored."""
    facts = [(picture.item_id, picture.name, picture.frame_index, picture.annotations) for picture in pictures]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def read_part(directory: Path, bad: list[str] | None = None) -> list[Picture]:
    """Returns the photos, then the annotated frames of one part, each sorted by item and number.

    With a list `bad`, an annotation file that cannot be used is left out and described there instead of raising.

    Raises:
        FileNotFoundError: there is no annotation folder, or an annotation's photo or clip is missing.
        ValueError: an annotation file cannot be understood; the message names it.
    """
    pictures = []
    for folder, pattern, read in (("image_annotation", "*/*.json", _photo), ("video_annotation", "*.json", _frames)):
        for path in _annotation_files(directory / folder, pattern):
            try:
                pictures += read(directory, path)
            except (FileNotFoundError, ValueError) as error:
                if bad is None:
                    raise
                bad.append(str(error))
    return pictures


def add_bad_pictures_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad-pictures",
        type=int,
        default=0,
        metavar="N",
        help="pictures, boxes or annotation files that may be left out because they cannot be used",
    )


def check_bad(bad: Sequence[str], limit: int) -> None:
    """Raises ValueError, listing the first ones, if more than `limit` pictures, boxes or annotation files are bad."""
    if len(bad) > limit:
        listed = "\n".join(bad[:MAX_LISTED])
        more = f"\nand {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise ValueError(f"{len(bad)} cannot be used, {limit} may be left out (--max-bad-pictures):\n{listed}{more}")


def _photo(directory: Path, path: Path) -> list[Picture]:
    image = _existing(directory / "image" / path.parent.name / f"{path.stem}.jpg", path)
    return [Picture(path.parent.name, path.stem, image, None, _annotations(path, _load(path)))]


def _frames(directory: Path, path: Path) -> list[Picture]:
    video = _existing(directory / "video" / f"{path.stem}.mp4", path)
    pictures = []
    for frame in _list(path, _load(path), "frames"):
        index = _field(path, frame, "frame_index")
        if not isinstance(index, int):
            raise ValueError(f"{path}: frame_index is {index!r}, not a whole number")
        pictures.append(Picture(path.stem, f"f{index}", video, index, _annotations(path, frame)))
    return pictures


def _annotation_files(directory: Path, pattern: str) -> list[Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder; is {directory.parent} a part of the data set?")
    return sorted(directory.glob(pattern), key=lambda path: (path.parent.name, len(path.stem), path.stem))


def _existing(path: Path, annotation: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {annotation} describes it")
    return path


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _list(path: Path, record: Any, name: str) -> list[Any]:
    values = _field(path, record, name)
    if not isinstance(values, list):
        raise ValueError(f"{path}: {name} is {values!r}, not a list")
    return values


def _field(path: Path, record: Any, name: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"{path}: no field {name!r}")
    return record[name]


def _annotations(path: Path, record: Any) -> tuple[Annotation, ...]:
    annotations = []
    for entry in _list(path, record, "annotations"):
        box = _field(path, entry, "box")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int) for edge in box)):
            raise ValueError(f"{path}: box is {box!r}, not four whole numbers")
        values = {name: _field(path, entry, name) for name in ("label", "viewpoint", "display", "instance_id")}
        annotations.append(Annotation(**values, box=tuple(box)))
    return tuple(annotations)
