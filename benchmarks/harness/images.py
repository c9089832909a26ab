"""Choose and read the images that are sent to a server, from a world: an annotated data folder.

A world has `image/<item_id>/<k>.jpg` and `video/<video_id>.mp4`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from benchmarks.harness.figures import Figures
from livematch import read_frames, read_image
from livematch.errors import DecodeError, InputError
from livematch.media.sources import Source, list_images, list_videos
from livematch.media.videos import DEFAULT_FRAMES
from livematch.types import Pixels

Kind = Literal["image", "frame"]

BLANK_EVERY = 8
"""Every eighth image is blank, because not every real frame shows a garment."""


def sample_images(world: Path, kind: Kind, num_images: int, seed: int) -> list[Pixels]:
    """Return photos or frames of a world in a seeded order; in every eighth, all pixels have its mean colour.

    Returns fewer than `num_images` if the world has fewer, and raises InputError if it has none.
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
        images = [frames[index] for index in rng.permutation(len(frames))[:num_images]]
    for position in range(BLANK_EVERY - 1, len(images), BLANK_EVERY):
        pixels = images[position]
        images[position] = np.full_like(pixels, pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8))
    return images


def list_clips(world: Path, num_clips: int) -> list[Path]:
    """Return the first clips of a world; raise InputError if it has none."""
    return _paths(list_videos(world / "video")[0], world)[:num_clips]


def link_clips(clips: Sequence[Path], folder: Path) -> None:
    """Create `folder` with links to these clips, as input for `embed_videos`."""
    folder.mkdir(parents=True)
    for clip in clips:
        (folder / clip.name).symlink_to(clip.resolve())


def spread_frames(num_frames: int) -> range:
    """Return at most `num_frames` of the frames that `livematch embed` reads, evenly spaced and with the first."""
    return DEFAULT_FRAMES[:: -(-len(DEFAULT_FRAMES) // num_frames)]


def read_clips(clips: Sequence[Path], frames: Sequence[int]) -> list[Pixels]:
    return [pixels for clip in clips for _, pixels in read_frames(clip, frames)]


def seek_frame(clip: Path, index: int) -> Pixels:
    """Open a clip, seek one frame and decode it to RGB [H,W,3]; raise DecodeError if the clip has no such frame.

    The baseline does this each time it uses a frame.
    """
    video = cv2.VideoCapture(str(clip))
    video.set(cv2.CAP_PROP_POS_FRAMES, index)
    is_read, bgr = video.read()
    video.release()
    if not is_read:
        raise DecodeError(f"{clip} has no frame {index}")
    return np.ascontiguousarray(bgr[:, :, ::-1], np.uint8)


def describe_boxes(counts: Sequence[int]) -> Figures:
    """Return JSON: the number of images, their mean number of boxes, and how many images have each number of boxes."""
    return {
        "num_pictures": len(counts),
        "mean": round(float(np.mean(counts)), 3),
        "pictures_by_num_boxes": {str(count): num for count, num in sorted(Counter(counts).items())},
    }


def _paths(sources: Sequence[Source], world: Path) -> list[Path]:
    if not sources:
        raise InputError(f"{world} has no images or clips")
    return [source.path for source in sources]
