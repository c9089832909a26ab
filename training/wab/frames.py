"""Video frames, decoded once into a cache of JPEG files, and reading pictures."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from training.wab.dataset import Picture, read_part


def read_parts(directories: Sequence[Path], cache_directory: Path, bad: list[str] | None = None) -> list[list[Picture]]:
    """Returns each part's pictures, their frames extracted to `cache_directory/frames`.

    Raises ValueError if a part is given twice; else as `read_part` and `cache_frames`.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise ValueError(f"a part is given twice: {[str(directory) for directory in directories]}")
    return [cache_frames(read_part(directory, bad), cache_directory / "frames", bad=bad) for directory in directories]


def source_key(path: Path, *details: object) -> str:
    """Returns a name for what is made from a file and these details: another one once the file is written again."""
    status = path.stat()
    made_from = (str(path.resolve()), status.st_size, status.st_mtime_ns, *details)
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]


def cache_frames(pictures: Sequence[Picture], cache_directory: Path, *, bad: list[str] | None = None) -> list[Picture]:
    """Writes every frame among `pictures` to a JPEG under `cache_directory/<video_id>`, one pass per clip.

    Frames that are there already are left alone; those of a clip that changed since, or of another clip of the same
    name, have other paths. Returns the pictures in their order, the paths of frames replaced.
    With a list `bad`, a frame that cannot be had is left out and described there instead of raising.

    Raises:
        ValueError: a clip cannot be decoded or is shorter than its annotations; the message names it.
    """
    folders: dict[Path, Path] = {}
    wanted: dict[Path, dict[int, Path]] = defaultdict(dict)
    cached = []
    for picture in pictures:
        if picture.frame_index is not None:
            if picture.path not in folders:
                folders[picture.path] = cache_directory / picture.item_id / source_key(picture.path)
            target = folders[picture.path] / f"{picture.frame_index}.jpg"
            if not target.exists():
                wanted[picture.path][picture.frame_index] = target
            picture = replace(picture, path=target)
        cached.append(picture)
    reasons: dict[Path, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_extract, video, targets) for video, targets in wanted.items()]
        for job in tqdm(jobs, desc="extracting frames", unit="clip", disable=not jobs):
            reasons |= job.result()
            if reasons and bad is None:
                raise ValueError(next(iter(reasons.values())))
    if bad is not None:
        bad += reasons.values()
    return [picture for picture in cached if picture.path not in reasons]


def read_rgb(picture: Picture) -> np.ndarray:
    """Returns uint8 [H, W, 3] RGB of a photo or a cached frame. Raises ValueError, naming the file, if unreadable."""
    pixels = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"{picture.path}: not a readable image")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_size(picture: Picture, *, decode: bool = True) -> tuple[int, int]:
    """Returns the (height, width) that `read_rgb` gives, having decoded all of the file, a JPEG in small.

    Without `decode` only its header is read. Raises ValueError, naming the file, if it is unreadable or, which
    `read_rgb` does not notice and its header does not tell, ends early.
    """
    if not cv2.haveImageReader(str(picture.path)):
        raise ValueError(f"{picture.path}: not a readable image")
    try:
        with Image.open(picture.path) as image:
            width, height = image.size
            lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            if decode:
                image.draft("RGB", (1, 1))
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{picture.path}: {error}") from error
    return (width, height) if lies_on_its_side else (height, width)


def write_jpeg(path: Path, bgr: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] BGR, so that `path` is a whole picture or not there. Raises OSError if it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part.jpg")  # of this process, as several may fill one cache
    if not cv2.imwrite(str(partial), bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"{path}: could not be written")
    partial.replace(path)


def _extract(video: Path, targets: dict[int, Path]) -> dict[Path, str]:
    """Returns why, for each target that was not written.

    Nothing after a frame that cannot be decoded is used: places are counted, so later frames would be mistaken.
    """
    missing = dict(targets)
    error: av.FFmpegError | None = None
    try:
        with av.open(str(video), metadata_errors="replace") as container:  # a title may be in any encoding
            if not container.streams.video:
                return {target: f"{video}: has no video stream" for target in targets.values()}
            for index, frame in enumerate(container.decode(video=0)):
                if index in missing:
                    write_jpeg(missing.pop(index), frame.to_ndarray(format="bgr24"))
                if not missing:
                    break
    except av.FFmpegError as failure:
        error = failure
    return {
        target: f"{video}: cannot be decoded up to frame {index}: {error}"
        if error
        else f"{video}: ends before frame {index}, which its annotation describes"
        for index, target in missing.items()
    }
