import numpy as np
import pytest
from PIL import Image

from livematch import DecodeError, InputError, read_image
from livematch.media.images import to_pixels

# Four quadrants of different colours, to detect rotation and mirroring: red, green / blue, black.
QUADRANTS = np.zeros((40, 60, 3), np.uint8)
QUADRANTS[:20, :30, 0] = QUADRANTS[:20, 30:, 1] = QUADRANTS[20:, :30, 2] = 255


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, QUADRANTS),
        (2, QUADRANTS[:, ::-1]),
        (3, np.rot90(QUADRANTS, 2)),
        (6, np.rot90(QUADRANTS, 1)),  # 6: turn it clockwise to see it upright
        (8, np.rot90(QUADRANTS, 3)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), QUADRANTS)


def save(path, array, mode=None):
    image = Image.fromarray(np.asarray(array))
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("gray.png", np.full((2, 3), 77, np.uint8), (77, 77, 77)),
        ("gray16.png", np.full((2, 3), 0x4DFF, np.uint16), (0x4D, 0x4D, 0x4D)),
        ("gray16.tif", np.full((2, 3), 0x4DFF, np.uint16), (0x4D, 0x4D, 0x4D)),
        ("alpha.png", np.full((2, 3, 4), (200, 0, 0, 51), np.uint8), (244, 204, 204)),  # 255 - .2 * 55, 255 - .2 * 255
        ("clear.webp", np.full((2, 3, 4), (9, 9, 9, 0), np.uint8), (255, 255, 255)),
        ("bilevel.png", np.ones((2, 3), bool), (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path, name, array, expected):
    pixels = read_image(save(tmp_path / name, array))
    assert (pixels.shape, pixels.dtype) == ((2, 3, 3), np.uint8)
    assert (pixels == expected).all()


def test_palette_with_a_transparent_entry_is_put_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png", transparency=1)
    assert read_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_jpeg(tmp_path):
    ink = np.full((16, 16, 4), (255, 0, 0, 0), np.uint8)  # cyan only: no red
    Image.frombuffer("CMYK", (16, 16), ink.tobytes()).save(tmp_path / "c.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "c.jpg")[8, 8]
    assert red < 5
    assert min(green, blue) > 250


def test_animation_gives_its_first_frame(tmp_path):
    first, second = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def broken_files(tmp_path):
    jpeg = save(tmp_path / "whole.jpg", np.tile(QUADRANTS, (4, 4, 1))).read_bytes()
    contents = {"truncated.jpg": jpeg[: len(jpeg) // 2], "empty.jpg": b"", "text.jpg": b"not an image\n" * 20}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    return {"truncated.jpg": "truncated", "empty.jpg": "empty", "text.jpg": "identify", "dangling.jpg": "no such file"}


def test_broken_images_name_file_and_reason(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(DecodeError, match=rf"{name}: .*{reason}"):
            read_image(tmp_path / name)


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "f.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(DecodeError, match="floating-point"):
        read_image(path)


def test_a_path_may_be_a_string(tmp_path):
    save(tmp_path / "a.png", QUADRANTS)
    assert np.array_equal(read_image(str(tmp_path / "a.png")), QUADRANTS)
    with pytest.raises(DecodeError, match="no such file"):
        read_image(str(tmp_path / "b.png"))


def test_a_pillow_image_becomes_upright_rgb():
    image = Image.fromarray(np.ascontiguousarray(np.rot90(QUADRANTS, 1))).convert("RGBA")
    image.getexif()[0x0112] = 6
    assert np.array_equal(to_pixels(image), QUADRANTS)
    with pytest.raises(InputError, match="floating-point"):
        to_pixels(Image.new("F", (2, 2)))
    with pytest.raises(InputError, match=r"0\.\.70000 are not 16-bit"):
        to_pixels(Image.fromarray(np.array([[0, 70000]], np.int32)))
