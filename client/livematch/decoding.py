"""Image and video files to upright RGB pixels.

Everything here returns uint8 [H,W,3], RGB, in display orientation: EXIF and video rotation are applied, so that
boxes are in the pixels a person sees. Whatever is wrong with a file becomes a `DecodeError` that names it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from livematch.errors import DecodeError, InputError

Pixels = npt.NDArray[np.uint8]

DEFAULT_FRAMES = range(80, 400, 20)
"""The 16 frames of a clip that are looked at: 80, 100, ..., 380."""

STREAM_TIMEOUT_S = 30.0

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: Path) -> Pixels:
    """Decode an image of any mode Pillow knows.

    Grayscale, palette, CMYK and the like are converted to RGB, transparency is put on white, 16-bit samples keep their
    high byte, an animation gives its first picture.

    Raises:
        DecodeError: the file is missing, empty, truncated, or not an image.
    """
    _check_file(path)
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise DecodeError(f"{path}: not a readable image: {_reason(error)}") from error


def read_frames(path: Path, frame_indices: Sequence[int] = DEFAULT_FRAMES) -> Iterator[tuple[int, Pixels]]:
    """Decode frames of a video in one pass, and yield (frame_index, pixels) in increasing order.

    Frames count from 0 in display order. Colours go through swscale as ffmpeg's own conversion to rgb24 does: the
    matrix (BT.601 or BT.709) and the range are those the stream declares, BT.601 limited if it declares none. Only
    the frames asked for are converted, and only one is held at a time.

    Raises:
        DecodeError: the video cannot be read, or ends before the last frame asked for (when iteration gets there).
        InputError: a frame index is negative.
    """
    wanted = sorted(set(frame_indices))
    if wanted and wanted[0] < 0:
        raise InputError(f"frame index {wanted[0]} is negative")
    _check_file(path)
    num_decoded = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DecodeError(f"{path}: has no video stream")
            position = 0
            for frame in container.decode(video=0):
                if position == len(wanted):
                    return
                if num_decoded == wanted[position]:
                    yield num_decoded, _upright(frame)
                    position += 1
                num_decoded += 1
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"{path}: not a readable video after {num_decoded} frames: {_reason(error)}") from error
    if wanted and num_decoded <= wanted[-1]:
        raise DecodeError(f"{path}: has {num_decoded} frames, so there is no frame {wanted[-1]}")


@dataclass(frozen=True)
class StreamFrame:
    """A frame of a video that plays; time_s counts from the stream's own zero."""

    frame_index: int
    time_s: float
    pixels: Pixels


def read_stream(video: str, every: int = 1) -> Iterator[StreamFrame]:
    """Decode a file or a stream from its beginning to its end, and yield every `every`-th frame as `read_frames` does.

    Args:
        video: a path, or an address that ffmpeg can open (rtmp://, http://, ...).

    Raises:
        DecodeError: it cannot be opened, gives nothing for STREAM_TIMEOUT_S, or breaks off.
        InputError: `every` is below 1.
    """
    if every < 1:
        raise InputError(f"every must be at least 1, got {every}")
    num_decoded = 0
    try:
        with av.open(video, timeout=STREAM_TIMEOUT_S) as container:
            if not container.streams.video:
                raise DecodeError(f"{video}: has no video stream")
            for frame in container.decode(video=0):
                if num_decoded % every == 0:
                    yield StreamFrame(num_decoded, round(frame.time or 0.0, 3), _upright(frame))
                num_decoded += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{video}: not a readable video after {num_decoded} frames: {_reason(error)}") from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DecodeError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DecodeError(f"{path}: the file is empty")


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


def _upright(frame: av.VideoFrame) -> Pixels:
    pixels = frame.to_ndarray(format="rgb24")
    num_quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, num_quarter_turns))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
