"""Read images of known identity to train an embedder: a folder per identity, or a CSV.

DIR/<identity>/<any name>.jpg         each image, of any format, shows one object and nothing else

path,identity,x0,y0,x1,y1,frame,split       CSV with a header; all columns but the first two may be missing
shop/17.jpg,dress-17,,,,,,train             paths are relative to the CSV's folder; no box: the whole image
clips/a.mp4,dress-17,80,20,310,460,120,     a frame of a clip, counted from 0
"""

import math
from collections.abc import Sequence
from pathlib import Path

from livematch.errors import FileFormatError, InputError
from livematch.media.tables import read_rows
from training.datasets.images import WHOLE_IMAGE, AnnotatedImage, BoxAnnotation

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

SPLITS = ("train", "test")
"""Values of the column `split`: rows to train on, and rows to evaluate on."""

_EDGES = ("x0", "y0", "x1", "y1")
_HEADER = "path,identity[,x0,y0,x1,y1][,frame][,split]"

_ONLY_INSTANCE = 1  # `instance_id`, as an item is one identity


def read_folders(directory: Path) -> list[AnnotatedImage]:
    """Return the images in the folders of `directory`, each the whole image; an identity is called like its folder.

    Hidden files and files of other types than IMAGE_SUFFIXES are ignored.

    Raises:
        FileFormatError: there is no folder, a folder holds no image, or an image lies in no folder or too deep.
    """
    entries = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    images = []
    for entry in entries:
        if entry.is_dir():
            files = [file for file in sorted(entry.iterdir()) if _is_image(file)]
            if nested := next(filter(_is_image, entry.glob("[!.]*/**/*")), None):
                raise FileFormatError(f"{nested} lies too deep: expected {directory}/<identity>/<image>")
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
        InputError: the file cannot be read, or a row is malformed; the message gives the line.
    """
    images: list[AnnotatedImage] = []
    first: dict[object, str] = {}
    has_rows = False
    for number, row in read_rows(path, _HEADER, allows_others=False):
        line, has_rows = f"{path}:{number}", True
        if missing := [name for name in _EDGES if name not in row and not row.keys().isdisjoint(_EDGES)]:
            raise InputError(f"{path}:1: no column {', '.join(missing)}: expected a header {_HEADER}")
        row_split = row.get("split")
        if row_split is not None and row_split not in SPLITS:
            raise InputError(f"{line}: split is {row_split!r}, not {' or '.join(map(repr, SPLITS))}")
        image = _row(path.parent, line, row)
        seen = first.setdefault((image.path, image.frame_index, image.annotations[0].box), line)
        if seen != line:
            raise InputError(f"{line}: the same box as in line {seen.rpartition(':')[2]}")
        if split is not None and row_split not in (None, split):
            continue
        if image.path.is_file():
            images.append(image)
        else:
            bad.append(f"{line}: path is {row['path']!r}, but there is no {image.path}")
    if not images and not bad:
        raise InputError(f"{path} has no rows" + (f" of split {split!r}" if split is not None and has_rows else ""))
    return images


def _row(folder: Path, line: str, row: dict[str, str]) -> AnnotatedImage:
    frame = row.get("frame") or None
    if frame is not None and not (frame.isascii() and frame.isdecimal()):
        raise InputError(f"{line}: frame is {frame!r}, not a whole number from 0 on")
    box = _box(line, [row.get(name, "") for name in _EDGES])
    return _image(row["identity"], folder / row["path"], None if frame is None else int(frame), box, line)


def _box(line: str, edges: Sequence[str]) -> tuple[float, float, float, float]:
    if not any(edges):
        return WHOLE_IMAGE
    try:
        x0, y0, x1, y1 = map(float, edges)
    except ValueError:
        raise InputError(f"{line}: x0, y0, x1, y1 are {', '.join(map(repr, edges))}, not four numbers") from None
    if not (math.isfinite(x0 + y0 + x1 + y1) and x0 < x1 and y0 < y1):
        raise InputError(f"{line}: box {x0, y0, x1, y1} has no width or no height")
    return x0, y0, x1, y1


def _image(
    identity: str, path: Path, frame: int | None, box: tuple[float, float, float, float], described_in: str
) -> AnnotatedImage:
    annotation = BoxAnnotation(box, instance_id=_ONLY_INSTANCE)
    name = path.stem if frame is None else f"f{frame}"
    return AnnotatedImage(identity, name, path, frame, (annotation,), described_in)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
