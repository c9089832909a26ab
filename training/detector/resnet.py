"""ResNet and ResNeXt with bottleneck blocks, under the tensor names of detectron2.

He et al., Deep Residual Learning (arXiv:1512.03385); Xie et al., Aggregated Residual Transformations
(arXiv:1611.05431). A norm belongs to its convolution, so a block has tensors such as res3.1.conv2.weight and
res3.1.conv2.norm.running_var.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn

NUM_BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks of the stages res2..res5. With groups, the same depths are called ResNeXt."""

STEM_CHANNELS = 64
RES2_CHANNELS = 256  # doubles with each stage


class ConvNorm(nn.Conv2d):
    """A convolution without bias, then its batch norm; both keep the resolution unless there is a stride."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, norm: str, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False)
        # Activations are applied outside, because a residual is added between norm and activation.
        norms: dict[str, Any] = {"FrozenBN": FrozenBatchNormAct2d, "BN": BatchNormAct2d}
        self.norm: nn.Module = norms[norm](out_channels, apply_act=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, h, w] to [B, out_channels, h/stride, w/stride], rounded up."""
        normed: Tensor = self.norm(super().forward(features))
        return normed


class Stem(nn.Module):
    """Reduce the resolution to a quarter: a 7 x 7 convolution and a maximum over 3 x 3, both with stride 2."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, STEM_CHANNELS, 7, norm, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [B, 3, H, W] to [B, STEM_CHANNELS, H/4, W/4]."""
        return F.max_pool2d(F.relu(self.conv1(pixels)), kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """Three convolutions, the middle one on fewer channels, whose result is added to the input."""

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        out_channels: int,
        norm: str,
        *,
        stride: int,
        groups: int,
        has_stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        first_stride, second_stride = (stride, 1) if has_stride_in_1x1 else (1, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, norm, stride=stride)
        self.conv1 = ConvNorm(in_channels, inner_channels, 1, norm, stride=first_stride)
        self.conv2 = ConvNorm(inner_channels, inner_channels, 3, norm, stride=second_stride, groups=groups)
        self.conv3 = ConvNorm(inner_channels, out_channels, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, h, w] to [B, out_channels, h/stride, w/stride]."""
        residual = self.conv3(F.relu(self.conv2(F.relu(self.conv1(features)))))
        return F.relu(residual + (features if self.shortcut is None else self.shortcut(features)))


class ResNet(nn.Module):
    """The stem and the stages res2..res5.

    Args:
        num_blocks: of each stage, such as a value of NUM_BLOCKS.
        norm: "FrozenBN" or "BN"; the same in eval mode.
        groups: of the 3 x 3 convolutions; more than 1 makes it a ResNeXt.
        group_width: channels of each group in res2; doubles with each stage.
        has_stride_in_1x1: whether the first convolution of a stage has its stride, as in the original networks;
            otherwise its 3 x 3 convolution, as in ResNeXt and torchvision's networks.
    """

    def __init__(
        self, num_blocks: Sequence[int], norm: str, *, groups: int, group_width: int, has_stride_in_1x1: bool
    ) -> None:
        super().__init__()
        self.stem = Stem(norm)
        self.channels: tuple[int, ...] = tuple(RES2_CHANNELS * 2**index for index in range(len(num_blocks)))
        before = STEM_CHANNELS
        for index, (count, after) in enumerate(zip(num_blocks, self.channels, strict=True)):
            blocks = [
                Bottleneck(
                    after if position else before,
                    groups * group_width * 2**index,
                    after,
                    norm,
                    stride=2 if index and not position else 1,
                    groups=groups,
                    has_stride_in_1x1=has_stride_in_1x1,
                )
                for position in range(count)
            ]
            self.add_module(f"res{index + 2}", nn.Sequential(*blocks))
            before = after

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """Map float32 [B, 3, H, W] (H, W multiples of 32) to [B, C, H/s, W/s] for each stride s of 4, 8, 16, 32."""
        features = self.stem(pixels)
        levels = []
        for index in range(len(self.channels)):
            features = self.get_submodule(f"res{index + 2}")(features)
            levels.append(features)
        return levels
