"""Decode single frames of video files, or a file or a live stream to its end, to upright RGB pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from livematch.errors import DecodeError, InputError, describe_error
from livematch.media.sources import check_file
from livematch.types import Pixels

DEFAULT_FRAMES = range(80, 400, 20)
"""The 16 frames of a clip that are embedded by default: 80, 100, ..., 380."""

MAX_REORDERED_FRAMES = 16
"""How many frames may precede a frame in decoding order but follow it in display order (H.264's
max_num_reorder_frames)."""

STREAM_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class StreamFrame:
    """Holds one frame of a video: its index from 0, its time on the stream's own clock, and RGB, uint8 [H,W,3]."""

    frame_index: int
    time_s: float
    pixels: Pixels


def read_frames(path: str | Path, frame_indices: Sequence[int] = DEFAULT_FRAMES) -> Iterator[tuple[int, Pixels]]:
    """Decode frames of a video in one pass, and yield (frame_index, pixels) in increasing order.

    >>> for frame_index, pixels in read_frames("videos/000013.mp4", [80, 100]):
    ...     recognition = client.recognize_frame(pixels)

    Frames are counted from 0 in display order. Only the requested frames are converted to RGB, and only one is held in
    memory at a time. The conversion is swscale's, as in `ffmpeg -pix_fmt rgb24`: with the matrix (BT.601 or BT.709)
    and the range that the stream declares, or BT.601 and limited range if it declares none.

    Yields:
        The index and uint8 [H,W,3], RGB, rotated as the video's metadata says.

    Raises:
        DecodeError: the video cannot be read, or ends before the last requested frame. Like every error of this
            function, it is raised during iteration.
        InputError: a frame index is negative.
    """
    path = Path(path)
    wanted = sorted(set(frame_indices))
    if wanted and wanted[0] < 0:
        raise InputError(f"frame index {wanted[0]} is negative")
    check_file(path)
    if not wanted:
        return
    num_frames = 0
    try:
        display_order = _read_display_order(path, wanted[-1] + 1)
        for order in (display_order, None) if display_order else (None,):
            with _open_video(path) as (container, stream):
                for index, frame in _decode(container, stream, order, frozenset(wanted)):
                    if index == wanted[0]:
                        yield wanted.pop(0), _to_pixels(frame)
                    elif index > wanted[0] and order:
                        break  # the packet with this time gave no frame: decode again, and count frames instead
                    num_frames = index + 1
                    if not wanted:
                        return
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"{path}: not a readable video after {num_frames} frames: {describe_error(error)}") from error
    raise DecodeError(f"{path}: has {num_frames} frames, so there is no frame {wanted[0]}")


def read_stream(video: str | Path, every: int = 1) -> Iterator[StreamFrame]:
    """Decode a file or a stream to its end, and yield every `every`-th frame, starting with the first.

    Args:
        video: a path, or a URL that ffmpeg can open (rtmp://, http://, ...).

    Raises:
        DecodeError: the video cannot be opened, sends nothing for STREAM_TIMEOUT_S, or breaks off.
        InputError: `every` is below 1.
    """
    if every < 1:
        raise InputError(f"every must be at least 1, got {every}")
    num_decoded = 0
    try:
        with _open_video(video, timeout_s=STREAM_TIMEOUT_S) as (container, stream):
            for frame in container.decode(stream):
                if num_decoded % every == 0:
                    yield StreamFrame(num_decoded, round(frame.time or 0.0, 3), _to_pixels(frame))
                num_decoded += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = describe_error(error)
        raise DecodeError(f"{video}: not a readable video after {num_decoded} frames: {reason}") from error


def _read_display_order(path: Path, num_frames: int) -> dict[int, int] | None:
    """Map presentation times to frame indices for the first frames of an H.264 video, without decoding it.

    Returns:
        None if packets do not determine the indices: the codec is not H.264, times are missing or repeated, a packet
        is decoded but not shown, or the video does not begin with a key frame or shows frames before it (they refer to
        frames that were cut off).
    """
    times: list[int] = []
    with _open_video(path) as (container, stream):
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
    container: InputContainer, stream: VideoStream, display_order: dict[int, int] | None, wanted: frozenset[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (frame_index, frame). If the display order is known, skip unwanted frames that no other frame refers to."""
    if display_order is None:
        yield from enumerate(container.decode(stream))
        return
    for packet in container.demux(stream):
        is_wanted = packet.pts is None or display_order.get(packet.pts) in wanted
        stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts in display_order:
                yield display_order[frame.pts], frame


@contextmanager
def _open_video(video: str | Path, timeout_s: float | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Context manager: open a file or a URL and its first video stream; raise DecodeError if it has none.

    Bytes of its metadata that are not UTF-8, such as a title in GBK, are replaced.
    """
    with av.open(str(video), timeout=timeout_s, metadata_errors="replace") as container:
        if not container.streams.video:
            raise DecodeError(f"{video}: has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DecodeError(f"{video}: not a readable video: ffmpeg has no decoder for its codec")
        yield container, stream


def _to_pixels(frame: av.VideoFrame) -> Pixels:
    """Convert a decoded frame to uint8 [H,W,3], RGB, rotated upright."""
    pixels = frame.to_ndarray(format="rgb24")
    num_quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, num_quarter_turns))
