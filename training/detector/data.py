"""Resize, flip and batch photos and video frames for the training of the detector."""

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

from training.datasets.frames import read_rgb
from training.datasets.images import AnnotatedImage, usable_boxes
from training.detector.recipe import Recipe


def plan_batches(
    are_frames: Sequence[bool], *, batch_size: int, iterations: int, rng: np.random.Generator
) -> list[list[int]]:
    """Plan the batches of a training, reshuffled every epoch.

    A batch has either photos or frames: their shapes differ, and images of one shape need less padding. The last batch
    of photos and the last batch of frames in an epoch may be smaller than the others.

    Args:
        are_frames: for each image, whether it is a frame.
        batch_size: images in a batch.
        iterations: number of batches.
        rng: decides the order.

    Returns:
        `iterations` lists of image indices.
    """
    groups = [np.flatnonzero(np.array(are_frames, bool) == kind) for kind in (False, True)]
    batches: list[list[int]] = []
    while len(batches) < iterations:
        epoch = []
        for group in filter(len, groups):
            order = rng.permutation(group).tolist()
            epoch += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    return batches[:iterations]


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Return the (height, width) to which detectron2's ResizeShortestEdge resizes an image of (height, width)."""
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to (height, width) with Pillow's bilinear filter, as detectron2 does."""
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def bgr_tensor(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 [H, W, 3] RGB to uint8 [3, H, W] BGR, the input of the detector."""
    return torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1)))


class Batches(Dataset[list[dict[str, Any]]]):
    """Data set whose item i is what process `rank` trains on in iteration i, as detectron2's inputs.

    A batch depends only on the seed, the recipe's name and the iteration. The number of processes does not change it:
    they split it, and if it cannot be split evenly (at the end of an epoch), its first images are repeated. The
    recipe's name is included so that a stage does not see the batches of the previous stage again. Images without
    boxes are kept: all their anchors are negative.
    """

    def __init__(
        self, images: Sequence[AnnotatedImage], recipe: Recipe, seed: int, *, rank: int = 0, num_processes: int = 1
    ) -> None:
        if recipe.batch_size % num_processes:
            raise ValueError(f"a batch of {recipe.batch_size} cannot be split evenly over {num_processes} processes")
        self.images = images
        self.recipe = recipe
        self.seed = (seed, zlib.crc32(recipe.name.encode()))
        self.rank = rank
        self.num_processes = num_processes
        self.plan = plan_batches(
            [image.is_frame for image in images],
            batch_size=recipe.batch_size,
            iterations=recipe.iterations,
            rng=np.random.default_rng(self.seed),
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, iteration: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng((*self.seed, iteration))
        images = [self.images[index] for index in self.plan[iteration]]
        smallest, largest = self.recipe.frame_short_sides_px if images[0].is_frame else self.recipe.photo_short_sides_px
        short_side = int(rng.integers(smallest, largest, endpoint=True))
        flips = rng.random(len(images)) < 0.5
        per_process = math.ceil(len(images) / self.num_processes)
        indices = [i % len(images) for i in range(self.rank * per_process, (self.rank + 1) * per_process)]
        return [self._input(images[i], short_side, bool(flips[i])) for i in indices]

    def _input(self, image: AnnotatedImage, short_side: int, flip: bool) -> dict[str, Any]:
        rgb = read_rgb(image)
        height, width = rgb.shape[:2]
        boxes, usable = usable_boxes(image.annotations, height, width)
        classes = np.array([annotation.class_id for annotation in image.annotations], np.int64)[usable]
        size = resized_size(height, width, short_side, self.recipe.max_side_px)
        rgb = resize(rgb, size)
        boxes = boxes * np.array([size[1] / width, size[0] / height] * 2, np.float32)
        if flip:
            rgb = rgb[:, ::-1]
            boxes = np.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], axis=1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.from_numpy(classes)
        return {"image": bgr_tensor(rgb), "instances": instances}
