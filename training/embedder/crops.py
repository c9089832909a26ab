"""Cut garments out of the images: once, with a margin, into a cache; in every epoch, jitter, resize and augment them.

Before starting several trainings that share a cache, fill it:

    python -m training.embedder.crops --data PART [PART …] --cache DIR --max-side 600
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from tqdm import tqdm

from livematch.cli.commands import run_command
from training.embedder.distributed import batch_slice
from training.embedder.templates import TEMPLATES, nearest_template
from training.wab.dataset import (
    MIN_BOX_SIDE_PX,
    NO_INSTANCE,
    AnnotatedImage,
    Annotation,
    add_max_bad_images_option,
    check_bad,
    usable_boxes,
)
from training.wab.frames import read_parts, read_rgb, read_size, source_key, write_jpeg

FRAMES = range(80, 361, 40)
"""The annotated frames that are used."""

MARGIN = 0.15
"""Margin that is kept around a box in the cache, as a fraction of its sides, so that the box can be jittered."""


@dataclass(frozen=True)
class Crop:
    """One garment cut out of one image."""

    path: Path  # JPEG file of the garment with its margin
    box: tuple[float, float, float, float]  # of the garment, in fractions of the file's width and height
    instance_id: int
    item_id: str
    is_frame: bool
    aspect: int  # index of its template
    part: int = 0  # index of its part of the data set

    @property
    def identity(self) -> tuple[int, str, int]:
        """The key of the garment. It includes the part, because equal ids in different parts are different garments."""
        return self.part, self.item_id, self.instance_id


def class_labels(crops: Sequence[Crop]) -> dict[tuple[int, str, int], int]:
    """Number the garments from 0; return the class label by `Crop.identity`."""
    return {identity: label for label, identity in enumerate(sorted({crop.identity for crop in crops}))}


def digest(crops: Sequence[Crop]) -> str:
    """Return a hash of the crops' garments, boxes and order; it does not depend on where the files are."""
    facts = [(crop.identity, crop.is_frame, crop.box, crop.aspect) for crop in crops]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def prepare_crops(
    parts: Sequence[Path], cache_directory: Path, *, max_side_px: int, max_bad_images: int = 0
) -> list[Crop]:
    """Extract the frames and cut the crops of every part into a cache.

    Raises ValueError, listing them, if more than `max_bad_images` images, boxes or annotation files are unusable.
    """
    crops: list[Crop] = []
    bad: list[str] = []
    for part, images in enumerate(read_parts(parts, cache_directory, bad)):
        cut = cut_crops(images, cache_directory / f"crops_{max_side_px}", max_side_px=max_side_px, bad=bad)
        crops += [replace(crop, part=part) for crop in cut]
    check_bad(bad, max_bad_images)
    return crops


def cut_crops(
    images: Sequence[AnnotatedImage], cache_directory: Path, *, max_side_px: int, bad: list[str] | None = None
) -> list[Crop]:
    """Cut every garment with an instance id into `cache_directory`.

    Boxes are clipped to the image. Crops that are in the cache already are not cut again, unless the image or the box
    has changed.

    Args:
        images: photos and extracted frames (`training.wab.frames.cache_frames`); only the frames in FRAMES are used.
        cache_directory: receives one JPEG file per garment.
        max_side_px: larger crops are shrunk to this length of their longer side.
        bad: if given, unusable images and boxes are skipped, and the reasons appended to it instead of raised.

    Raises:
        ValueError: an image is unreadable or truncated, or a box lies outside it; the message names the file.
        OSError: a crop cannot be written.
    """
    used = [image for image in images if image.frame_index is None or image.frame_index in FRAMES]
    crops = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_cut, image, cache_directory, max_side_px) for image in used]
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
    folder = cache_directory / image.item_id
    paths = [folder / f"{image.name}_{source_key(image.path, a.box)}.jpg" for a in garments]
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
            reasons.append(f"{image.path}: box {garment.box} lies {where}")
            continue
        crop, (left, top, right, bottom) = _with_margin(image, garment, path, inside[0], height, width)
        if pixels is not None and path in missing:
            _write_crop(path, pixels[top:bottom, left:right], max_side_px)
        crops.append(crop)
    return crops, reasons


def _with_margin(
    image: AnnotatedImage, garment: Annotation, path: Path, box: np.ndarray, height: int, width: int
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


class CropDataset(Dataset[tuple[torch.Tensor, int]]):
    """Data set of augmented crops, uint8 [3, h, w], with their class labels.

    It is indexed by (crop, template set, aspect): the batch sampler chooses the size, so that a batch has one shape.
    Besides the augmentation, each edge of the box is moved randomly by up to the fraction `jitter` of the box's side.
    This is not part of the reference recipe; it accounts for detected boxes being less exact than annotated ones.
    """

    def __init__(self, crops: Sequence[Crop], augment: v2.Transform, *, jitter: float = 0.06) -> None:
        self.crops = crops
        self.jitter = jitter
        self.labels = class_labels(crops)
        self.augment = augment

    @property
    def num_identities(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: tuple[int, str, int]) -> tuple[torch.Tensor, int]:
        crop_index, template_set, aspect = index
        crop = self.crops[crop_index]
        size = TEMPLATES[template_set][aspect]
        pixels = read_crop(crop, size, np.array(crop.box) + self._shift(crop))
        return self.augment(pixels), self.labels[crop.identity]

    def _shift(self, crop: Crop) -> np.ndarray:
        x0, y0, x1, y1 = crop.box
        max_shift = self.jitter * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        shift: np.ndarray = max_shift * (2 * torch.rand(4).numpy() - 1)
        return shift


def read_crop(crop: Crop, size: tuple[int, int], box: np.ndarray | None = None) -> torch.Tensor:
    """Read a box of a crop and resize it to (width, height).

    Args:
        crop: the crop.
        size: (width, height) in pixels.
        box: x0 y0 x1 y1 in fractions of the cached file's width and height; default: the garment's box.

    Returns:
        uint8 [3, h, w] RGB.

    Raises:
        ValueError: the cached file is unreadable.
    """
    cached = cv2.imread(str(crop.path), cv2.IMREAD_COLOR)
    if cached is None:
        raise ValueError(f"{crop.path}: not a readable image; delete the cache to cut it again")
    height, width = cached.shape[:2]
    x0, y0, x1, y1 = np.clip(crop.box if box is None else box, 0, 1) * (width, height, width, height)
    x0, y0 = min(int(x0), width - 1), min(int(y0), height - 1)
    inside = cached[y0 : max(round(y1), y0 + 1), x0 : max(round(x1), x0 + 1)]
    inside = cv2.resize(inside, size, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(cv2.cvtColor(inside, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).contiguous()


class AspectBatches(Sampler[list[tuple[int, str, int]]]):
    """Batch sampler: the crops of a batch have one template, from a randomly chosen set ("multi-scale").

    A batch is a list of (crop, template set, aspect), the index of `CropDataset`. Batches are reshuffled in every
    epoch, depending on (seed, epoch). Crops that do not fill a batch at the end of an aspect ratio are moved to the
    next one and take its template, so that rare aspect ratios are trained as well. Whether the widest or the narrowest
    aspect ratio comes last is random; the crops that are left over there are not used in that epoch.

    Args:
        crops: the data set.
        batch_size: crops in a batch, over all processes.
        template_sets: keys of TEMPLATES to choose from.
        seed: decides the order, together with the epoch.
        rank: index of this process.
        num_processes: number of processes, which split each batch evenly.

    Raises:
        ValueError: the crops do not fill a batch, or the batch cannot be split evenly.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        *,
        batch_size: int,
        template_sets: Sequence[str],
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if len(crops) < batch_size:
            raise ValueError(f"{len(crops)} crops cannot fill a batch of {batch_size}")
        self.slice = batch_slice(batch_size, rank, num_processes)
        self.aspects = np.array([crop.aspect for crop in crops])
        self.batch_size = batch_size
        self.template_sets = list(template_sets)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.aspects) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, str, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = []
        rest = np.array([], int)
        for aspect in np.unique(self.aspects)[:: rng.choice([1, -1])]:
            members = rng.permutation(np.append(rest, np.flatnonzero(self.aspects == aspect)))
            num_full = len(members) // self.batch_size
            for batch in members[: num_full * self.batch_size].reshape(num_full, self.batch_size):
                template_set = str(rng.choice(self.template_sets))
                batches.append([(int(crop), template_set, int(aspect)) for crop in batch])
            rest = members[num_full * self.batch_size :]
        for index in rng.permutation(len(batches)):
            yield batches[index][self.slice]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.crops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="PART", help="parts of the data set")
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--max-side",
        type=int,
        default=600,
        metavar="PX",
        help="longest side of a cached crop: max_crop_side_px of the recipe",
    )
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
