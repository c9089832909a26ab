"""Image files to upright RGB pixels."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from livematch.errors import DecodeError
from livematch.types import Pixels

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: Path) -> Pixels:
    """Decode an image of any mode Pillow knows.

    Grayscale, palette, CMYK and the like are converted to RGB, transparency is put on white, 16-bit samples keep their
    high byte, an animation gives its first picture.

    Raises:
        DecodeError: the file is missing, empty, truncated, or not an image.
    """
    check_file(path)
    try:
        with Image.open(path) as image:
            image.load()
            return to_pixels(image)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise DecodeError(f"{path}: not a readable image: {describe_error(error)}") from error


def to_pixels(image: Image.Image) -> Pixels:
    """Convert a PIL image of any mode to upright RGB pixels, as `read_image` does."""
    return np.asarray(_rgb(ImageOps.exif_transpose(image)))


def check_file(path: Path) -> None:
    try:
        if not path.is_file():
            raise DecodeError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DecodeError(f"{path}: the file is empty")
    except OSError as error:  # its folder cannot be searched, say
        raise DecodeError(f"{path}: {error.strerror}") from error


def describe_error(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_sixteen_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 0xFFFF:
        raise ValueError(f"pixel values {samples.min()}..{samples.max()} are not 16-bit")
    # Image.convert would clip at 255; Pillow itself keeps the high byte of 16-bit colour files.
    return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
