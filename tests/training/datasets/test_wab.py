import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from training.datasets.frames import cache_frames, read_rgb, read_size
from training.datasets.images import BoxAnnotation, check_bad, digest, usable_boxes
from training.datasets.sources import read_boxes
from training.datasets.wab import LABELS, read_part

ANNOTATION = {"label": "短裙", "viewpoint": 0, "display": 1, "instance_id": 20001301, "box": [10, 20, 90, 120]}


def box(*edges: int) -> BoxAnnotation:
    return BoxAnnotation(edges, instance_id=7)


def write_video(path: Path, num_frames: int, *, first_level: int = 0) -> None:
    """Frame i is uniformly gray, at level `first_level` + 37 · i modulo 256."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((96, 64, 3), (first_level + 37 * index) % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Item 000013 with two photos, and its clip with annotations for frames 0 and 40."""
    for name in ("image/000013", "image_annotation/000013", "video", "video_annotation"):
        (tmp_path / name).mkdir(parents=True)
    for index in (10, 2):
        cv2.imwrite(str(tmp_path / f"image/000013/{index}.jpg"), np.full((130, 100, 3), (200, 20, 40), np.uint8))
        record = {"item_id": "000013", "img_name": f"{index}.jpg", "annotations": [ANNOTATION]}
        (tmp_path / f"image_annotation/000013/{index}.json").write_text(json.dumps(record), encoding="utf-8")
    write_video(tmp_path / "video/000013.mp4", 60)
    frames = [{"frame_index": 0, "annotations": []}, {"frame_index": 40, "annotations": [ANNOTATION, ANNOTATION]}]
    (tmp_path / "video_annotation/000013.json").write_text(json.dumps({"video_id": "000013", "frames": frames}))
    return tmp_path


def test_boxes_are_clipped_and_slivers_dropped() -> None:
    boxes, usable = usable_boxes(
        [
            box(-5, 10, 30, 300),
            box(99, 0, 120, 50),
            box(150, 0, 200, 50),
            box(8, 8, 10, 10),
        ],
        height=200,
        width=100,
    )
    assert boxes.tolist() == [[0, 10, 30, 200], [8, 8, 10, 10]]
    assert boxes.dtype == np.float32
    assert usable.tolist() == [True, False, False, True]


def test_no_annotations_are_no_boxes() -> None:
    boxes, usable = usable_boxes([], 10, 10)
    assert boxes.shape == (0, 4)
    assert usable.shape == (0,)


def test_more_bad_images_than_the_limit_are_listed() -> None:
    bad = [f"{number}.jpg: broken" for number in range(25)]
    check_bad(bad, 25)
    with pytest.raises(ValueError, match="25 images, boxes or annotation files are unusable, 24 allowed") as error:
        check_bad(bad, 24)
    assert "19.jpg" in str(error.value) and "20.jpg" not in str(error.value)
    assert str(error.value).endswith("and 5 more")


def test_there_are_23_labels() -> None:
    assert len(set(LABELS)) == 23
    assert LABELS[0] == "短袖上衣" and LABELS[22] == "背带裤"


def test_photos_come_first_in_number_order_then_frames(part: Path) -> None:
    pictures = read_part(part)
    assert [(p.name, p.frame_index) for p in pictures] == [("2", None), ("10", None), ("f0", 0), ("f40", 40)]
    assert pictures[0].annotations == (BoxAnnotation((10, 20, 90, 120), instance_id=20001301),)
    assert [len(p.annotations) for p in pictures] == [1, 1, 0, 2]


def test_digest_is_of_what_is_trained_on_and_not_of_where_it_lies(part: Path, tmp_path: Path) -> None:
    pictures = read_part(part)
    assert digest(cache_frames(pictures, tmp_path / "cache")) == digest(pictures)
    moved = replace(pictures[0], annotations=(replace(pictures[0].annotations[0], box=(10, 20, 90, 121)),))
    assert len({digest(pictures), digest(pictures[::-1]), digest([moved, *pictures[1:]])}) == 3


def test_frames_are_extracted_exactly_and_once(part: Path, tmp_path: Path) -> None:
    cached = cache_frames(read_part(part), tmp_path / "cache")
    assert cached[3].path.is_relative_to(tmp_path / "cache/000013") and cached[3].path.name == "40.jpg"
    pixels = read_rgb(cached[3])
    assert pixels.shape == (96, 64, 3)
    assert abs(pixels.astype(int) - 37 * 40 % 256).max() <= 8
    written = cached[3].path.stat().st_mtime_ns
    cache_frames(read_part(part), tmp_path / "cache")
    assert cached[3].path.stat().st_mtime_ns == written


def test_photo_is_read_as_rgb(part: Path) -> None:
    red, green, blue = read_rgb(read_part(part)[0])[50, 50].astype(int)
    assert abs(red - 40) < 6 and abs(green - 20) < 6 and abs(blue - 200) < 6


def test_clip_shorter_than_its_annotation_is_named(part: Path, tmp_path: Path) -> None:
    write_video(part / "video/000013.mp4", 30)
    with pytest.raises(ValueError, match=r"000013\.mp4: has 30 frames, so there is no frame 40"):
        cache_frames(read_part(part), tmp_path / "cache")


def test_unreadable_clip_is_named(part: Path, tmp_path: Path) -> None:
    (part / "video/000013.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000013\.mp4"):
        cache_frames(read_part(part), tmp_path / "cache")


def test_clip_without_a_video_stream_is_described(part: Path, tmp_path: Path) -> None:
    video = part / "video/000013.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    cached = cache_frames(read_part(part), tmp_path / "cache", bad=(bad := []))
    assert [picture.name for picture in cached] == ["2", "10"]
    assert bad == [f"{video}: has no video stream (frame {index} is annotated)" for index in (0, 40)]
    with pytest.raises(ValueError, match=r"000013\.mp4: has no video stream"):
        cache_frames(read_part(part), tmp_path / "cache")


def test_frames_after_one_that_cannot_be_decoded_are_left_out_and_described(part: Path, tmp_path: Path) -> None:
    video = part / "video/000013.mp4"
    with av.open(str(video)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][10]
    content = bytearray(video.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    video.write_bytes(content)
    cached = cache_frames(read_part(part), tmp_path / "cache", bad=(bad := []))
    assert [picture.name for picture in cached] == ["2", "10", "f0"]
    assert len(bad) == 1 and bad[0].startswith(f"{video}: not a readable video after 8 frames: ")


def test_a_title_may_be_in_any_encoding(part: Path, tmp_path: Path) -> None:
    video = part / "video/000013.mp4"
    with av.open(str(video)) as container, av.open(str(part / "titled.mp4"), "w") as titled:
        titled.metadata["title"] = "GBK!"
        stream = titled.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                titled.mux(packet)
    video.write_bytes((part / "titled.mp4").read_bytes().replace(b"GBK!", "新品".encode("gbk")))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(video))
    cached = cache_frames(read_part(part), tmp_path / "cache")
    assert [picture.name for picture in cached] == ["2", "10", "f0", "f40"]


def test_bad_annotations_are_left_out_and_described(part: Path) -> None:
    (part / "image_annotation/000013/2.json").write_text("{")
    (part / "video/000013.mp4").unlink()
    pictures = read_part(part, bad := [])
    assert [picture.name for picture in pictures] == ["10"]
    assert len(bad) == 2 and "2.json" in bad[0] and "000013.mp4 is missing" in bad[1]


def test_frames_of_a_clip_that_was_written_again_are_extracted_again(part: Path, tmp_path: Path) -> None:
    before = cache_frames(read_part(part), tmp_path / "cache")[2]
    assert read_rgb(before).max() < 20
    write_video(part / "video/000013.mp4", 60, first_level=90)
    after = cache_frames(read_part(part), tmp_path / "cache")[2]
    assert abs(read_rgb(after).astype(int) - 90).max() <= 8


def test_parts_of_one_name_keep_their_frames_apart(part: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "parts/a", tmp_path / "parts/c/a"]
    for path in parts:
        shutil.copytree(part, path, ignore=shutil.ignore_patterns("parts"))
    write_video(parts[1] / "video/000013.mp4", 60, first_level=90)
    (first, second), _ = read_boxes(parts, tmp_path / "cache", [])
    assert read_rgb(first[2]).max() < 20 and read_rgb(second[2]).min() > 80
    with pytest.raises(ValueError, match="names a file or folder twice"):
        read_boxes([parts[0], parts[1] / "../../a"], tmp_path / "cache", [])


def test_size_is_that_of_the_upright_picture(part: Path) -> None:
    picture = read_part(part)[0]
    assert read_size(picture) == read_size(picture, decode=False) == (130, 100) == read_rgb(picture).shape[:2]
    with Image.open(picture.path) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(picture.path, exif=exif)
    assert read_size(picture) == read_size(picture, decode=False) == (100, 130) == read_rgb(picture).shape[:2]


@pytest.mark.parametrize("size", [0, 300, -20])
def test_size_of_an_unreadable_picture_is_refused(part: Path, size: int) -> None:
    picture = read_part(part)[0]
    picture.path.write_bytes(picture.path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"000013/2\.jpg: "):
        read_size(picture)


def test_missing_photo_is_named(part: Path) -> None:
    (part / "image/000013/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image/000013/2\.jpg is missing"):
        read_part(part)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "2.json"),
        ('{"item_id": "000013"}', "no field 'annotations'"),
        ('{"annotations": 3}', "annotations is 3, not a list"),
        (json.dumps({"annotations": [{**ANNOTATION, "box": [1, 2, 3]}]}), r"box is \[1, 2, 3\]"),
    ],
)
def test_bad_annotation_is_named(part: Path, text: str, message: str) -> None:
    (part / "image_annotation/000013/2.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_part(part)


def test_folder_that_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_part(tmp_path)
