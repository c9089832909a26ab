"""A world in which items have several clips, clips show several items, and some show none."""

import csv
from pathlib import Path

import numpy as np
import pytest

from livematch.media.annotations import read_image_annotations, read_video_annotations
from livematch.media.videos import DEFAULT_FRAMES
from training.demo.clips import Clip
from training.demo.designs import item_designs
from training.demo.world import main, render_world


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three items in two clips each, two to a clip; one clip of other garments, and one item that no clip shows."""
    path = tmp_path_factory.mktemp("shop") / "w"
    options = ["--seed", "3", "--items", "3", "--clips-per-item", "2", "--items-per-clip", "2", "--distractors", "1"]
    assert main(["-o", str(path), *options, "--render-every", "40"]) == 0
    return path


def stretches(shop: Path) -> list[tuple[str, str, int, int]]:
    """Return video id, item id, first and last frame of each row of truth.csv but the last, of the distractor."""
    with (shop / "truth.csv").open(newline="") as file:
        header, *rows, last = csv.reader(file)
    assert header == ["video_id", "item_id", "start_s", "end_s"]
    assert last == ["v000004", "", "", ""]
    return [(video, item, round(25 * float(start)), round(25 * float(end))) for video, item, start, end in rows]


def instances(shop: Path) -> dict[str, set[int]]:
    """Return the instance ids, other than 0, in the photos of each item."""
    found: dict[str, set[int]] = {}
    for path in (shop / "image_annotation").glob("*/*.json"):
        ids = {annotation.instance_id for annotation in read_image_annotations(path)}
        found.setdefault(path.parent.name, set()).update(ids - {0})
    return found


def frames(shop: Path, video_id: str) -> dict[int, set[int]]:
    """Return the instance ids, other than 0, in each annotated frame of a clip."""
    annotated = read_video_annotations(shop / "video_annotation" / f"{video_id}.json")
    return {index: {annotation.instance_id for annotation in found} - {0} for index, found in annotated}


def test_number_of_items_and_clips(shop: Path) -> None:
    items = ["000001", "000002", "000003", "630001"]
    assert sorted(path.name for path in (shop / "image").iterdir()) == items
    assert sorted(path.name for path in (shop / "image_annotation").iterdir()) == items
    clips = ["v000001", "v000002", "v000003", "v000004"]  # 3 · 2 / 2 clips, and the distractor
    assert sorted(path.stem for path in (shop / "video").iterdir()) == clips
    assert sorted(path.stem for path in (shop / "video_annotation").iterdir()) == clips
    truth = stretches(shop)
    assert [video for video, *_ in truth] == ["v000001", "v000001", "v000002", "v000002", "v000003", "v000003"]
    assert sorted(item for _, item, *_ in truth) == sorted(items[:3] * 2)


def test_two_items_of_a_clip_have_half_of_it_each(shop: Path) -> None:
    truth = stretches(shop)
    for first, second in zip(truth[::2], truth[1::2], strict=True):
        assert first[1] != second[1]
        assert 0 <= first[2] < 88 and first[3] == 199  # late by less than 175 / 2 frames
        assert 200 <= second[2] < 288 and second[3] == 399


def test_an_item_is_annotated_in_its_stretch_and_nowhere_else(shop: Path) -> None:
    ids = instances(shop)
    for video, item, first, last in stretches(shop):
        seen = {index: found & ids[item] for index, found in frames(shop, video).items()}
        assert list(seen) == list(range(0, 400, 40))
        within = [index for index in seen if first <= index <= last]
        assert within and all(seen[index] for index in within)
        assert not any(found for index, found in seen.items() if index not in within)


def test_annotations_of_a_clip_name_both_items_and_no_other(shop: Path) -> None:
    ids, truth = instances(shop), stretches(shop)
    for first, second in zip(truth[::2], truth[1::2], strict=True):
        assert set().union(*frames(shop, first[0]).values()) == ids[first[1]] | ids[second[1]]


def test_distractors_share_no_instance(shop: Path) -> None:
    ids = instances(shop)
    assert ids.pop("630001") == set()
    assert all(ids.values())
    for found in frames(shop, "v000004").values():
        assert found == set()
    garments = [annotations for _, annotations in read_video_annotations(shop / "video_annotation/v000004.json")]
    assert sum(map(len, garments)) > 0
    assert all(read_image_annotations(path) for path in (shop / "image_annotation/630001").iterdir())


def test_a_shop_is_the_same_each_time_and_a_larger_one_has_the_same_photos(shop: Path, tmp_path: Path) -> None:
    def files(world: Path, pattern: str) -> dict[str, bytes]:
        return {str(path.relative_to(world)): path.read_bytes() for path in world.glob(pattern)}

    options = {"seed": 3, "clips_per_item": 2, "items_per_clip": 2, "render_every": 40}
    assert render_world(tmp_path / "again", num_items=3, num_distractors=1, **options)
    for pattern in ("image/*/*", "*_annotation/**/*.json", "truth.csv"):
        assert files(tmp_path / "again", pattern) == files(shop, pattern) != {}
    assert not render_world(tmp_path / "again", num_items=3, num_distractors=1, **options)
    assert render_world(tmp_path / "again", num_items=4, seed=3, items_per_clip=4, render_every=40)
    larger, smaller = files(tmp_path / "again", "image/*/*"), files(shop, "image/00000*/*")
    assert len(smaller) >= 12
    assert {name: larger.get(name) for name in smaller} == smaller


@pytest.mark.parametrize(
    ("num_items", "starts", "fewest"),
    [
        # If the garments come as late as they can, after 175 / 400 of the stretch, these frames show them:
        (1, [0], [11]),  # 180, 200, …, 380
        (2, [0, 200], [5, 5]),  # 100 … 180; 300 … 380
        (3, [0, 133, 266], [3, 4, 3]),  # 80, 100, 120; 200 … 260; 340, 360, 380
        (4, [0, 100, 200, 300], [1, 2, 2, 2]),  # 80; 160, 180; 260, 280; 360, 380
    ],
)
def test_each_item_of_a_clip_is_in_the_frames_that_are_embedded(
    num_items: int, starts: list[int], fewest: list[int]
) -> None:
    late = 0
    for seed in range(4):
        items = [(item_designs(seed, 3 * item), [item + 1]) for item in range(40)]
        single = [(designs, ids) for designs, ids in items if len(designs) == 1][:num_items]
        showings = Clip(single, np.random.default_rng(seed)).showings
        assert [showing.start for showing in showings] == starts
        assert [showing.stop for showing in showings] == [*starts[1:], 400]
        for showing, expected in zip(showings, fewest, strict=True):
            length = showing.stop - showing.start
            assert showing.start <= showing.begin < showing.start + length * 175 / 400
            assert showing.begin < showing.change < showing.stop
            assert len([i for i in DEFAULT_FRAMES if showing.begin <= i < showing.stop]) >= expected
            late += showing.begin > showing.start
            latest = showing.start + length * 175 / 400
            assert len([i for i in DEFAULT_FRAMES if latest <= i < showing.stop]) == expected
    assert late  # in some the garments come late


def test_a_number_out_of_range_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", str(tmp_path / "w"), "--items", "9", "--items-per-clip", "5"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    limits = "a clip shows 1 to 4, and at most num_items, 9"
    assert error == f"training.demo.world: items_per_clip is 5, but {limits}"
    assert not (tmp_path / "w").exists()
