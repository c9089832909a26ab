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
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from livematch.errors import DecodeError, InputError

Pixels = npt.NDArray[np.uint8]

DEFAULT_FRAMES = range(80, 400, 20)
"""The 16 frames of a clip that are looked at: 80, 100, ..., 380."""

STREAM_TIMEOUT_S = 30.0

MAX_REORDERED_FRAMES = 16
"""By so much the display order of H.264 differs from the decoding order at most (its max_num_reorder_frames)."""

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
    if not wanted:
        return
    num_frames = 0
    try:
        display_order = _display_order(path, wanted[-1] + 1)
        for order in (display_order, None) if display_order else (None,):
            with _open(path) as container:
                for index, frame in _decode(container, order, frozenset(wanted)):
                    if index == wanted[0]:
                        yield wanted.pop(0), _upright(frame)
                    elif index > wanted[0] and order:
                        break  # the decoder gave no picture for the packet of that time: count pictures instead
                    num_frames = index + 1
                    if not wanted:
                        return
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"{path}: not a readable video after {num_frames} frames: {_reason(error)}") from error
    raise DecodeError(f"{path}: has {num_frames} frames, so there is no frame {wanted[0]}")


def _display_order(path: Path, num_frames: int) -> dict[int, int] | None:
    """The frame index of each presentation time, for the first frames of an H.264 video.

    None where it does not follow from the packets: another codec, packets without or with equal times, packets that
    are decoded but not shown, a beginning that cannot be decoded, pictures before the first key frame, which refer to
    one that was cut off.
    """
    times: list[int] = []
    with _open(path) as container:
        stream = _video_stream(container, path)
        if stream.codec_context.name != "h264":
            return None
        for packet in container.demux(stream):
            if len(times) == num_frames + MAX_REORDERED_FRAMES or packet.size == 0:
                break
            if packet.pts is None or packet.is_discard or not (times or packet.is_keyframe):
                return None
            times.append(packet.pts)
    if len(set(times)) < len(times) or (times and times[0] > min(times)):
        return None
    return {time: index for index, time in enumerate(sorted(times))}


def _decode(
    container: InputContainer, display_order: dict[int, int] | None, wanted: frozenset[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their index. With a display order, those that are neither wanted nor referred to are left out."""
    if display_order is None:
        yield from enumerate(container.decode(video=0))
        return
    stream = container.streams.video[0]
    for packet in container.demux(stream):
        is_wanted = packet.pts is None or display_order.get(packet.pts) in wanted
        stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts in display_order:
                yield display_order[frame.pts], frame


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
        with _open(video, timeout=STREAM_TIMEOUT_S) as container:
            for frame in container.decode(_video_stream(container, video)):
                if num_decoded % every == 0:
                    yield StreamFrame(num_decoded, round(frame.time or 0.0, 3), _upright(frame))
                num_decoded += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"{video}: not a readable video after {num_decoded} frames: {_reason(error)}") from error


def _open(video: Path | str, timeout: float | None = None) -> InputContainer:
    return av.open(str(video), timeout=timeout, metadata_errors="replace")  # a title may be in GBK


def _video_stream(container: InputContainer, video: Path | str) -> VideoStream:
    """The first one; raises DecodeError if there is none, or no decoder for it."""
    if not container.streams.video:
        raise DecodeError(f"{video}: has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError(f"{video}: not a readable video: ffmpeg has no decoder for its codec")
    return stream


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            raise DecodeError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DecodeError(f"{path}: the file is empty")
    except OSError as error:  # its folder cannot be searched, say
        raise DecodeError(f"{path}: {error.strerror}") from error


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
