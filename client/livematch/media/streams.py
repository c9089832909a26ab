"""Streams and files played from beginning to end."""

from collections.abc import Iterator
from dataclasses import dataclass

import av

from livematch.errors import DecodeError, InputError
from livematch.media.images import describe_error
from livematch.media.videos import open_video, upright, video_stream
from livematch.types import Pixels

STREAM_TIMEOUT_S = 30.0


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
        with open_video(video, timeout=STREAM_TIMEOUT_S) as container:
            for frame in container.decode(video_stream(container, video)):
                if num_decoded % every == 0:
                    yield StreamFrame(num_decoded, round(frame.time or 0.0, 3), upright(frame))
                num_decoded += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(
            f"{video}: not a readable video after {num_decoded} frames: {describe_error(error)}"
        ) from error
