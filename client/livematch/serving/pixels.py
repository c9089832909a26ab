"""Convert what a caller passes as an image to RGB pixels, or reject it with advice."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from livematch.errors import InputError, describe_error
from livematch.media.images import read_image, to_pixels
from livematch.types import Pixels

ImageInput = Pixels | Image.Image | str | Path
"""RGB pixels (uint8 [H,W,3]), a PIL image, or the path of an image file."""


def read_pixels(image: ImageInput) -> Pixels:
    """Return the upright RGB pixels, uint8 [H,W,3], of an array, a PIL image or an image file.

    InputError and DecodeError are raised as by `Client.recognize_image`.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            pixels = to_pixels(image)
        except Exception as error:  # Pillow raises a dozen unrelated types
            raise InputError(f"cannot convert this PIL image to RGB: {describe_error(error)}") from error
        if pixels.size == 0:
            raise InputError(f"the PIL image is empty: its size is {image.width} × {image.height}")
        return pixels
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"expected uint8 pixels [H,W,3], a PIL image or a path, got {type(image).__name__}: "
            "convert other types with np.asarray(image, np.uint8)"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"expected uint8 pixels [H,W,3], got {image.dtype} {list(image.shape)}: {_advise(image)}")
    return image


def check_several(images: object) -> None:
    """Raise InputError if `images` is a single image, or nothing that can be iterated over."""
    is_single = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4)
    if is_single or not isinstance(images, Iterable):
        raise InputError(
            f"expected several images, such as a list of paths, got {type(images).__name__}: "
            "pass a single image to recognize_image or recognize_frame"
        )


def _advise(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    """Say how to turn an array of the wrong dtype or shape into an RGB image."""
    if array.size == 0:
        return "the array is empty"
    if array.ndim == 4:
        return "pass the images of a batch one at a time, or to recognize_images or recognize_frames"
    if array.ndim == 2:
        return "repeat a gray image for the three channels with np.stack([image] * 3, axis=-1)"
    if array.ndim == 3 and array.shape[2] == 4:
        return "drop the alpha channel with image[:, :, :3]"
    if array.ndim == 3 and array.shape[2] == 3:
        return "scale the values to 0..255 and convert them with image.astype(np.uint8)"
    return "the axes must be height, width and the channels red, green and blue"
