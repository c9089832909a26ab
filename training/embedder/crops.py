"""Garment crops for training: cut once with a margin into a cache, then jittered, resized and augmented per epoch.

    python -m training.embedder.crops --data PART [PART …] --cache DIR --max-side 600

fills the cache before several trainings share it.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from tqdm import tqdm

from training.embedder.templates import TEMPLATES, nearest_template
from training.wab.dataset import MIN_BOX_SIDE_PX, NO_INSTANCE, Picture, add_bad_pictures_option, check_bad, usable_boxes
from training.wab.frames import read_parts, read_rgb, read_size, source_key, write_jpeg

FRAMES = range(80, 361, 40)
"""Annotated frames used for training."""

MARGIN = 0.15
"""Share of a box's sides kept around it in the cache, so that the box can be jittered."""


@dataclass(frozen=True)
class Crop:
    """One garment instance in one picture, cut out."""

    path: Path  # the cut, with its margin
    box: tuple[float, float, float, float]  # of the garment, in shares of the cut's width and height
    instance_id: int
    item_id: str
    is_frame: bool
    aspect: int  # index of its template
    part: int = 0  # its place among the parts

    @property
    def identity(self) -> tuple[int, str, int]:
        """Of the garment: items and instances of other parts are others, whatever their ids."""
        return self.part, self.item_id, self.instance_id


def number_identities(crops: Sequence[Crop]) -> dict[tuple[int, str, int], int]:
    """Returns a number from 0 on for each garment."""
    return {identity: number for number, identity in enumerate(sorted({crop.identity for crop in crops}))}


def digest(crops: Sequence[Crop]) -> str:
    """Changes with the order of the crops, their garments and their boxes, but not with where they are stored."""
    facts = [(crop.identity, crop.is_frame, crop.box, crop.aspect) for crop in crops]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def prepare_crops(
    parts: Sequence[Path], cache_directory: Path, *, max_side: int, max_bad_pictures: int = 0
) -> list[Crop]:
    """Extracts frames and cuts crops of every part into a cache; instances of different parts stay apart.

    Raises ValueError, listing them, if more than `max_bad_pictures` pictures, boxes or annotation files are bad.
    """
    crops: list[Crop] = []
    bad: list[str] = []
    for part, pictures in enumerate(read_parts(parts, cache_directory, bad)):
        cut = cut_crops(pictures, cache_directory / f"crops_{max_side}", max_side=max_side, bad=bad)
        crops += [replace(crop, part=part) for crop in cut]
    check_bad(bad, max_bad_pictures)
    return crops


def cut_crops(
    pictures: Sequence[Picture], cache_directory: Path, *, max_side: int, bad: list[str] | None = None
) -> list[Crop]:
    """Cuts every garment with an instance id into `cache_directory`, scaled so that no side exceeds `max_side`.

    Frames must have been extracted (`training.wab.frames.cache_frames`); of them only `FRAMES` are used. What is
    there already is left alone, its picture not decoded; it is not used once the picture or the box has changed. Boxes
    are clipped to the picture. With a list `bad`, what cannot be used is left out and described there instead of
    raising.

    Raises:
        ValueError: a picture is unreadable or ends early, or a box lies outside it; the message names the file.
        OSError: a crop cannot be written.
    """
    wanted = [picture for picture in pictures if picture.frame_index is None or picture.frame_index in FRAMES]
    crops = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_cut, picture, cache_directory, max_side) for picture in wanted]
        for job in tqdm(jobs, desc="cutting crops", unit="picture", leave=False):
            found, reasons = job.result()
            if reasons and bad is None:
                pool.shutdown(cancel_futures=True)
                raise ValueError(reasons[0])
            if bad is not None:
                bad += reasons
            crops += found
    return crops


def _cut(picture: Picture, cache_directory: Path, max_side: int) -> tuple[list[Crop], list[str]]:
    """Returns the crops of one picture and why others could not be cut."""
    targets = [a for a in picture.annotations if a.instance_id != NO_INSTANCE]
    if not targets:
        return [], []
    folder = cache_directory / picture.item_id
    paths = [folder / f"{picture.name}_{source_key(picture.path, a.box)}.jpg" for a in targets]
    missing = {path for path in paths if not path.exists()}
    try:
        height, width = read_size(picture, decode=bool(missing))
        image = read_rgb(picture) if missing else None
    except ValueError as error:
        return [], [str(error)]
    crops, reasons = [], []
    for annotation, path in zip(targets, paths, strict=True):
        inside, _ = usable_boxes([annotation], height, width)
        if not len(inside):
            where = f"lies outside the {width} × {height} pixels, or with less than {MIN_BOX_SIDE_PX} of a side inside"
            reasons.append(f"{picture.path}: box {annotation.box} {where}")
            continue
        x0, y0, x1, y1 = inside[0].astype(int).tolist()
        margin_x, margin_y = round(MARGIN * (x1 - x0)), round(MARGIN * (y1 - y0))
        left, top = max(0, x0 - margin_x), max(0, y0 - margin_y)
        right, bottom = min(width, x1 + margin_x), min(height, y1 + margin_y)
        if path in missing:
            _write_cut(path, image[top:bottom, left:right], max_side)
        cut_width, cut_height = right - left, bottom - top
        box = ((x0 - left) / cut_width, (y0 - top) / cut_height, (x1 - left) / cut_width, (y1 - top) / cut_height)
        aspect = nearest_template(x1 - x0, y1 - y0)
        is_frame = picture.frame_index is not None
        crops.append(Crop(path, box, annotation.instance_id, picture.item_id, is_frame, aspect))
    return crops, reasons


def _write_cut(path: Path, cut: np.ndarray, max_side: int) -> None:
    height, width = cut.shape[:2]
    shrink = max_side / max(height, width)
    if shrink < 1:
        size = max(1, round(shrink * width)), max(1, round(shrink * height))
        cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
    write_jpeg(path, cv2.cvtColor(cut, cv2.COLOR_RGB2BGR))


class CropDataset(Dataset):
    """Crops as uint8 [3, h, w] tensors of their template with a class number, augmented.

    An index is (crop, template set, aspect): the batch sampler decides the size, so that a batch has one. Whatever the
    augmentation, each edge of the box moves by up to `jitter` of its side, drawn anew each time. This is not in the
    reference recipe: it is ours, as a detector's boxes are not the annotation's.
    """

    def __init__(self, crops: Sequence[Crop], augment: v2.Transform, *, jitter: float = 0.06) -> None:
        self.crops = crops
        self.jitter = jitter
        self.identities = number_identities(crops)
        self.augment = augment

    @property
    def num_identities(self) -> int:
        return len(self.identities)

    def __getitem__(self, index: tuple[int, str, int]) -> tuple[torch.Tensor, int]:
        number, template_set, aspect = index
        crop = self.crops[number]
        size = TEMPLATES[template_set][aspect]
        pixels = read_crop(crop, size, np.array(crop.box) + self._shift(crop))
        return self.augment(pixels), self.identities[crop.identity]

    def _shift(self, crop: Crop) -> np.ndarray:
        x0, y0, x1, y1 = crop.box
        reach = self.jitter * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        return reach * (2 * torch.rand(4).numpy() - 1)


def read_crop(crop: Crop, size: tuple[int, int], box: np.ndarray | None = None) -> torch.Tensor:
    """Returns uint8 [3, h, w] RGB of `box` (shares of the cut; default: the crop's own) resized to (width, height)."""
    cut = cv2.imread(str(crop.path), cv2.IMREAD_COLOR)
    if cut is None:
        raise ValueError(f"{crop.path}: not a readable image; delete the cache to cut it again")
    height, width = cut.shape[:2]
    x0, y0, x1, y1 = np.clip(crop.box if box is None else box, 0, 1) * (width, height, width, height)
    x0, y0 = min(int(x0), width - 1), min(int(y0), height - 1)
    part = cut[y0 : max(round(y1), y0 + 1), x0 : max(round(x1), x0 + 1)]
    part = cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(cv2.cvtColor(part, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).contiguous()


class AspectBatches(Sampler):
    """Batches of one template; each draws its template set, so sizes vary ("multi-scale").

    A batch is a list of (crop, template set, aspect), reshuffled every epoch from (seed, epoch). What does not fill a
    batch at a bucket's end joins the next bucket, and takes its template, so that rare aspect ratios are trained too.
    Now the widest bucket is the last, now the narrowest; what is left there is out of the epoch.
    `share` is this process's number and the number of processes, which split each batch evenly.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        *,
        batch_size: int,
        template_sets: Sequence[str],
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        rank, num_processes = share
        if batch_size % num_processes:
            raise ValueError(f"a batch of {batch_size} cannot be split evenly over {num_processes} processes")
        if len(crops) < batch_size:
            raise ValueError(f"{len(crops)} crops cannot fill a batch of {batch_size}")
        self.share = slice(rank * batch_size // num_processes, (rank + 1) * batch_size // num_processes)
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
                batches.append([(int(number), template_set, int(aspect)) for number in batch])
            rest = members[num_full * self.batch_size :]
        for place in rng.permutation(len(batches)):
            yield batches[place][self.share]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="parts of the data set")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--max-side", type=int, default=600, help="the recipe's max_crop_side, pixels")
    add_bad_pictures_option(parser)
    arguments = parser.parse_args(argv)
    crops = prepare_crops(
        arguments.data, arguments.cache, max_side=arguments.max_side, max_bad_pictures=arguments.max_bad_pictures
    )
    print(f"{len(crops)} crops in {arguments.cache}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
