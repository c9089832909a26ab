"""The images on which exported files are compared with PyTorch.

`images/` holds four images of 400 × 400 pixels that show two garments, each alone and worn by a mannequin. They were
rendered by `training.demo.photos.draw_photo`, with the designs of seeds 2 and 3.
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
    """Yield batches of images for the detector: smooth noise, then photos whose sizes differ within a batch."""
    photos = garment_photos()
    for batch, images, height, width in (
        (1, smooth_noise(1), 256, 160),
        (2, photos[:2], 320, 320),
        (3, photos[2:], 288, 352),
    ):
        sizes = ((height, width), (height - 5, width - 31))
        pairs = zip(images[:, None], sizes, strict=False)
        resized = [functional.interpolate(image, size, mode="bilinear", antialias=True)[0] for image, size in pairs]
        yield {f"batch {batch} image {index}": image for index, image in enumerate(resized)}


def smooth_noise(seed: int) -> torch.Tensor:
    """Return smooth noise, float32 [1, 3, 240, 180] BGR."""
    noise = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(noise, (240, 180), mode="bicubic")


def garment_photos() -> torch.Tensor:
    """Return the photos in `images/`, float32 [4, 3, 400, 400] BGR: one garment alone and worn, then the other one."""
    names = ("alone_1", "worn_1", "alone_2", "worn_2")
    photos = np.stack([np.asarray(Image.open(_PHOTOS / f"{name}.jpg")) for name in names])
    return torch.from_numpy(photos).permute(0, 3, 1, 2).flip(1).float()


def smooth_images() -> list[np.ndarray[Any, Any]]:
    """Return a smooth random image, uint8 [1, H, W, 3], of each of IMAGE_SIZES.

    Smooth, because with white noise the differences would mostly show how halves are rounded.
    """
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
    detector = config.detector_config
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.pixel_mean_bgr, detector.pixel_std_bgr))
    for file in files:
        prepared = prepare(np.asarray(Image.open(file).convert("RGB"))[None].copy(), config, "image")
        height, width = prepared["image_size"][0].astype(int)
        yield {file.name: torch.from_numpy(prepared["pixels"][0, :, :height, :width]) * std + mean}
