"""An embedder as it is served: uint8 crops to unit vectors, with batch, height and width left open."""

import copy

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from export.onnx.precision import PRECISIONS, to_half
from training.embedder.model import Embedder


class ServedEmbedder(nn.Module):
    """crops uint8 [n, h, w, 3] RGB → embedding float32 [n, 512] of unit length, in either precision."""

    def __init__(self, embedder: Embedder, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, not one of {PRECISIONS}")
        super().__init__()
        self.embedder = _with_parity_padding(copy.deepcopy(embedder)).eval()
        if precision == "fp16":
            to_half(self.embedder.backbone)
        self.dtype = next(self.embedder.backbone.parameters()).dtype
        self.register_buffer("mean", torch.tensor(embedder.config.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(embedder.config.std).view(3, 1, 1))

    def forward(self, crops: Tensor) -> Tensor:
        pixels = (crops.float().permute(0, 3, 1, 2) - self.mean) / self.std
        return functional.normalize(self.embedder(pixels.to(self.dtype)))  # GeM goes back to float32


class ParityPaddedConv(nn.Module):
    """TF's "SAME" padding for stride 2 and an odd kernel k, as arithmetic an exporter can keep symbolic.

    With a = k // 2 the padding is (a - 1 + size mod 2, a) for each axis, which equals timm's ceil formula at every size
    and needs no branch.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if conv.stride != (2, 2) or conv.dilation != (1, 1) or any(size % 2 == 0 for size in conv.kernel_size):
            raise ValueError(f"not a stride-2 convolution with an odd kernel: {conv}")
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=2,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.conv.weight = conv.weight
        self.conv.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        half_h, half_w = (size // 2 for size in self.conv.kernel_size)
        height, width = x.shape[-2:]
        return self.conv(functional.pad(x, (half_w - 1 + width % 2, half_w, half_h - 1 + height % 2, half_h)))


def _with_parity_padding(embedder: Embedder) -> Embedder:
    for name, module in list(embedder.named_modules()):
        if isinstance(module, Conv2dSame):
            embedder.set_submodule(name, ParityPaddedConv(module))
    return embedder
