from pathlib import Path

import pytest

from training.datasets.identities import read_csv, read_folders
from training.datasets.images import WHOLE_IMAGE, AnnotatedImage, usable_boxes


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def facts(image: AnnotatedImage) -> tuple[object, ...]:
    (annotation,) = image.annotations
    return image.item_id, image.name, image.frame_index, annotation.box, annotation.instance_id


def test_a_folder_per_identity(tmp_path: Path) -> None:
    images = read_folders(touch(tmp_path, "b/1.PNG", "b/0.jpg", "a/x.webp", "a/notes.txt", ".git/0.jpg", "readme.md"))
    assert [facts(image) for image in images] == [
        ("a", "x", None, WHOLE_IMAGE, 1),
        ("b", "0", None, WHOLE_IMAGE, 1),
        ("b", "1", None, WHOLE_IMAGE, 1),
    ]
    assert images[0].path == tmp_path / "a/x.webp"


def test_the_box_of_the_whole_image_is_clipped_to_the_image(tmp_path: Path) -> None:
    (image,) = read_folders(touch(tmp_path, "a/0.jpg"))
    boxes, _ = usable_boxes(image.annotations, height=7000, width=12_345)
    assert boxes.tolist() == [[0, 0, 12_345, 7000]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no folder per identity"),
        (["a/0.jpg", "b/notes.txt"], r"b holds no image \(.bmp, .jpeg, .jpg, "),
        (["train/a/0.jpg"], "train/a/0.jpg lies too deep: expected .*/<identity>/<image>"),
        (["a/0.jpg", "a/more/old/1.jpg"], "a/more/old/1.jpg lies too deep"),
        (["a/0.jpg", "1.jpg"], r"1\.jpg belongs to no identity"),
    ],
)
def test_a_folder_that_holds_no_identities_is_described(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_folders(touch(tmp_path, *names))


def write(folder: Path, text: str) -> Path:
    touch(folder, "0.jpg", "shop/1.jpg", "a.mp4")
    path = folder / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_is_a_whole_image_a_box_or_a_box_of_a_frame(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "\ufeffidentity,path,x0,y0,x1,y1,frame\n"
        "coat,0.jpg,,,,,\n"
        '"dress, red",shop/1.jpg,1,2,30.5,40,\n'
        "coat,a.mp4,5,6,7,8,120\n"
        "hat,a.mp4,,,,,120\n",
    )
    images = read_csv(path, bad := [])
    assert bad == []
    assert [facts(image) for image in images] == [
        ("coat", "0", None, WHOLE_IMAGE, 1),
        ("dress, red", "1", None, (1, 2, 30.5, 40), 1),
        ("coat", "f120", 120, (5, 6, 7, 8), 1),
        ("hat", "f120", 120, WHOLE_IMAGE, 1),
    ]
    assert images[1].path == tmp_path / "shop/1.jpg" and images[1].described_in == f"{path}:3"


def test_spaces_around_values_and_empty_rows_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split\n0.jpg,dress 7 ,train\nshop/1.jpg, dress 7,train \n\n,, \n")
    images = read_csv(path, bad := [])
    assert bad == [] and [image.item_id for image in images] == ["dress 7", "dress 7"]


def test_a_split_has_its_rows_and_without_the_column_all(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split\n0.jpg,a,train\nshop/1.jpg,b,test\n")
    read = {split: [image.item_id for image in read_csv(path, [], split=split)] for split in ("train", "test", None)}
    assert read == {"train": ["a"], "test": ["b"], None: ["a", "b"]}
    path.write_text("path,identity\n0.jpg,a\nshop/1.jpg,b\n")
    assert len(read_csv(path, [], split="train")) == len(read_csv(path, [], split="test")) == 2


def test_missing_images_are_left_out_and_described(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity\n0.jpg,a\ntypo.jpg,b\n")
    images = read_csv(path, bad := [])
    assert [image.name for image in images] == ["0"]
    assert bad == [f"{path}:3: path is 'typo.jpg', but there is no {tmp_path}/typo.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: no column path, identity: expected a header path,identity"),
        ("path,label\n", ":1: no column identity: "),
        ("path,identity,x0,x1\n0.jpg,a,1,2\n", ":1: no column y0, y1: "),
        ("path,identity,spilt\n0.jpg,a,test\n", ":1: unknown column spilt: "),
        ("path,identity,path\n", ":1: repeats the column path"),
        ("path,identity\n", " has no rows"),
        ("path,identity\n0.jpg,\n", ":2: identity is empty"),
        ("path,identity\n0.jpg\n", ":2: 1 values for 2 columns"),
        ("path,identity\n0.jpg,a,7\n", ":2: 3 values for 2 columns"),
        ('path,identity\n0.jpg,"a\n', ":2: not CSV: unexpected end of data"),
        ("path,identity,split\n0.jpg,a,val\n", ":2: split is 'val', not 'train' or 'test'"),
        ("path,identity,split\n0.jpg,a,\n", ":2: split is '', not 'train' or 'test'"),
        ("path,identity,frame\na.mp4,a,-1\n", ":2: frame is '-1', not a whole number"),
        ("path,identity,x0,y0,x1,y1\n0.jpg,a,1,2,3,\n", ":2: x0, y0, x1, y1 are '1', '2', '3', '', not four"),
        ("path,identity,x0,y0,x1,y1\n0.jpg,a,1,2,1,9\n", r":2: box \(1\.0, 2\.0, 1\.0, 9\.0\) has no width"),
        ("path,identity,x0,y0,x1,y1\n0.jpg,a,1,2,nan,9\n", r":2: box .* has no width or no height"),
        ("path,identity\n0.jpg,a\na.mp4,a\n0.jpg,b\n", ":4: the same box as in line 2"),
    ],
)
def test_a_malformed_file_and_its_line_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.csv{message}"):
        read_csv(write(tmp_path, text), [])


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "path,identity,split\n0.jpg,a,train\n")
    with pytest.raises(ValueError, match=r"data\.csv has no rows of split 'test'"):
        read_csv(path, [], split="test")


def test_a_file_without_rows_does_not_blame_the_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.csv has no rows$"):
        read_csv(write(tmp_path, "path,identity\n"), [], split="train")


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes("path,identity\n0.jpg,短裙\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"data\.csv:2: not UTF-8"):
        read_csv(path, [])
