"""Augmentation of the crops, with the order and strength of the reference solution."""

import cv2
import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

FILL = 114  # gray level of what an augmentation leaves empty


class RandomCLAHE(torch.nn.Module):
    """Equalise the lightness of a uint8 [3, h, w] RGB image tile by tile (CLAHE), with a random clip limit."""

    def __init__(self, max_clip_limit: float = 4.0) -> None:
        super().__init__()
        self.max_clip_limit = max_clip_limit

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        clip_limit = 1 + (self.max_clip_limit - 1) * float(torch.rand(()))
        lab = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB)
        lightness = np.ascontiguousarray(lab[:, :, 0])
        lab[:, :, 0] = cv2.createCLAHE(clip_limit, tileGridSize=(8, 8)).apply(lightness)
        return torch.from_numpy(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)).permute(2, 0, 1)


class ChannelShift(torch.nn.Module):
    """Add a random constant of at most ±`max_shift` to each colour channel of a uint8 [3, h, w] image."""

    def __init__(self, max_shift: int = 20) -> None:
        super().__init__()
        self.max_shift = max_shift

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        shift = torch.randint(-self.max_shift, self.max_shift + 1, (3, 1, 1))
        return (image.to(torch.int16) + shift).clamp(0, 255).to(torch.uint8)


class Noise(torch.nn.Module):
    """Add Gaussian noise to a uint8 [3, h, w] image: per channel, like a sensor, or the same in all channels."""

    def __init__(self, *, per_channel: bool) -> None:
        super().__init__()
        self.channels = 3 if per_channel else 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sigma = 2 + 10 * torch.rand(())
        noise = sigma * torch.randn(self.channels, *image.shape[1:])
        return (image + noise).round().clamp(0, 255).to(torch.uint8)


class Cutout(torch.nn.Module):
    """Paint a random gray rectangle over the image. Its sides are at most the fraction `max_side` of the image's."""

    def __init__(self, max_side: float = 0.63) -> None:
        super().__init__()
        self.max_side = max_side

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:]
        hole_height, hole_width = (int(self.max_side * torch.rand(()) * side) for side in (height, width))
        top = int(torch.randint(0, height - hole_height + 1, ()))
        left = int(torch.randint(0, width - hole_width + 1, ()))
        image = image.clone()
        image[:, top : top + hole_height, left : left + hole_width] = FILL
        return image


def augmentation(*, heavy: bool = True) -> v2.Transform:
    """Return the transform of uint8 [3, h, w] RGB images; if not `heavy`, it only mirrors them."""
    mirror = v2.RandomHorizontalFlip(0.5)
    if not heavy:
        return mirror
    return v2.Compose(
        [
            mirror,
            _sometimes(0.35, v2.RandomChoice([RandomCLAHE(), v2.RandomAdjustSharpness(2.0, 1.0)])),
            _sometimes(0.7, v2.ColorJitter(brightness=0.2, contrast=0.2)),
            _sometimes(
                0.6,
                v2.RandomChoice([Noise(per_channel=False), Noise(per_channel=True), v2.JPEG((70, 100))]),
            ),
            _sometimes(0.5, ChannelShift()),
            _sometimes(0.5, v2.ColorJitter(saturation=0.3, hue=0.05)),
            v2.RandomGrayscale(0.3),
            _sometimes(
                0.7,
                v2.RandomAffine(
                    8,
                    translate=(0.03, 0.03),
                    scale=(0.9, 1.1),
                    shear=(-8, 8),
                    interpolation=InterpolationMode.BILINEAR,
                    fill=FILL,
                ),
            ),
            _sometimes(0.7, Cutout()),
        ]
    )


def _sometimes(probability: float, transform: torch.nn.Module) -> v2.Transform:
    return v2.RandomApply([transform], p=probability)
