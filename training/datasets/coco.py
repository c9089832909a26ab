"""Read annotations in COCO's JSON format (https://cocodataset.org/#format-data) to train a detector.

    {"images": [{"id", "file_name"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "iscrowd"}]}

The detector's classes are the categories in ascending order of id, also those without annotations. Crowd annotations
are skipped, and segmentations are ignored.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from livematch.errors import FileFormatError
from livematch.media.annotations import read_json
from training.datasets.frames import read_size
from training.datasets.images import AnnotatedImage, BoxAnnotation

_KINDS = {"id": int, "image_id": int | str, "category_id": int, "file_name": str, "name": str, "bbox": list}
_KIND_NAMES = {int: "a whole number", int | str: "a number or a string", str: "a string", list: "a list"}

Record = dict[str, Any]


def read_coco(path: Path, folder: Path, bad: list[str]) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Return the images with their boxes, in the order of the file, and the names of the classes.

    Args:
        path: the JSON file.
        folder: the folder that `file_name` is relative to.
        bad: receives a line for each image that is missing, unreadable or not of the stated size, which is then left
            out, and for each box outside its image.

    Raises:
        FileFormatError: the file cannot be read or is not COCO; the message names the entry.
    """
    content = read_json(path)
    categories = _records(path, content, "categories", ("id", "name"))
    records = _records(path, content, "images", ("file_name",), id_kind=int | str)
    annotations = _records(path, content, "annotations", ("image_id", "category_id", "bbox"), id_kind=None)
    for index, record in enumerate(categories):
        if not record["name"].strip():
            raise FileFormatError(f"{path}: categories[{index}].name is empty")
    class_names = {record["id"]: record["name"] for record in sorted(categories, key=lambda record: record["id"])}
    class_ids = {category_id: index for index, category_id in enumerate(class_names)}
    boxes: dict[int | str, list[tuple[str, BoxAnnotation]]] = defaultdict(list)
    image_ids = {record["id"] for record in records}
    for index, record in enumerate(annotations):
        entry = f"{path}: annotations[{index}]"
        for field, known in (("image_id", image_ids), ("category_id", class_ids)):
            if record[field] not in known:
                raise FileFormatError(f"{entry}.{field} is {record[field]!r}, which no entry has as id")
        if not record.get("iscrowd"):
            annotation = BoxAnnotation(_box(entry, record["bbox"]), class_ids[record["category_id"]])
            boxes[record["image_id"]].append((entry, annotation))
    images = []
    first: dict[Path, int] = {}
    for index, record in enumerate(records):
        name = Path(record["file_name"])  # "./a.jpg" is "a.jpg"
        if first.setdefault(name, index) != index:  # each entry has only some of the image's boxes
            fault = f"images[{index}].file_name is {record['file_name']!r}, as is that of images[{first[name]}]"
            raise FileFormatError(f"{path}: {fault}")
        image = _image(f"{path}: images[{index}]", record, folder, boxes[record["id"]], bad)
        images += [image] if image else []
    return images, tuple(class_names.values())


def _image(
    entry: str, record: Record, folder: Path, boxes: Sequence[tuple[str, BoxAnnotation]], bad: list[str]
) -> AnnotatedImage | None:
    path = folder / record["file_name"]
    name = record["file_name"]
    if not path.is_file():
        bad.append(f"{entry}.file_name is {name!r}, but there is no {path}")
        return None
    image = AnnotatedImage(name, path.stem, path, None, (), entry)
    try:
        height, width = read_size(image, decode=False)
    except ValueError as error:
        bad.append(str(error))
        return None
    stated = record.get("width", width), record.get("height", height)
    if stated != (width, height):
        bad.append(f"{entry} is {stated[0]} × {stated[1]} pixels, but {path} has {width} × {height} when upright")
        return None
    inside = []
    for origin, annotation in boxes:
        x0, y0, x1, y1 = annotation.box
        if x0 < width and y0 < height and x1 > 0 and y1 > 0:
            inside.append(annotation)
        else:
            bad.append(f"{origin}.bbox lies outside the {width} × {height} pixels of {path}")
    return AnnotatedImage(name, path.stem, path, None, tuple(inside), entry)


def _box(entry: str, bbox: list[Any]) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, bbox)
    except (OverflowError, TypeError, ValueError):
        x = y = width = height = math.nan
    if not math.isfinite(x + y + width + height):
        raise FileFormatError(f"{entry}.bbox is {bbox!r}, not the four numbers x, y, width, height")
    if width < 0 or height < 0:
        raise FileFormatError(f"{entry}.bbox is {bbox!r}, with a negative width or height")
    return x, y, x + width, y + height


def _records(path: Path, content: Any, name: str, fields: Sequence[str], *, id_kind: Any = int) -> list[Record]:
    """Return the entries of a list, after checking its fields; an id may be missing if `id_kind` is None."""
    records = content.get(name) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise FileFormatError(f"{path}: not COCO: it has no list {name!r}")
    if not records and name != "annotations":
        raise FileFormatError(f"{path}: {name} is empty")
    kinds = {field: _KINDS[field] for field in fields} | ({} if id_kind is None else {"id": id_kind})
    first: dict[Any, int] = {}
    for index, record in enumerate(records):
        entry = f"{path}: {name}[{index}]"
        if not isinstance(record, dict):
            raise FileFormatError(f"{entry} is {record!r}, not an object")
        for field, kind in kinds.items():
            if field not in record:
                raise FileFormatError(f"{entry} has no {field!r}")
            if not isinstance(record[field], kind):
                raise FileFormatError(f"{entry}.{field} is {record[field]!r}, not {_KIND_NAMES[kind]}")
        if "id" in record and first.setdefault(str(record["id"]), index) != index:
            raise FileFormatError(f"{entry}.id is {record['id']!r}, as is that of {name}[{first[str(record['id'])]}]")
    return records
