import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from training.datasets.coco import read_coco
from training.datasets.images import BoxAnnotation


def content() -> dict[str, Any]:
    """Two images of 60 × 40 pixels (width × height) and two categories, ids and boxes in no order."""
    return {
        "images": [
            {"id": 9, "file_name": "train/b.jpg", "width": 60, "height": 40},
            {"id": 4, "file_name": "train/a.jpg"},
        ],
        "categories": [{"id": 7, "name": "trousers"}, {"id": 3, "name": "dress", "supercategory": "garment"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1.5, 2, 20, 30.25], "iscrowd": 0, "segmentation": []},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [50, 30, 40, 40]},
            {"id": 3, "image_id": 4, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 4, "image_id": 4, "category_id": 3, "bbox": [0, 0, 5, 5]},
        ],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "images/train").mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"images/train/{name}.jpg"), np.zeros((40, 60, 3), np.uint8))
    return tmp_path / "annotations.json"


def read(path: Path, value: object) -> tuple[list[Any], tuple[str, ...], list[str]]:
    path.write_text(json.dumps(value))
    images, names = read_coco(path, path.parent / "images", bad := [])
    return images, names, bad


def test_boxes_have_corners_and_classes_are_in_order_of_category_id(path: Path) -> None:
    (b, a), names, bad = read(path, content())
    assert names == ("dress", "trousers") and bad == []
    assert (b.item_id, b.path, b.is_frame) == ("train/b.jpg", path.parent / "images/train/b.jpg", False)
    assert b.annotations == (BoxAnnotation((50, 30, 90, 70), class_id=0),)
    # the crowd is skipped
    assert a.annotations == (BoxAnnotation((1.5, 2, 21.5, 32.25), class_id=1), BoxAnnotation((0, 0, 5, 5), class_id=0))


def test_a_category_without_annotations_is_a_class(path: Path) -> None:
    value = content()
    value["annotations"] = []
    images, names, _ = read(path, value)
    assert names == ("dress", "trousers") and [image.annotations for image in images] == [(), ()]


def change(section: str, index: int, **fields: object) -> dict[str, Any]:
    value = content()
    value[section][index] |= fields
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not COCO: it has no list 'categories'"),
        ({"frames": []}, "not COCO: it has no list 'categories'"),
        (content() | {"images": {}}, "not COCO: it has no list 'images'"),
        (content() | {"categories": []}, "categories is empty"),
        (content() | {"images": []}, "images is empty"),
        (content() | {"annotations": [3]}, r"annotations\[0\] is 3, not an object"),
        (
            content() | {"annotations": [{"image_id": 4, "bbox": [0, 0, 1, 1]}]},
            r"annotations\[0\] has no 'category_id'",
        ),
        (change("images", 1, id=9), r"images\[1\].id is 9, as is that of images\[0\]"),
        (change("categories", 1, id=7), r"categories\[1\].id is 7, as is that of categories\[0\]"),
        (change("annotations", 3, id=1), r"annotations\[3\].id is 1, as is that of annotations\[0\]"),
        (change("categories", 1, id="3"), r"categories\[1\].id is '3', not a whole number"),
        (change("images", 1, file_name="./train/b.jpg"), r"images\[1\].file_name is './train/b.jpg', as is that of im"),
        (change("images", 1, file_name="train/b.jpg"), r"images\[1\].file_name is 'train/b.jpg', as is that of images"),
        (change("categories", 0, name=" "), r"categories\[0\].name is empty"),
        (change("images", 0, file_name=None), r"images\[0\].file_name is None, not a string"),
        (change("annotations", 1, image_id=5), r"annotations\[1\].image_id is 5, which no entry has as id"),
        (change("annotations", 1, category_id=5), r"annotations\[1\].category_id is 5, which no entry"),
        (change("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\].bbox is \[1, 2, 3\], not the four numbers"),
        (change("annotations", 1, bbox=[1, 2, float("nan"), 3]), r"annotations\[1\].bbox is \[1, 2, nan, 3\], not the"),
        (change("annotations", 1, bbox=[1, 2, 10**400, 3]), r"annotations\[1\].bbox is .*, not the four numbers"),
        (change("annotations", 1, bbox=[9, 9, -3, 3]), r"annotations\[1\].bbox is .*with a negative width or height"),
    ],
)
def test_a_malformed_file_and_its_entry_are_named(path: Path, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\.json: {message}"):
        read(path, value)


@pytest.mark.parametrize("data", [b"{", b"\xff"])
def test_a_file_that_is_not_json_is_named(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"annotations\.json: cannot be read"):
        read_coco(path, path.parent, [])


def test_unusable_images_and_boxes_are_left_out_and_described(path: Path) -> None:
    folder = path.parent / "images"
    value = change("annotations", 0, bbox=[60, 0, 5, 5])  # begins where the image ends
    value["images"] += [{"id": 1, "file_name": "train/c.jpg"}, {"id": 2, "file_name": "train/d.jpg"}]
    (folder / "train/d.jpg").write_text("no image")
    images, _, bad = read(path, value)
    assert [(image.name, len(image.annotations)) for image in images] == [("b", 1), ("a", 1)]
    assert bad == [
        f"{path}: annotations[0].bbox lies outside the 60 × 40 pixels of {folder}/train/a.jpg",
        f"{path}: images[2].file_name is 'train/c.jpg', but there is no {folder}/train/c.jpg",
        f"{folder}/train/d.jpg: not a readable image",
    ]


def test_a_size_that_ignores_the_orientation_is_noticed(path: Path) -> None:
    """Boxes would be drawn on the image lying on its side."""
    file = path.parent / "images/train/b.jpg"
    with Image.open(file) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(file, exif=exif)
    images, _, bad = read(path, content())
    assert [image.name for image in images] == ["a"]
    assert bad == [f"{path}: images[0] is 60 × 40 pixels, but {file} has 40 × 60 when upright"]
