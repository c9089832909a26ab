from pathlib import Path

import cv2
import numpy as np
import pytest

from training.datasets.images import AnnotatedImage, BoxAnnotation
from training.detector.splits import keep_readable, split_by_item


def picture(path: Path, *boxes: tuple[int, int, int, int]) -> AnnotatedImage:
    """An image of 100 × 200 pixels (width × height)."""
    cv2.imwrite(str(path), np.full((200, 100, 3), 90, np.uint8))
    return AnnotatedImage("1", path.stem, path, None, tuple(BoxAnnotation(box) for box in boxes))


def test_boxes_are_counted_as_clipped_dropped_or_neither(tmp_path: Path) -> None:
    pictures = [
        picture(tmp_path / "0.jpg", (10, 10, 50, 50), (90, 0, 120, 300)),  # the second overruns
        picture(tmp_path / "1.jpg", (150, 0, 180, 50), (10, 10, 11, 11)),  # outside; one pixel
        picture(tmp_path / "2.jpg"),
    ]
    readable, counts = keep_readable(pictures, bad := [])
    assert readable == pictures and bad == []
    assert counts == {
        "num_images": 3,
        "num_boxes": 2,
        "num_clipped_boxes": 1,
        "num_dropped_boxes": 2,
        "num_images_without_boxes": 2,
    }


def test_unreadable_pictures_are_left_out_and_described(tmp_path: Path) -> None:
    pictures = [picture(tmp_path / f"{number}.jpg", (10, 10, 50, 50)) for number in range(4)]
    pictures[0].path.write_bytes(b"")
    pictures[1].path.write_text("no image")
    pictures[2].path.write_bytes(pictures[2].path.read_bytes()[:-200])
    readable, counts = keep_readable(pictures, bad := [])
    assert readable == pictures[3:] and counts["num_images"] == 1
    assert [Path(reason.split(":")[0]).name for reason in bad] == ["0.jpg", "1.jpg", "2.jpg"]
    assert "truncated" in bad[2]


def test_the_last_twentieth_of_the_items_is_held_out() -> None:
    pictures = [AnnotatedImage(f"{item:03}", name, Path(), None, ()) for item in range(40) for name in "ab"]
    training, held_out = split_by_item(pictures)
    assert {picture.item_id for picture in held_out} == {"038", "039"}
    assert len(training) == 76
    with pytest.raises(ValueError, match=r"at least two items are needed.*found 1"):
        split_by_item(pictures[:2])
