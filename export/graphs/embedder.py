"""The embedder as it is exported: it maps uint8 crops of any size to unit vectors."""

import copy
from collections.abc import Iterator

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from training.embedder.model import Embedder


class EmbedderGraph(nn.Module):
    """A copy of an embedder, in eval mode, that normalises its input and its output and can be exported."""

    mean: Tensor
    std: Tensor

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = _with_parity_padding(copy.deepcopy(embedder))
        self.register_buffer("mean", torch.tensor(embedder.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(embedder.config.std).view(3, 1, 1))
        self.eval()

    def half_modules(self) -> Iterator[nn.Module]:
        """Yield the parts that half precision turns into float16."""
        yield self.embedder.backbone

    def forward(self, crops: Tensor) -> Tensor:
        """Map uint8 [n, h, w, 3] RGB to float32 [n, 512] of unit length."""
        pixels = (crops.float().permute(0, 3, 1, 2) - self.mean) / self.std
        dtype = next(self.embedder.backbone.parameters()).dtype
        return functional.normalize(self.embedder(pixels.to(dtype)))  # GeM returns to float32


class ParityPaddedConv(nn.Module):
    """Convolution with TensorFlow's "SAME" padding, for stride 2 and an odd kernel size k.

    With a = k // 2, each axis is padded by (a - 1 + size mod 2) before and a after. At every size this equals timm's
    formula, which rounds up a quotient. This form needs no rounding and no branches, so exporters keep it symbolic.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.stride != (2, 2) or conv.dilation != (1, 1) or any(size % 2 == 0 for size in conv.kernel_size):
            raise ValueError(f"not a stride-2 convolution with an odd kernel: {conv}")
        height, width = conv.kernel_size
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (height, width),
            stride=2,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.conv.weight = conv.weight
        self.conv.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        half_h, half_w = (size // 2 for size in self.conv.kernel_size)
        height, width = x.shape[-2:]
        padded = functional.pad(x, (half_w - 1 + width % 2, half_w, half_h - 1 + height % 2, half_h))
        convolved: Tensor = self.conv(padded)
        return convolved


def _with_parity_padding(embedder: Embedder) -> Embedder:
    for name, module in list(embedder.named_modules()):
        if isinstance(module, Conv2dSame):
            embedder.set_submodule(name, ParityPaddedConv(module))
    return embedder
