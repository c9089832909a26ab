"""Read images of known identity to train an embedder: a folder per identity, or a CSV.

DIR/<identity>/<any name>.jpg         each image, of any format, shows one object and nothing else

path,identity,x0,y0,x1,y1,frame,split       CSV with a header; all columns but the first two may be missing
shop/17.jpg,dress-17,,,,,,train             paths are relative to the CSV's folder; no box: the whole image
clips/a.mp4,dress-17,80,20,310,460,120,     a frame of a clip, counted from 0
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from livematch.errors import FileFormatError
from training.datasets.images import WHOLE_IMAGE, AnnotatedImage, BoxAnnotation

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

SPLITS = ("train", "test")
"""Values of the column `split`: rows to train on, and rows to evaluate on."""

_EDGES = ("x0", "y0", "x1", "y1")
_REQUIRED = ("path", "identity")
_COLUMNS = (*_REQUIRED, *_EDGES, "frame", "split")

_ONLY_INSTANCE = 1  # `instance_id`, as an item is one identity


def read_folders(directory: Path) -> list[AnnotatedImage]:
    """Return the images in the folders of `directory`, each the whole image; an identity is called like its folder.

    Hidden files and files of other types than IMAGE_SUFFIXES are ignored.

    Raises:
        FileFormatError: there is no folder, a folder holds no image, or an image lies in no folder.
    """
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    images = []
    for entry in entries:
        if entry.is_dir():
            files = [file for file in sorted(entry.iterdir()) if _is_image(file)]
            if not files:
                raise FileFormatError(f"{entry} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            images += [_image(entry.name, file, None, WHOLE_IMAGE, str(file)) for file in files]
        elif _is_image(entry):
            raise FileFormatError(f"{entry} belongs to no identity: it must lie in a folder per identity")
    if not images:
        raise FileFormatError(f"{directory} holds no folder per identity, and no annotation folder")
    return images


def read_csv(path: Path, bad: list[str], *, split: str | None = None) -> list[AnnotatedImage]:
    """Return an image for each row.

    Args:
        path: the CSV file, in UTF-8.
        bad: receives a line for each row whose image or clip is missing; that row is left out.
        split: one of SPLITS: leave out the other rows. A file without the column `split` belongs to each of them.

    Raises:
        FileFormatError: the file cannot be read, or a row is malformed; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin the file with a byte order mark
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or [])
            rows = [(f"{path}: line {reader.line_num}", _stripped(row)) for row in reader]
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except csv.Error as error:
        raise FileFormatError(f"{path}: line {reader.reader.line_num}: {error}") from error
    images: list[AnnotatedImage] = []
    first: dict[object, str] = {}
    for line, row in rows:
        if not any(row.values()):
            continue  # spreadsheets write empty rows
        if None in row or None in row.values():
            raise FileFormatError(f"{line} does not have a value for each column of the header")
        row_split = row.get("split")
        if row_split is not None and row_split not in SPLITS:
            raise FileFormatError(f"{line}: split is {row_split!r}, not {' or '.join(map(repr, SPLITS))}")
        image = _row(path.parent, line, row)
        seen = first.setdefault((image.path, image.frame_index, image.annotations[0].box), line)
        if seen != line:
            raise FileFormatError(f"{line} names the same box as line {seen.rpartition(' ')[2]}")
        if split is not None and row_split not in (None, split):
            continue
        if image.path.is_file():
            images.append(image)
        else:
            bad.append(f"{line}: path is {row['path']!r}, but there is no {image.path}")
    if not images and not bad:
        raise FileFormatError(
            f"{path} has no rows" if split is None or not rows else f"{path} has no rows of split {split!r}"
        )
    return images


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if set(names) & set(_EDGES):
        missing += [name for name in _EDGES if name not in names]
    unknown = [name for name in names if name not in _COLUMNS]  # a mistyped "split" would train on the test images
    repeated = sorted({name for name in names if names.count(name) > 1})
    for fault, columns in (("has no", missing), ("has the unknown", unknown), ("repeats the", repeated)):
        if columns:
            raise FileFormatError(
                f"{path} {fault} column {', '.join(map(repr, columns))}; the columns are {', '.join(_COLUMNS)}"
            )


def _stripped(row: dict[str, str]) -> dict[str, str]:
    """Return the row without spaces around its values; surplus values are a list, and missing ones None."""
    return {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}


def _row(folder: Path, line: str, row: dict[str, str]) -> AnnotatedImage:
    for name in _REQUIRED:
        if not row[name]:
            raise FileFormatError(f"{line}: {name} is empty")
    frame = row.get("frame") or None
    if frame is not None and not (frame.isascii() and frame.isdecimal()):
        raise FileFormatError(f"{line}: frame is {frame!r}, not a whole number from 0 on")
    box = _box(line, [row.get(name, "") for name in _EDGES])
    return _image(row["identity"], folder / row["path"], None if frame is None else int(frame), box, line)


def _box(line: str, edges: Sequence[str]) -> tuple[float, float, float, float]:
    if not any(edges):
        return WHOLE_IMAGE
    try:
        x0, y0, x1, y1 = map(float, edges)
    except ValueError:
        raise FileFormatError(f"{line}: x0, y0, x1, y1 are {', '.join(map(repr, edges))}, not four numbers") from None
    if not (math.isfinite(x0 + y0 + x1 + y1) and x0 < x1 and y0 < y1):
        raise FileFormatError(f"{line}: box {x0, y0, x1, y1} has no width or no height")
    return x0, y0, x1, y1


def _image(
    identity: str, path: Path, frame: int | None, box: tuple[float, float, float, float], described_in: str
) -> AnnotatedImage:
    annotation = BoxAnnotation(box, instance_id=_ONLY_INSTANCE)
    name = path.stem if frame is None else f"f{frame}"
    return AnnotatedImage(identity, name, path, frame, (annotation,), described_in)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
