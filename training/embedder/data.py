"""Training data of the embedders: cached crops, jittered, resized and augmented anew in every epoch, and batches."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from training.embedder.crops import Crop, class_labels
from training.embedder.distributed import batch_slice
from training.embedder.templates import crop_size, crop_sizes


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
        pixels = read_crop(crop, crop_size(template_set, aspect), np.array(crop.box) + self._shift(crop))
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
        batch_size: over all processes.
        template_sets: names of `crop_sizes` to choose from. If each has one size only, aspect ratios are ignored.
        seed: of the order.
        rank: number of this process.
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
            raise ValueError(f"{len(crops)} crops cannot fill a batch of {batch_size}: pass a smaller --batch")
        self.slice = batch_slice(batch_size, rank, num_processes)
        has_one_size = all(len(crop_sizes(name)) == 1 for name in template_sets)
        self.aspects = np.array([0 if has_one_size else crop.aspect for crop in crops])
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
