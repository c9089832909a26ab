"""Play a video file or a live stream from its beginning to its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from livematch.errors import DecodeError, InputError, describe_error
from livematch.media.videos import frame_to_pixels, open_video, video_stream
from livematch.types import Pixels

STREAM_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class StreamFrame:
    """Holds one frame of a video: its index from 0, its time on the stream's own clock, and RGB, uint8 [H,W,3]."""

    frame_index: int
    time_s: float
    pixels: Pixels


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
        with open_video(video, timeout_s=STREAM_TIMEOUT_S) as container:
            for frame in container.decode(video_stream(container, video)):
                if num_decoded % every == 0:
                    yield StreamFrame(num_decoded, round(frame.time or 0.0, 3), frame_to_pixels(frame))
                num_decoded += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = describe_error(error)
        raise DecodeError(f"{video}: not a readable video after {num_decoded} frames: {reason}") from error
