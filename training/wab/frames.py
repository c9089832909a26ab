"""Video frames, decoded once into a cache of JPEG files, and reading pictures."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from training.wab.dataset import Picture


def cache_frames(pictures: Sequence[Picture], cache_directory: Path, *, num_workers: int = 2) -> list[Picture]:
    """Writes every frame among `pictures` to `cache_directory/<video_id>/<frame_index>.jpg`, one pass per clip.

    Frames that are there already are left alone. Returns the pictures in their order, the paths of frames replaced.

    Raises:
        ValueError: a clip cannot be decoded or is shorter than its annotations; the message names it.
    """
    wanted: dict[Path, dict[int, Path]] = defaultdict(dict)
    cached = []
    for picture in pictures:
        if picture.frame_index is not None:
            target = cache_directory / picture.item_id / f"{picture.frame_index}.jpg"
            if not target.exists():
                wanted[picture.path][picture.frame_index] = target
            picture = replace(picture, path=target)
        cached.append(picture)
    with ThreadPoolExecutor(num_workers) as pool:
        jobs = [pool.submit(_extract, video, targets) for video, targets in wanted.items()]
        for job in tqdm(jobs, desc="extracting frames", unit="clip", disable=not jobs):
            job.result()
    return cached


def read_rgb(picture: Picture) -> np.ndarray:
    """Returns uint8 [H, W, 3] RGB of a photo or a cached frame. Raises ValueError, naming the file, if unreadable."""
    pixels = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"{picture.path}: not a readable image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _extract(video: Path, targets: dict[int, Path]) -> None:
    missing = dict(targets)
    try:
        with av.open(str(video)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in missing:
                    _write(missing.pop(index), frame.to_ndarray(format="bgr24"))
                if not missing:
                    return
    except av.FFmpegError as error:
        raise ValueError(f"{video}: {error}") from error
    raise ValueError(f"{video}: ends before frame {min(missing)}, which its annotation describes")


def _write(path: Path, bgr: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.jpg")
    if not cv2.imwrite(str(partial), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"{partial}: could not be written")
    partial.replace(path)
