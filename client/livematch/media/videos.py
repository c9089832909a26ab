"""Image and video files to upright RGB pixels.

Everything here returns uint8 [H,W,3], RGB, in display orientation: EXIF and video rotation are applied, so that
boxes are in the pixels a person sees. Whatever is wrong with a file becomes a `DecodeError` that names it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from livematch.errors import DecodeError, InputError
from livematch.media.images import check_file, describe_error
from livematch.types import Pixels

DEFAULT_FRAMES = range(80, 400, 20)
"""The 16 frames of a clip that are looked at: 80, 100, ..., 380."""


MAX_REORDERED_FRAMES = 16
"""By so much the display order of H.264 differs from the decoding order at most (its max_num_reorder_frames)."""


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
    check_file(path)
    if not wanted:
        return
    num_frames = 0
    try:
        display_order = _display_order(path, wanted[-1] + 1)
        for order in (display_order, None) if display_order else (None,):
            with open_video(path) as container:
                for index, frame in _decode(container, order, frozenset(wanted)):
                    if index == wanted[0]:
                        yield wanted.pop(0), upright(frame)
                    elif index > wanted[0] and order:
                        break  # the decoder gave no picture for the packet of that time: count pictures instead
                    num_frames = index + 1
                    if not wanted:
                        return
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError(f"{path}: not a readable video after {num_frames} frames: {describe_error(error)}") from error
    raise DecodeError(f"{path}: has {num_frames} frames, so there is no frame {wanted[0]}")


def _display_order(path: Path, num_frames: int) -> dict[int, int] | None:
    """The frame index of each presentation time, for the first frames of an H.264 video.

    None where it does not follow from the packets: another codec, packets without or with equal times, packets that
    are decoded but not shown, a beginning that cannot be decoded, pictures before the first key frame, which refer to
    one that was cut off.
    """
    times: list[int] = []
    with open_video(path) as container:
        stream = video_stream(container, path)
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


def open_video(video: Path | str, timeout: float | None = None) -> InputContainer:
    return av.open(str(video), timeout=timeout, metadata_errors="replace")  # a title may be in GBK


def video_stream(container: InputContainer, video: Path | str) -> VideoStream:
    """The first one; raises DecodeError if there is none, or no decoder for it."""
    if not container.streams.video:
        raise DecodeError(f"{video}: has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError(f"{video}: not a readable video: ffmpeg has no decoder for its codec")
    return stream


def upright(frame: av.VideoFrame) -> Pixels:
    pixels = frame.to_ndarray(format="rgb24")
    num_quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, num_quarter_turns))
