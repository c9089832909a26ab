"""Cut garments out of the images, with a margin, into a cache from which the embedders are trained.

    python -m training.embedder.crops --data DATA [DATA …] --cache DIR --max-side 600

fills the cache before several trainings that share it start.
"""

import argparse
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from livematch.cli.commands import run_command
from training.datasets.frames import read_rgb, read_size, source_key, write_jpeg
from training.datasets.images import (
    MIN_BOX_SIDE_PX,
    NO_INSTANCE,
    AnnotatedImage,
    BoxAnnotation,
    add_max_bad_images_option,
    check_bad,
    usable_boxes,
)
from training.datasets.sources import IDENTITIES_HELP, read_identities
from training.embedder.templates import nearest_template

MARGIN = 0.15
"""Margin that is kept around a box in the cache, as a fraction of its sides, so that the box can be jittered."""

_NAME_LENGTH = 40  # characters of an image's name in that of its crop; a file name may have 255 bytes, also in Chinese


@dataclass(frozen=True)
class Crop:
    """One garment cut out of one image."""

    path: Path  # JPEG file of the garment with its margin
    box: tuple[float, float, float, float]  # of the garment, in fractions of the file's width and height
    instance_id: int
    item_id: str
    is_frame: bool
    aspect: int  # index of its template
    source: int = 0  # index of its --data argument

    @property
    def identity(self) -> tuple[int, str, int]:
        """Identifies the garment; equal ids in different --data arguments are different garments."""
        return self.source, self.item_id, self.instance_id


def class_labels(crops: Sequence[Crop]) -> dict[tuple[int, str, int], int]:
    """Return the class label, from 0 on, of each garment (`Crop.identity`)."""
    return {identity: label for label, identity in enumerate(sorted({crop.identity for crop in crops}))}


def digest(crops: Sequence[Crop]) -> str:
    """Return a hash of the crops' garments, boxes and order; it does not depend on where the files are."""
    facts = [(crop.identity, crop.is_frame, crop.box, crop.aspect) for crop in crops]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def prepare_crops(
    sources: Sequence[Path],
    cache_directory: Path,
    *,
    max_side_px: int,
    max_bad_images: int = 0,
    split: str | None = None,
) -> list[Crop]:
    """Extract the frames and cut the crops of every source into a cache; see `read_identities` for `split`.

    Raises ValueError, listing them, if more than `max_bad_images` images, boxes or annotation files are unusable.
    """
    crops: list[Crop] = []
    bad: list[str] = []
    for source, images in enumerate(read_identities(sources, cache_directory, bad, split=split)):
        cut = cut_crops(images, cache_directory / f"crops_{max_side_px}", max_side_px=max_side_px, bad=bad)
        crops += [replace(crop, source=source) for crop in cut]
    check_bad(bad, max_bad_images)
    return crops


def cut_crops(
    images: Sequence[AnnotatedImage], cache_directory: Path, *, max_side_px: int, bad: list[str] | None = None
) -> list[Crop]:
    """Cut every garment with an instance id into `cache_directory`.

    Boxes are clipped to the image. What is in the cache already is neither decoded nor cut again, unless the image or
    the box has changed.

    Args:
        images: photos and extracted frames (`training.datasets.frames.cache_frames`).
        cache_directory: receives one JPEG file per garment.
        max_side_px: larger crops are shrunk to this length of their longer side.
        bad: if given, what is unusable is skipped and the reason is appended here instead of raised.

    Raises:
        ValueError: an image is unreadable or truncated, or a box lies outside it; the message names the file.
        OSError: a crop cannot be written.
    """
    crops = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_cut, image, cache_directory, max_side_px) for image in images]
        for job in tqdm(jobs, desc="cutting crops", unit="image", leave=False):
            cut, reasons = job.result()
            if reasons and bad is None:
                pool.shutdown(cancel_futures=True)
                raise ValueError(reasons[0])
            if bad is not None:
                bad += reasons
            crops += cut
    return crops


def _cut(image: AnnotatedImage, cache_directory: Path, max_side_px: int) -> tuple[list[Crop], list[str]]:
    """Return the crops of one image, and the reasons why others could not be cut."""
    garments = [a for a in image.annotations if a.instance_id != NO_INSTANCE]
    if not garments:
        return [], []
    folder = cache_directory / image.cache_folder
    name = image.name[:_NAME_LENGTH]
    paths = [folder / f"{name}_{source_key(image.path, a.box)}.jpg" for a in garments]
    missing = {path for path in paths if not path.exists()}
    try:
        height, width = read_size(image, decode=bool(missing))
        pixels = read_rgb(image) if missing else None
    except ValueError as error:
        return [], [str(error)]
    crops, reasons = [], []
    for garment, path in zip(garments, paths, strict=True):
        inside, _ = usable_boxes([garment], height, width)
        if not len(inside):
            where = f"outside the {width} × {height} pixels, or with less than {MIN_BOX_SIDE_PX} pixels inside"
            reasons.append(f"{image.described_in or image.path}: box {garment.box} lies {where}")
            continue
        crop, (left, top, right, bottom) = _with_margin(image, garment, path, inside[0], height, width)
        if pixels is not None and path in missing:
            _write_crop(path, pixels[top:bottom, left:right], max_side_px)
        crops.append(crop)
    return crops, reasons


def _with_margin(
    image: AnnotatedImage, garment: BoxAnnotation, path: Path, box: np.ndarray, height: int, width: int
) -> tuple[Crop, tuple[int, int, int, int]]:
    """Return the crop of a clipped box in an image of (height, width), and its region: left, top, right, bottom."""
    x0, y0, x1, y1 = box.astype(int).tolist()
    margin_x, margin_y = round(MARGIN * (x1 - x0)), round(MARGIN * (y1 - y0))
    left, top = max(0, x0 - margin_x), max(0, y0 - margin_y)
    right, bottom = min(width, x1 + margin_x), min(height, y1 + margin_y)
    crop_width, crop_height = right - left, bottom - top
    inner = ((x0 - left) / crop_width, (y0 - top) / crop_height, (x1 - left) / crop_width, (y1 - top) / crop_height)
    aspect = nearest_template(x1 - x0, y1 - y0)
    crop = Crop(path, inner, garment.instance_id, image.item_id, image.is_frame, aspect)
    return crop, (left, top, right, bottom)


def _write_crop(path: Path, rgb: np.ndarray, max_side_px: int) -> None:
    height, width = rgb.shape[:2]
    shrink = max_side_px / max(height, width)
    if shrink < 1:
        size = max(1, round(shrink * width)), max(1, round(shrink * height))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    write_jpeg(path, rgb)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.crops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DATA", help=IDENTITIES_HELP)
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR")
    parser.add_argument("--max-side", type=int, default=600, metavar="PX", help="max_crop_side_px of the recipe")
    add_max_bad_images_option(parser)
    return run_command("training.embedder.crops", partial(_run, parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.max_side < 1:
        raise ValueError(f"--max-side is {arguments.max_side}, not a positive number")
    crops = prepare_crops(
        arguments.data, arguments.cache, max_side_px=arguments.max_side, max_bad_images=arguments.max_bad_images
    )
    print(f"{len(crops)} crops in {arguments.cache}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
