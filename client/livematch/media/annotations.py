"""Read the annotation files of the Watch and Buy data set: one JSON file for each product photo and for each clip."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livematch.errors import FileFormatError
from livematch.types import IntBox


@dataclass(frozen=True)
class Annotation:
    """One garment in one image or frame, as stored in the annotation file.

    label: the kind of garment; viewpoint: 0 front, 1 back, 2 left, 3 right; display: 0 product only, 1 worn. Each is
        None if the file does not say.
    instance_id: the same number in photos and clip means the same garment; 0 means that it has no counterpart.
    box: x0 y0 x1 y1 in pixels of the whole image, x1 and y1 exclusive; it may extend beyond the image.
    """

    label: str | None
    viewpoint: int | None
    display: int | None
    instance_id: int
    box: IntBox


def read_image_annotations(path: Path) -> tuple[Annotation, ...]:
    """Read image_annotation/<item_id>/<k>.json: {"annotations": [{label, viewpoint, display, instance_id, box}]}.

    Raises:
        FileFormatError: the file cannot be read or has another format; the message names the file and the field.
    """
    return _annotations(path, read_json(path))


def read_video_annotations(path: Path) -> list[tuple[int, tuple[Annotation, ...]]]:
    """Read video_annotation/<video_id>.json: {"frames": [{"frame_index", "annotations": [...]}]}.

    The result is (frame index, annotations) of each annotated frame; errors are those of `read_image_annotations`.
    """
    frames = []
    for frame in _list(path, read_json(path), "frames"):
        index = _field(path, frame, "frame_index")
        if not isinstance(index, int) or index < 0:
            raise FileFormatError(f"{path}: frame_index is {index!r}, not a whole number from 0 on")
        frames.append((index, _annotations(path, frame)))
    return frames


def _annotations(path: Path, record: Any) -> tuple[Annotation, ...]:
    annotations = []
    for entry in _list(path, record, "annotations"):
        box = _list(path, entry, "box")
        if len(box) != 4 or not all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box):
            raise FileFormatError(f"{path}: box is {box!r}, not four numbers")
        instance_id = _field(path, entry, "instance_id")
        if not isinstance(instance_id, int):
            raise FileFormatError(f"{path}: instance_id is {instance_id!r}, not a whole number")
        x0, y0, x1, y1 = map(int, box)
        label, viewpoint, display = (entry.get(name) for name in ("label", "viewpoint", "display"))
        annotations.append(Annotation(label, viewpoint, display, instance_id, (x0, y0, x1, y1)))
    return tuple(annotations)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; raise FileFormatError if that is not possible."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from error


def _list(path: Path, record: Any, name: str) -> list[Any]:
    values = _field(path, record, name)
    if not isinstance(values, list):
        raise FileFormatError(f"{path}: {name} is {values!r}, not a list")
    return values


def _field(path: Path, record: Any, name: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise FileFormatError(f"{path}: no field {name!r}")
    return record[name]
