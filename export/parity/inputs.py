"""The pictures that exported files and PyTorch are compared on by default (`export.parity`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.parity.compare import ParityError
from export.parity.reference import prepare
from training.demo.designs import item_designs
from training.demo.photos import draw_photo

Pictures = dict[str, torch.Tensor]  # by name, resized images float32 [3, h, w], BGR, 0..255

IMAGE_SIZES = ((113, 97), (97, 201), (640, 360), (5, 700))  # height, width


def demo_batches() -> Iterator[Pictures]:
    """Batches for the detector: noise, and photos of the demo world in true sizes that differ within a batch."""
    for seed, pictures, height, width in (
        (1, noise(1), 256, 160),
        (2, photos(2), 320, 320),
        (3, photos(3), 288, 352),
    ):
        sizes = ((height, width), (height - 5, width - 31))
        yield {
            f"demo {seed}.{index}": functional.interpolate(
                picture[None].float(), size, mode="bilinear", antialias=True
            )[0]
            for index, (picture, size) in enumerate(zip(pictures, sizes, strict=False))
        }


def noise(seed: int) -> torch.Tensor:
    """Smooth noise, float32 [1, 3, 240, 180] BGR."""
    noise = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(noise, (240, 180), mode="bicubic")


def photos(seed: int) -> torch.Tensor:
    """Two photos of the demo world, uint8 [2, 3, 800, 800] BGR."""
    rng = np.random.default_rng(seed)
    designs = item_designs(seed, 0)
    photos = [draw_photo(designs, range(1, 1 + len(designs)), index, rng)[0] for index in (0, 2)]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)


def smooth_images() -> list[np.ndarray]:
    """Smooth random images, uint8 [1, H, W, 3]; white noise would only measure how rounding falls."""
    images = []
    for height, width in IMAGE_SIZES:
        noise = torch.from_numpy(np.random.default_rng(width).uniform(0, 255, (1, 3, 12, 9)).astype(np.float32))
        smooth = functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)
        images.append(smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    return images


def folder_batches(path: Path, config: PipelineConfig) -> Iterator[Pictures]:
    """The folder's JPEG and PNG files one by one, resized as product photos are."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ParityError(f"{path}: no JPEG or PNG files")
    mean = torch.tensor(config.detector.pixel_mean_bgr).view(3, 1, 1)
    for file in files:
        prepared = prepare(np.asarray(Image.open(file).convert("RGB"))[None].copy(), config, "image")
        height, width = prepared["image_size"][0].astype(int)
        yield {file.name: torch.from_numpy(prepared["pixels"][0, :, :height, :width]) + mean}
