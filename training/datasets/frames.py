"""Decode the annotated video frames once into a cache of JPEG files, and read images."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from livematch.errors import LivematchError
from livematch.media.videos import read_frames
from training.datasets.images import AnnotatedImage


def source_key(path: Path, *details: object) -> str:
    """Return a cache key for something derived from a file with `details`; it changes when the file is rewritten."""
    status = path.stat()
    source = (str(path.resolve()), status.st_size, status.st_mtime_ns, *details)
    return hashlib.sha256(repr(source).encode()).hexdigest()[:16]


def cache_frames(
    images: Sequence[AnnotatedImage], cache_directory: Path, *, bad: list[str] | None = None
) -> list[AnnotatedImage]:
    """Write every frame among `images` to a JPEG file under `cache_directory`, in one pass per clip.

    Frames that are cached already are not decoded again. The cache distinguishes clips of the same name, and notices
    when a clip was rewritten.

    Args:
        images: photos and frames; a frame's path is its clip.
        cache_directory: several processes may fill it at the same time.
        bad: if given, a frame that cannot be decoded is skipped, and the reason appended to it instead of raised.

    Returns:
        The images in the same order, with the path of each frame pointing to its JPEG file.

    Raises:
        ValueError: a clip cannot be decoded, or ends before an annotated frame; the message names it.
    """
    folders: dict[Path, Path] = {}
    missing: dict[Path, dict[int, Path]] = defaultdict(dict)
    cached = []
    for image in images:
        if image.frame_index is not None:
            if image.path not in folders:
                folders[image.path] = cache_directory / image.cache_folder / source_key(image.path)
            target = folders[image.path] / f"{image.frame_index}.jpg"
            if not target.exists():
                missing[image.path][image.frame_index] = target
            image = replace(image, path=target)
        cached.append(image)
    reasons: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_extract, video, targets) for video, targets in missing.items()]
        for job in tqdm(jobs, desc="extracting frames", unit="clip", disable=not jobs):
            reasons |= job.result()
            if reasons and bad is None:
                pool.shutdown(cancel_futures=True)
                raise ValueError(next(iter(reasons.values())))
    if bad is not None:
        bad += reasons.values()
    return [image for image in cached if image.path not in reasons]


def read_rgb(image: AnnotatedImage) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB of a photo or a cached frame. Raises ValueError, naming the file, if unreadable."""
    bgr = cv2.imread(str(image.path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{image.path}: not a readable image")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_size(image: AnnotatedImage, *, decode: bool = True) -> tuple[int, int]:
    """Return the (height, width) of what `read_rgb` returns, after checking that the image can be decoded.

    Args:
        image: a photo or a cached frame.
        decode: decode the whole file, to detect truncated files, which OpenCV does not report; a JPEG is decoded at
            reduced size, which is faster. False: read the header only.

    Raises:
        ValueError: the file is unreadable or truncated; the message names it.
    """
    if not cv2.haveImageReader(str(image.path)):
        raise ValueError(f"{image.path}: not a readable image")
    try:
        with Image.open(image.path) as file:
            width, height = file.size
            is_rotated = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            if decode:
                file.draft("RGB", (1, 1))
                file.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{image.path}: {error}") from error
    return (width, height) if is_rotated else (height, width)


def write_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB; `path` is a complete image or missing, as several processes may share a cache.

    Without `replace_file`, which lists the folder and waits for the disk: a cache has many files, and can be remade.
    """
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part.jpg")
    partial.write_bytes(data.tobytes())
    partial.replace(path)


def _extract(video: Path, targets: dict[int, Path]) -> dict[Path, str]:
    """Write frames of a video; return the reason for each target that could not be written."""
    missing = dict(targets)
    try:
        for index, rgb in read_frames(video, list(targets)):
            write_jpeg(missing.pop(index), rgb)
    except LivematchError as error:
        return {target: f"{error} (frame {index} is annotated)" for index, target in missing.items()}
    return {}
