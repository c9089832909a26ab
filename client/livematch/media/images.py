"""Decode image files and Pillow images to upright RGB pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from livematch.errors import DecodeError, InputError, describe_error
from livematch.media.sources import check_file
from livematch.types import Pixels

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: str | Path) -> Pixels:
    """Decode an image file of any format that Pillow reads; see `to_pixels` for the conversion.

    >>> recognition = client.recognize_image(read_image("images/000013/0.jpg"))

    Returns:
        uint8 [H,W,3], RGB, upright.

    Raises:
        DecodeError: the file is missing, empty, truncated, or not an image.
    """
    path = Path(path)
    check_file(path)
    try:
        with Image.open(path) as image:
            return to_pixels(image)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise DecodeError(f"{path}: not a readable image: {describe_error(error)}") from error


def to_pixels(image: Image.Image) -> Pixels:
    """Convert a Pillow image of any mode to RGB, and rotate it upright as its EXIF orientation says.

    Transparent pixels are blended with white, 16-bit samples keep their high byte, and an animation is reduced to its
    current frame, which is the first one if the image was just opened.

    Returns:
        uint8 [H,W,3].

    Raises:
        InputError: floating-point or 32-bit pixels, whose range is unknown.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT_MODES:
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise InputError(f"pixel values {samples.min()}..{samples.max()} are not 16-bit")
        # Image.convert would clip at 255. Keeping the high byte is what Pillow itself does with 16-bit colour files.
        image = Image.fromarray((samples >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise InputError("floating-point pixels have no defined range")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))
