"""Choose and read the images that are sent to a server: photos and frames of a world (an annotated data folder).

A world has `image/<item_id>/<k>.jpg` and `video/<video_id>.mp4`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from livematch import Client, Recognition, read_frames, read_image
from livematch.errors import DecodeError, InputError
from livematch.media.sources import Source, list_images, list_videos
from livematch.media.videos import DEFAULT_FRAMES
from livematch.types import Pixels

Kind = Literal["image", "frame"]

BLANK_EVERY = 8
"""Every eighth image is blank, because not every real frame shows a garment."""


@dataclass(frozen=True)
class InputImage:
    """An RGB image to send, and which ensemble it is for."""

    kind: Kind
    pixels: Pixels


def sample_images(world: Path, kind: Kind, num_images: int, seed: int) -> list[InputImage]:
    """Return photos or frames of a world in a seeded order, every eighth one blank in its own mean colour.

    Fewer than `num_images` if the world has fewer. Raises InputError if it has none.
    """
    rng = np.random.default_rng(seed)
    if kind == "image":
        paths = _paths(list_images(world / "image")[0], world)
        images = [read_image(paths[index]) for index in rng.permutation(len(paths))[:num_images]]
    else:
        paths = _paths(list_videos(world / "video")[0], world)
        per_clip = -(-num_images // len(paths))
        indices = [int(index) for index in rng.permutation(DEFAULT_FRAMES)[:per_clip]]
        frames = read_clips(paths, indices)
        images = [frames[index].pixels for index in rng.permutation(len(frames))[:num_images]]
    return [
        InputImage(kind, _blank(pixels) if position % BLANK_EVERY == BLANK_EVERY - 1 else pixels)
        for position, pixels in enumerate(images)
    ]


def list_clips(world: Path, num_clips: int) -> list[Path]:
    """Return the first clips of a world; raise InputError if it has none."""
    return _paths(list_videos(world / "video")[0], world)[:num_clips]


def link_clips(clips: Sequence[Path], folder: Path) -> None:
    """Make `folder`, with links to these clips alone, as input for `embed_videos`."""
    folder.mkdir(parents=True)
    for clip in clips:
        (folder / clip.name).symlink_to(clip.resolve())


def spread_frames(num_frames: int) -> range:
    """Return at most `num_frames` of the frames that `livematch embed` reads, evenly spaced from the first."""
    return DEFAULT_FRAMES[:: -(-len(DEFAULT_FRAMES) // num_frames)]


def read_clips(clips: Sequence[Path], frames: Sequence[int]) -> list[InputImage]:
    """Decode these frames of every clip."""
    return [InputImage("frame", pixels) for clip in clips for _, pixels in read_frames(clip, frames)]


def seek_frame(clip: Path, index: int) -> Pixels:
    """Open a clip, seek one frame and decode it, as the baseline does for every single use of a frame.

    Returns:
        RGB [H,W,3].

    Raises:
        DecodeError: the clip has no such frame.
    """
    video = cv2.VideoCapture(str(clip))
    try:
        video.set(cv2.CAP_PROP_POS_FRAMES, index)
        is_read, bgr = video.read()
    finally:
        video.release()
    if not is_read:
        raise DecodeError(f"{clip} has no frame {index}")
    return np.ascontiguousarray(bgr[:, :, ::-1], np.uint8)


def recognize(client: Client, image: InputImage) -> Recognition:
    return (client.recognize_image if image.kind == "image" else client.recognize_frame)(image.pixels)


def describe_boxes(counts: Sequence[int]) -> dict[str, Any]:
    """Return JSON of how many images have how many boxes."""
    histogram = Counter(counts)
    return {
        "num_pictures": len(counts),
        "mean": round(float(np.mean(counts)), 3),
        "pictures_by_num_boxes": {str(count): histogram[count] for count in sorted(histogram)},
    }


def _paths(sources: Sequence[Source], world: Path) -> list[Path]:
    if not sources:
        raise InputError(f"{world} has no images or clips")
    return [source.path for source in sources]


def _blank(pixels: Pixels) -> Pixels:
    return np.full_like(pixels, pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8))
