"""Half precision with float32 islands, decided in PyTorch, so that the ONNX file itself says what is computed in what.

`to_half` turns whole modules into float16. Everything else stays float32: pixel and anchor arithmetic, clipping, level
assignment, RoiAlign, NMS, the predicting layers, softmax, the keys of top-k, GeM, the embedding's projection and norms.
The casts between the two are in the `forward` of the modules at the borders; in a float32 model they leave no trace.
"""

import torch
from timm.layers import BatchNormAct2d, EffectiveSEModule, FrozenBatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

PRECISIONS = ("fp32", "fp16")


def to_half(module: nn.Module) -> None:
    """Turns a module in eval mode into float16, in place; before the cast its norms become part of the convolutions.

    Raises ValueError, naming the tensor, if a weight is beyond float16's range.
    """
    fold_norms(module)
    for name, value in module.state_dict().items():
        if value.abs().max() > torch.finfo(torch.float16).max:
            raise ValueError(f"{name} reaches {value.abs().max():.3g}, beyond float16's range; export in fp32")
    for name, submodule in list(module.named_modules()):
        if isinstance(submodule, EffectiveSEModule | SqueezeExcite):
            module.set_submodule(name, FloatSqueeze(submodule))
    module.half()


class FloatSqueeze(nn.Module):
    """Squeeze-and-excitation whose mean is taken in float32, as the sum over a large map is beyond float16."""

    def __init__(self, attention: EffectiveSEModule | SqueezeExcite) -> None:
        super().__init__()
        self.gate = nn.Sequential(*attention.children())

    def forward(self, features: Tensor) -> Tensor:
        """Maps [n, C, h, w] to the same, each channel times its gate."""
        return features * self.gate(features.float().mean((2, 3), keepdim=True).to(features.dtype))


def fold_norms(module: nn.Module) -> None:
    """Multiplies every 2-d batch norm, in eval mode, into the convolution defined before it; activations stay."""
    convolution = None
    for name, submodule in list(module.named_modules()):
        if isinstance(submodule, nn.Conv2d):
            convolution = submodule
        elif isinstance(submodule, BatchNormAct2d | FrozenBatchNormAct2d):
            assert convolution is not None and convolution.out_channels == submodule.weight.shape[0], name
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                submodule.running_mean,
                submodule.running_var,
                submodule.eps,
                submodule.weight,
                submodule.bias,
            )
            module.set_submodule(name, submodule.act)
            convolution = None
