"""The images on which exported files are compared with PyTorch.

`images/` holds four photos of two garments, each alone and worn by a mannequin, 400 × 400 pixels. They were drawn by
`training.demo.photos.draw_photo` for the designs of seeds 2 and 3.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.parity.reference import prepare

Images = dict[str, torch.Tensor]  # by name: resized images float32 [3, h, w], BGR, 0..255

IMAGE_SIZES = ((113, 97), (97, 201), (640, 360), (5, 700))  # height, width
_PHOTOS = Path(__file__).parent / "images"


def detector_batches() -> Iterator[Images]:
    """Yield batches for the detector: smooth noise, then photos at true sizes that differ within a batch."""
    photos = garment_photos()
    for batch, images, height, width in (
        (1, smooth_noise(1), 256, 160),
        (2, photos[:2], 320, 320),
        (3, photos[2:], 288, 352),
    ):
        sizes = ((height, width), (height - 5, width - 31))
        yield {
            f"batch {batch} image {index}": functional.interpolate(image[None], size, mode="bilinear", antialias=True)[
                0
            ]
            for index, (image, size) in enumerate(zip(images, sizes, strict=False))
        }


def smooth_noise(seed: int) -> torch.Tensor:
    """Return smooth noise, float32 [1, 3, 240, 180] BGR."""
    noise = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(noise, (240, 180), mode="bicubic")


def garment_photos() -> torch.Tensor:
    """Return the photos in `images/`, float32 [4, 3, 400, 400] BGR: a garment alone, worn, the other alone, worn."""
    names = ("alone_1", "worn_1", "alone_2", "worn_2")
    photos = np.stack([np.asarray(Image.open(_PHOTOS / f"{name}.jpg")) for name in names])
    return torch.from_numpy(photos).permute(0, 3, 1, 2).flip(1).float()


def smooth_images() -> list[np.ndarray[Any, Any]]:
    """Return smooth random images, uint8 [1, H, W, 3]; white noise would only measure how halves are rounded."""
    images = []
    for height, width in IMAGE_SIZES:
        noise = torch.from_numpy(np.random.default_rng(width).uniform(0, 255, (1, 3, 12, 9)).astype(np.float32))
        smooth = functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)
        images.append(smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    return images


def folder_batches(folder: Path, config: PipelineConfig) -> Iterator[Images]:
    """Yield the folder's JPEG and PNG files one by one, resized as product photos are.

    Raises ValueError if there are none, and OSError for a folder or file that cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ValueError(f"{folder}: no JPEG or PNG files")
    mean = torch.tensor(config.detector.pixel_mean_bgr).view(3, 1, 1)
    for file in files:
        prepared = prepare(np.asarray(Image.open(file).convert("RGB"))[None].copy(), config, "image")
        height, width = prepared["image_size"][0].astype(int)
        yield {file.name: torch.from_numpy(prepared["pixels"][0, :, :height, :width]) + mean}
