import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.datasets.sources import is_part, read_boxes, read_identities


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))


def write_coco(path: Path, *names: str) -> None:
    """A file with the image 0.jpg and these classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    images = [{"id": 1, "file_name": "0.jpg"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A source of each kind, with one image or two; `part` and `empty` have none."""
    for name in ("image_annotation", "video_annotation"):
        (tmp_path / "part" / name).mkdir(parents=True)
    write_image(tmp_path / "folders/a/0.jpg")
    write_image(tmp_path / "folders/b/0.jpg")
    (tmp_path / "rows.csv").write_text("path,identity,split\nfolders/a/0.jpg,a,train\nfolders/b/0.jpg,b,test\n")
    write_image(tmp_path / "0.jpg")
    write_coco(tmp_path / "beside.json", "dress")
    write_image(tmp_path / "coco/train/0.jpg")
    write_coco(tmp_path / "coco/annotations/train.json", "dress")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_images_of_coco_lie_beside_the_file_or_in_a_folder_that_is_named(data: Path) -> None:
    sources = [data / "beside.json", Path(f"{data}/coco/annotations/train.json:{data}/coco/train/")]
    images, names = read_boxes(sources, data / "cache", bad := [])
    assert [[image.path for image in of_source] for of_source in images] == [
        [data / "0.jpg"],
        [data / "coco/train/0.jpg"],
    ]
    assert names == ("dress",) and bad == []
    images, _ = read_boxes([data / "coco/annotations/train.json"], data / "cache", bad := [])
    assert images == [[]] and bad[0].endswith(f"but there is no {data}/coco/annotations/0.jpg")


def test_identities_are_of_folders_rows_and_parts(data: Path) -> None:
    sources = [data / "folders", data / "rows.csv", data / "part"]
    images = read_identities(sources, data / "cache", bad := [], split="train")
    assert [[image.item_id for image in of_source] for of_source in images] == [["a", "b"], ["a"], []]
    assert bad == [] and [is_part(source) for source in sources] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("nowhere.json", r"nowhere\.json: no such file or folder"),
        ("beside.json:nowhere", "nowhere: no such file or folder"),
        ("notes.txt", r"notes\.txt is no folder, and its name does not end in \.json or \.csv"),
    ],
)
def test_what_is_not_there_or_of_no_kind_is_named(data: Path, name: str, message: str) -> None:
    for read in (read_boxes, read_identities):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read([data / name], data / "cache", [])


def test_data_of_the_other_network_are_refused(data: Path) -> None:
    for name in ("folders", "rows.csv", "empty"):
        with pytest.raises(ValueError, match=f"{name} has no classes of boxes: a detector is trained on parts of the"):
            read_boxes([data / name], data / "cache", [])
    with pytest.raises(ValueError, match=r"beside\.json has no identities: an embedder is trained on parts of the"):
        read_identities([data / "beside.json"], data / "cache", [])


def test_all_sources_of_a_detector_have_the_same_classes(data: Path) -> None:
    write_coco(data / "other.json", "dress", "coat")
    with pytest.raises(ValueError, match=r"other\.json has the classes dress, coat, .*beside\.json has dress$"):
        read_boxes([data / "beside.json", data / "other.json"], data / "cache", [])
    with pytest.raises(ValueError, match=r"part has the classes of WAB, .*beside\.json has dress$"):
        read_boxes([data / "beside.json", data / "part"], data / "cache", [])


def test_a_source_that_is_given_twice_is_refused(data: Path) -> None:
    shutil.copytree(data / "folders", data / "copy")
    assert len(read_identities([data / "folders", data / "copy"], data / "cache", [])) == 2
    with pytest.raises(ValueError, match="names a file or folder twice"):
        read_identities([data / "folders", data / "copy/../folders"], data / "cache", [])
