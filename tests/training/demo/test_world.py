import json
from collections import Counter
from pathlib import Path

import av
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


def test_a_world_is_the_same_each_time_and_a_larger_one_begins_alike(world: Path, tmp_path: Path) -> None:
    assert render_world(tmp_path / "w", seed=11, num_items=2, render_every=40)
    again, first = contents(tmp_path / "w"), contents(world)
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
