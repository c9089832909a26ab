import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.workload import (
    DEMO_CHECKPOINTS,
    add_server_arguments,
    checkpoints_of,
    default_output,
    describe_boxes,
    describe_networks,
    list_clips,
    prepare_world,
    read_clips,
    read_pictures,
    spread_frames,
)


@pytest.mark.parametrize("kind", ["image", "frame"])
def test_pictures_follow_the_seed_and_every_eighth_is_empty(demo_world: Path, kind: str) -> None:
    pictures = read_pictures(demo_world, kind, 16, seed=3)
    again = read_pictures(demo_world, kind, 16, seed=3)
    other = read_pictures(demo_world, kind, 16, seed=4)
    assert len(pictures) == 16
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(pictures, again, strict=True))
    assert not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(pictures, other, strict=True))
    plain = [position for position, picture in enumerate(pictures) if np.ptp(picture.pixels, axis=(0, 1)).max() == 0]
    assert plain == [7, 15]


def test_the_distribution_of_boxes_is_stated() -> None:
    assert describe_boxes([0, 2, 2, 1]) == {
        "num_pictures": 4,
        "mean": 1.25,
        "pictures_by_num_boxes": {"0": 1, "1": 1, "2": 2},
    }


def test_frames_of_clips(demo_world: Path) -> None:
    clips = list_clips(demo_world, 2)
    pictures = read_clips(clips, [80, 120, 160])
    assert len(clips) == 2 and len(pictures) == 6
    assert all(picture.kind == "frame" and picture.pixels.ndim == 3 for picture in pictures)


def test_few_frames_are_spread_over_the_clip() -> None:
    assert list(spread_frames(4)) == [80, 160, 240, 320]
    assert len(spread_frames(16)) == len(spread_frames(99)) == 16


def test_a_world_that_is_given_is_taken_as_it_is(tmp_path: Path) -> None:
    assert prepare_world(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "checkpoints", "output"),
    [
        ("", DEMO_CHECKPOINTS, "demo_models.json"),
        ("--precision fp16", DEMO_CHECKPOINTS, "demo_fp16_models.json"),
        ("--config production", None, "production_models.json"),
        ("--config production --checkpoints trained", Path("trained"), "production_models.json"),
    ],
)
def test_what_is_served_and_where_the_figures_go(arguments: str, checkpoints: Path | None, output: str) -> None:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser, "models")
    options = parser.parse_args(arguments.split())
    assert checkpoints_of(options) == checkpoints
    assert default_output(options).name == output
    assert describe_networks(options)["weights"] == (str(checkpoints) if checkpoints else "made up (seed 0)")
