import re

import numpy as np
import pytest
from PIL import Image

from livematch import DecodeError, InputError
from livematch.serving.pixels import check_several, read_pixels


def write_turned(path):
    """Write a JPEG whose EXIF orientation says that it must be rotated by 90 degrees; return it upright."""
    stored = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(path, exif=exif, quality=95)
    return np.rot90(np.asarray(Image.open(path)), -1)


def test_paths_and_pil_images_are_converted_alike(tmp_path):
    path = tmp_path / "turned.jpg"
    upright = write_turned(path)
    for image in (path, str(path), Image.open(path)):
        assert np.array_equal(read_pixels(image), upright)
    gray = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert np.array_equal(read_pixels(gray), np.stack([np.asarray(gray)] * 3, axis=-1))


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (np.zeros((4, 4, 3), np.float32), "got float32 [4, 4, 3]: scale the values to 0..255 and convert them"),
        (np.zeros((4, 4), np.uint8), "got uint8 [4, 4]: repeat a gray image"),
        (np.zeros((4, 4, 4), np.uint8), "got uint8 [4, 4, 4]: drop the alpha channel"),
        (np.zeros((3, 5, 7), np.uint8), "got uint8 [3, 5, 7]: the axes must be height, width and the channels"),
        (np.zeros((1, 4, 4, 3), np.uint8), "got uint8 [1, 4, 4, 3]: pass the images of a batch one at a time"),
        (np.zeros((0, 4, 3), np.uint8), "got uint8 [0, 4, 3]: the array is empty"),
    ],
)
def test_another_array_is_refused_with_advice(image, advice):
    with pytest.raises(InputError, match=re.escape(f"expected uint8 pixels [H,W,3], {advice}")):
        read_pixels(image)


@pytest.mark.parametrize("image", [[[[0, 0, 0]]], None, b"jpeg", 3])
def test_another_type_is_refused(image):
    with pytest.raises(InputError, match=rf"a PIL image or a path, got {type(image).__name__}: convert other types"):
        read_pixels(image)


def test_a_pil_image_without_defined_rgb_is_refused():
    with pytest.raises(InputError, match=r"cannot convert this PIL image to RGB: .*floating-point"):
        read_pixels(Image.new("F", (4, 4)))
    with pytest.raises(InputError, match="the PIL image is empty: its size is 0 × 4"):
        read_pixels(Image.new("RGB", (0, 4)))


def test_a_missing_file_is_a_decode_error():
    with pytest.raises(DecodeError, match=r"nowhere\.jpg: no such file"):
        read_pixels("nowhere.jpg")


@pytest.mark.parametrize("images", ["a.jpg", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), None, 3])
def test_a_single_image_is_not_several(images):
    with pytest.raises(InputError, match=rf"several images, .* got {type(images).__name__}: pass a single image to"):
        check_several(images)
