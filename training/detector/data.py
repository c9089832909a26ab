"""Training batches of photos and video frames for the detector."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from training.detector.recipe import Recipe
from training.wab.dataset import Picture, usable_boxes
from training.wab.frames import read_rgb


def plan_batches(
    kinds: Sequence[bool], *, batch_size: int, iterations: int, rng: np.random.Generator
) -> list[list[int]]:
    """Returns `iterations` lists of indices into `kinds`, each list of one kind only, epoch after epoch reshuffled.

    Photos and frames differ in shape, so a batch of one kind has less padding. A kind's last batch of an epoch may be
    smaller.
    """
    groups = [group for kind in (False, True) if (group := [i for i, value in enumerate(kinds) if value == kind])]
    batches: list[list[int]] = []
    while len(batches) < iterations:
        epoch = []
        for group in groups:
            order = rng.permutation(group).tolist()
            epoch += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    return batches[:iterations]


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Returns the (height, width) that detectron2's ResizeShortestEdge resizes an image of (height, width) to."""
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes uint8 [H, W, 3] to (height, width) as detectron2 does: Pillow's bilinear filter."""
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def bgr_tensor(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """Turns uint8 [H, W, 3] RGB into uint8 [3, H, W] BGR, the detector's input."""
    return torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1)))


class Batches(Dataset[list[dict[str, Any]]]):
    """Item i is process `rank`'s share of the batch of iteration i, as detectron2's inputs.

    The batch depends on seed, recipe's name and iteration only, not on how many processes share it: a stage does not
    repeat the last one's. One that they cannot share evenly, at an epoch's end, repeats its first pictures. Pictures
    without boxes stay: all their anchors are negative.
    """

    def __init__(
        self, pictures: Sequence[Picture], recipe: Recipe, seed: int, *, rank: int = 0, num_processes: int = 1
    ) -> None:
        if recipe.batch_size % num_processes:
            raise ValueError(f"a batch of {recipe.batch_size} cannot be shared by {num_processes} processes")
        self.pictures = pictures
        self.recipe = recipe
        self.seed = (seed, zlib.crc32(recipe.name.encode()))
        self.rank = rank
        self.num_processes = num_processes
        self.plan = plan_batches(
            [picture.frame_index is not None for picture in pictures],
            batch_size=recipe.batch_size,
            iterations=recipe.iterations,
            rng=np.random.default_rng(self.seed),
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, iteration: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng((*self.seed, iteration))
        pictures = [self.pictures[index] for index in self.plan[iteration]]
        is_frame = pictures[0].frame_index is not None
        smallest, largest = self.recipe.frame_short_sides_px if is_frame else self.recipe.photo_short_sides_px
        short_side = int(rng.integers(smallest, largest, endpoint=True))
        flips = rng.random(len(pictures)) < 0.5
        share = math.ceil(len(pictures) / self.num_processes)
        places = [place % len(pictures) for place in range(self.rank * share, (self.rank + 1) * share)]
        return [self._input(pictures[place], short_side, bool(flips[place])) for place in places]

    def _input(self, picture: Picture, short_side: int, flip: bool) -> dict[str, Any]:
        rgb = read_rgb(picture)
        height, width = rgb.shape[:2]
        boxes, _ = usable_boxes(picture.annotations, height, width)
        size = resized_size(height, width, short_side, self.recipe.max_side_px)
        rgb = resize(rgb, size)
        boxes = boxes * np.array([size[1] / width, size[0] / height] * 2, np.float32)
        if flip:
            rgb = rgb[:, ::-1]
            boxes = np.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], axis=1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
        return {"image": bgr_tensor(rgb), "instances": instances}
