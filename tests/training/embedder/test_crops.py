import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ImageFile
from torchvision.transforms import v2

from training.datasets.images import AnnotatedImage, BoxAnnotation
from training.embedder.augment import augmentation
from training.embedder.crops import Crop, cut_crops, prepare_crops
from training.embedder.data import CropDataset
from training.embedder.evaluate import retrieval_in_both_directions


def photo(path: Path, *boxes: tuple[int, int, int, int], level: int = 90) -> AnnotatedImage:
    """A uniformly gray photo of 40 × 50 pixels (width × height) with these garments, of instances 1, 2, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((50, 40, 3), level, np.uint8))
    return AnnotatedImage(
        "1", path.stem, path, None, tuple(BoxAnnotation(box, instance_id=i) for i, box in enumerate(boxes, 1))
    )


def levels(crops: list[Crop]) -> list[int]:
    return [round(cv2.imread(str(crop.path)).mean()) for crop in crops]


def test_crops_are_cut_again_when_picture_or_box_changes(tmp_path: Path) -> None:
    before = cut_crops([photo(tmp_path / "0.jpg", (5, 5, 30, 40))], tmp_path / "cut", max_side_px=100)
    again = cut_crops([photo(tmp_path / "0.jpg", (5, 5, 30, 40), level=200)], tmp_path / "cut", max_side_px=100)
    assert levels(before) == [90] and levels(again) == [200]
    moved = cut_crops([photo(tmp_path / "0.jpg", (0, 0, 10, 10), level=200)], tmp_path / "cut", max_side_px=100)
    assert cv2.imread(str(moved[0].path)).shape[:2] == (12, 12)


def test_images_of_one_name_have_crops_of_their_own(tmp_path: Path) -> None:
    pictures = [
        photo(tmp_path / name / "0.jpg", (5, 5, 30, 40), level=level) for name, level in (("a", 90), ("b", 200))
    ]
    assert levels(cut_crops(pictures, tmp_path / "cut", max_side_px=100)) == [90, 200]


def test_the_name_of_an_image_may_have_as_many_bytes_as_a_file_system_allows(tmp_path: Path) -> None:
    pictures = [photo(tmp_path / f"{'裙' * 83}{digit}.jpg", (5, 5, 30, 40), level=90 + digit) for digit in (1, 2)]
    assert levels(cut_crops(pictures, tmp_path / "cut", max_side_px=100)) == [91, 92]


def test_equal_ids_in_different_parts_are_different_identities(demo_world: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_world, tmp_path / "copy")
    parts = [demo_world, tmp_path / "copy"]
    crops = prepare_crops(parts, tmp_path / "cache", max_side_px=60)
    one = CropDataset(prepare_crops(parts[:1], tmp_path / "cache", max_side_px=60), v2.Identity())
    both = CropDataset(crops, v2.Identity())
    assert both.num_identities == 2 * one.num_identities > 0
    half = len(crops) // 2
    garments = [both[i, "XS", 0][1] for i in range(len(crops))]
    assert garments == [one[i, "XS", 0][1] + part * one.num_identities for part in (0, 1) for i in range(half)]
    perfect = np.eye(both.num_identities)[garments]
    assert all(
        metrics == {"r1": 1.0, "r5": 1.0, "map": 1.0}
        for metrics in retrieval_in_both_directions(perfect, crops).values()
    )


def test_boxes_are_jittered_by_up_to_a_fraction_of_their_sides(tmp_path: Path) -> None:
    """An edge of the garment, which fills its box, is up to 6 % of the side away from the edge of the picture."""
    picture = photo(tmp_path / "0.png", (100, 100, 300, 300))
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[100:300, 100:300] = 255
    cv2.imwrite(str(picture.path), pixels)
    crops = cut_crops([picture], tmp_path / "cut", max_side_px=600)
    torch.manual_seed(0)
    dataset = CropDataset(crops, augmentation(heavy=False))
    seen = [dataset[0, "XS", crops[0].aspect][0].numpy() for _ in range(40)]
    borders = [(image.max((0, 1)) < 128).mean() for image in seen]
    assert 0.04 < max(borders) <= 0.11 and min(borders) == 0


def test_box_outside_its_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"box \(60, 0, 90, 20\) lies outside"):
        cut_crops([photo(tmp_path / "0.jpg", (60, 0, 90, 20))], tmp_path / "cut", max_side_px=100)


@pytest.mark.parametrize("size", [0, 300, -20])
def test_a_photo_that_is_not_whole_is_an_error(tmp_path: Path, size: int) -> None:
    picture = photo(tmp_path / "0.jpg", (5, 5, 30, 40))
    picture.path.write_bytes(picture.path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"0\.jpg: "):
        cut_crops([picture], tmp_path / "cut", max_side_px=100)


def test_what_cannot_be_cut_is_left_out_and_described(tmp_path: Path) -> None:
    pictures = [photo(tmp_path / f"{number}.jpg", (5, 5, 30, 40), (60, 0, 90, 20)) for number in range(3)]
    pictures[0].path.write_text("no image")
    crops = cut_crops(pictures, tmp_path / "cut", max_side_px=100, bad=(bad := []))
    assert [crop.path.name[0] for crop in crops] == ["1", "2"]
    outside = "box (60, 0, 90, 20) lies outside the"
    assert [reason.split("/")[-1][: len("1.jpg: ") + len(outside)] for reason in bad] == [
        "0.jpg: not a readable image",
        f"1.jpg: {outside}",
        f"2.jpg: {outside}",
    ]


def test_a_picture_whose_crops_are_there_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo(tmp_path / "0.jpg", (5, 5, 30, 40), (0, 0, 10, 90))
    crops = cut_crops([picture], tmp_path / "cut", max_side_px=30)
    monkeypatch.delattr(cv2, "imread")
    monkeypatch.delattr(ImageFile.ImageFile, "load")
    assert cut_crops([picture], tmp_path / "cut", max_side_px=30) == crops


def test_a_crop_that_could_not_be_written_is_an_error_and_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, data: bytes) -> None:
        path.write_text("half")
        raise OSError("no space left")

    picture = photo(tmp_path / "0.jpg", (5, 5, 30, 40))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(Path, "write_bytes", write_half)
        cut_crops([picture], tmp_path / "cut", max_side_px=100)
    assert levels(cut_crops([picture], tmp_path / "cut", max_side_px=100)) == [90]
