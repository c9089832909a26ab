import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from training.datasets.wab import LABELS, read_part
from training.demo.world import main, render_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "w"
    assert render_world(path, seed=11, num_items=4, render_every=40)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def brightness(path: Path) -> list[float]:
    """Return the mean of the frames 80, 200 and 360 of a clip, 0 to 255."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [float(frames[index].to_ndarray(format="rgb24").mean()) for index in (80, 200, 360)]


def rows(world: Path) -> list[dict[str, str]]:
    with (world / "truth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_layout_is_that_of_the_data_set(world: Path) -> None:
    for item in ("000001", "000002", "000003", "000004"):
        photos = sorted((world / "image" / item).glob("*.jpg"))
        assert len(photos) >= 4
        assert [p.stem for p in photos] == sorted(p.stem for p in (world / "image_annotation" / item).glob("*.json"))
        with Image.open(photos[0]) as photo:
            assert photo.size == (800, 800) and photo.format == "JPEG"
        record = json.loads((world / "video_annotation" / f"{item}.json").read_text(encoding="utf-8"))
        assert record["video_id"] == item
        assert [frame["frame_index"] for frame in record["frames"]] == list(range(0, 400, 40))


def test_clips_are_as_long_and_large_as_the_data_set_says(world: Path) -> None:
    with av.open(str(world / "video/000001.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 540, 960)
        assert stream.average_rate == 25
        assert sum(1 for _ in container.decode(video=0)) == 400


def test_annotations_name_instances_on_both_sides(world: Path) -> None:
    sides: dict[str, tuple[set[int], set[int]]] = {}
    for picture in read_part(world):
        photos, frames = sides.setdefault(picture.item_id, (set(), set()))
        for annotation in picture.annotations:
            x0, y0, x1, y1 = annotation.box
            width, height = (800, 800) if picture.frame_index is None else (540, 960)
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            (photos if picture.frame_index is None else frames).add(annotation.instance_id)
    for photos, frames in sides.values():
        assert photos - {0} == frames - {0} != set()
    everyone = Counter(i for photos, _ in sides.values() for i in photos - {0})
    assert max(everyone.values()) == 1
    files = world.glob("image_annotation/*/*.json")
    labels = {entry["label"] for file in files for entry in json.loads(file.read_text())["annotations"]}
    assert labels and labels <= set(LABELS)


def test_a_one_to_one_world_is_what_it_was_before_there_were_others(world: Path) -> None:
    """The expected values are of the code before, on an x86-64 CPU; other CPUs round single pixels differently."""
    annotations = b"".join(data for name, data in contents(world).items() if "_annotation/" in name)
    assert hashlib.sha256(annotations).hexdigest()[:16] == "ad8fba780365ed49"
    photos = [np.asarray(Image.open(path)).mean() for path in sorted((world / "image").glob("*/*.jpg"))]
    expected = (
        "204.3 119.9 108.4 103.5 220.8 217.8 213.9 145.6 209.4 216.8 181.3 205.4 173.1 231.3 230.9 106.1 121.0 141.5"
    )
    assert photos == pytest.approx([float(mean) for mean in expected.split()], abs=0.5)
    clips = [brightness(world / f"video/00000{number}.mp4") for number in range(1, 5)]
    assert clips[0] == pytest.approx([168.9, 177.4, 170.8], abs=0.5)
    assert clips[1] == pytest.approx([113.4, 120.6, 119.1], abs=0.5)
    assert clips[2] == pytest.approx([82.2, 79.0, 79.9], abs=0.5)
    assert clips[3] == pytest.approx([72.0, 91.7, 85.9], abs=0.5)


def test_clips_of_a_one_to_one_world_show_the_item_of_the_same_id(world: Path) -> None:
    assert [(row["video_id"], row["item_id"]) for row in rows(world)] == [
        (f"00000{n}", f"00000{n}") for n in range(1, 5)
    ]
    for row in rows(world):
        assert row["end_s"] == "15.96"  # the last of 400 frames
        assert row["start_s"] == "0.00" or 2 <= float(row["start_s"]) < 7


def test_a_world_is_the_same_each_time_and_a_larger_one_begins_alike(world: Path, tmp_path: Path) -> None:
    assert render_world(tmp_path / "w", seed=11, num_items=2, render_every=40)
    again, first = contents(tmp_path / "w"), contents(world)
    assert first["truth.csv"].startswith(again.pop("truth.csv"))
    again.pop("world.json")
    assert again == {name: first[name] for name in again}


def test_a_world_that_is_there_is_kept_and_another_replaces_it(tmp_path: Path) -> None:
    assert render_world(tmp_path / "w", seed=1, num_items=1, render_every=40)
    assert not render_world(tmp_path / "w", seed=1, num_items=1, render_every=40)
    before = contents(tmp_path / "w")
    assert render_world(tmp_path / "w", seed=2, num_items=1, render_every=40)
    assert contents(tmp_path / "w") != before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"not a demo world: it holds thesis\.txt"):
        render_world(tmp_path, seed=1, num_items=1)
    assert (tmp_path / "thesis.txt").exists()
    assert main(["-o", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == f"training.demo.world: {tmp_path} is not a demo world: it holds thesis.txt"


@pytest.mark.parametrize(("num_items", "render_every"), [(0, 1), (3, 7), (3, 0)])
def test_numbers_out_of_range(tmp_path: Path, num_items: int, render_every: int) -> None:
    with pytest.raises(ValueError, match=r"is 0|is 7"):
        render_world(tmp_path / "w", seed=1, num_items=num_items, render_every=render_every)
