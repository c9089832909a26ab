from pathlib import Path

import numpy as np
import pytest

from benchmarks.workload import describe_boxes, read_pictures


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
