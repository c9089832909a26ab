"""Convert networks to half precision (float16), and keep float32 where it is needed.

The conversion happens in PyTorch, so that the ONNX file states the type of every tensor. Backbones and hidden layers
become float16. Everything else stays float32: pixel and anchor arithmetic, clipping, level assignment, RoiAlign, NMS,
the predicting layers, softmax, the scores that top-k sorts, GeM, the embedding's projection and its norms. The
`forward` of the modules on either side of such a boundary does the casts; in a float32 network they do nothing and the
exporter drops them.

Half precision is for GPUs, so it comes with the form of NMS that every TensorRT compiles (see `export.graphs.nms`).
"""

import torch
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from timm.layers.squeeze_excite import EffectiveSEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.efficientnet import EfficientNet
from timm.models.vovnet import VovNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from export.graphs.detector import DetectorGraph
from export.graphs.embedder import EmbedderGraph
from export.graphs.nms import Nms

PRECISIONS = ("fp32", "fp16")


def set_precision(graph: DetectorGraph | EmbedderGraph, precision: str) -> None:
    """Prepare a float32 network in eval mode for `precision`, in place: "fp32" leaves it as it is.

    Raises ValueError for a precision that is not in PRECISIONS, and if a weight exceeds float16's range.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, not one of {PRECISIONS}")
    if precision == "fp16":
        for part in graph.half_modules():
            to_half(part)
        for module in graph.modules():
            if isinstance(module, Nms):
                module.is_unrolled = True


def to_half(module: nn.Module) -> None:
    """Convert a module in eval mode to float16, in place, after folding its batch norms into its convolutions.

    Raises ValueError, naming the tensor, if a weight exceeds float16's range.
    """
    if any(isinstance(part, EfficientNet | VovNet) for part in module.modules()):
        fold_norms(module)  # in other networks, a norm may come before its convolution
    for name, value in module.state_dict().items():
        if value.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"{name} reaches {value.abs().max():.3g}, beyond float16's range; export in fp32")
    for name, submodule in list(module.named_modules()):
        if isinstance(submodule, EffectiveSEModule | SqueezeExcite):
            module.set_submodule(name, FloatSqueeze(submodule))
    module.half()


class FloatSqueeze(nn.Module):
    """Squeeze-and-excitation that averages in float32, because the sum over a large map overflows float16."""

    def __init__(self, attention: EffectiveSEModule | SqueezeExcite) -> None:
        super().__init__()
        self.gate = nn.Sequential(*attention.children())

    def forward(self, features: Tensor) -> Tensor:
        """Map [n, C, h, w] to the same shape, each channel multiplied by its gate."""
        gates: Tensor = self.gate(features.float().mean((2, 3), keepdim=True).to(features.dtype))
        return features * gates


def fold_norms(module: nn.Module) -> None:
    """Fold every 2-d batch norm, in eval mode, into the convolution defined before it, and keep its activation."""
    convolution = None
    for name, submodule in list(module.named_modules()):
        if isinstance(submodule, nn.Conv2d):
            convolution = submodule
        elif isinstance(submodule, BatchNormAct2d | FrozenBatchNormAct2d):
            norm = submodule.state_dict()
            assert convolution is not None and convolution.out_channels == len(norm["weight"]), name
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm["running_mean"],
                norm["running_var"],
                submodule.eps,
                norm["weight"],
                norm["bias"],
            )
            module.set_submodule(name, submodule.act)
            convolution = None
