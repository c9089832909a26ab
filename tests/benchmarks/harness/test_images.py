from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.images import (
    Kind,
    describe_boxes,
    list_clips,
    read_clips,
    sample_images,
    seek_frame,
    spread_frames,
)
from livematch import read_frames
from livematch.errors import DecodeError, InputError


@pytest.mark.parametrize("kind", ["image", "frame"])
def test_images_follow_the_seed_and_every_eighth_is_blank(demo_world: Path, kind: Kind) -> None:
    images = sample_images(demo_world, kind, 16, seed=3)
    again = sample_images(demo_world, kind, 16, seed=3)
    other = sample_images(demo_world, kind, 16, seed=4)
    assert len(images) == 16
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(images, other, strict=True))
    blank = [position for position, image in enumerate(images) if np.ptp(image, axis=(0, 1)).max() == 0]
    assert blank == [7, 15]


def test_the_distribution_of_boxes_is_stated() -> None:
    assert describe_boxes([0, 2, 2, 1]) == {
        "num_pictures": 4,
        "mean": 1.25,
        "pictures_by_num_boxes": {"0": 1, "1": 1, "2": 2},
    }


def test_frames_of_clips(demo_world: Path) -> None:
    clips = list_clips(demo_world, 2)
    images = read_clips(clips, [80, 120, 160])
    assert len(clips) == 2 and len(images) == 6
    assert all(image.ndim == 3 for image in images)


def test_few_frames_are_spread_over_the_clip() -> None:
    assert list(spread_frames(4)) == [80, 160, 240, 320]
    assert len(spread_frames(16)) == len(spread_frames(99)) == 16


def test_seeking_a_frame_decodes_that_frame(demo_world: Path) -> None:
    (clip,) = list_clips(demo_world, 1)
    for index, pixels in read_frames(clip, [80, 220]):
        difference = np.abs(seek_frame(clip, index).astype(int) - pixels)
        assert difference.mean() < 3
    with pytest.raises(DecodeError, match="has no frame 4000"):
        seek_frame(clip, 4000)


@pytest.mark.parametrize("kind", ["image", "frame"])
def test_a_world_without_images_is_named(tmp_path: Path, kind: Kind) -> None:
    for folder in ("image/item", "video"):
        (tmp_path / folder).mkdir(parents=True)
    message = {"image": f"{tmp_path.name} has no images or clips", "frame": "video holds nothing: expected"}[kind]
    with pytest.raises(InputError, match=message):
        sample_images(tmp_path, kind, 4, seed=0)
