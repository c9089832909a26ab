"""An embedder as ONNX: uint8 crops → unit vectors, with batch, height and width left open.

python -m export.embedder --checkpoint embedder_b6.pth --output model.onnx --precision fp16
"""

import argparse
import copy
import sys
from pathlib import Path

import onnx
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from export import onnx_files
from export.precision import PRECISIONS, to_half
from training.embedder.model import Embedder, EmbedderConfig, load_embedder

OPSET = 18


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


def export_embedder(
    checkpoint: Path | None,
    output: Path,
    *,
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
) -> None:
    """Writes the ONNX file of a checkpoint, or of random weights for a config, in "fp32" or "fp16"; makes its folder.

    The errors are those of `build_embedder`, and ValueError for another precision.
    """
    served = ServedEmbedder(build_embedder(checkpoint, config=config, random_seed=random_seed), precision).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Sizes 0 and 1 are special to the exporter, and equal sizes would be taken for one symbol.
    example = torch.zeros(2, 97, 66, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        served,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["crops"],
        output_names=["embedding"],
        dynamic_shapes={"crops": {0: torch.export.Dim("n"), 1: torch.export.Dim("h"), 2: torch.export.Dim("w")}},
        external_data=False,
        verbose=False,
    )
    onnx_files.save(_cast_first(program.model_proto), output)


def _cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes sizes from the cast pixels: TensorRT allows no reader of a UINT8 input but a Cast."""
    nodes = model.graph.node
    cast = next(node for node in nodes if node.op_type == "Cast" and node.input[0] == "crops")
    nodes.remove(cast)
    for node in nodes:
        node.input[:] = [cast.output[0] if name == "crops" else name for name in node.input]
    nodes.insert(0, cast)
    return model


def build_embedder(
    checkpoint: Path | None, *, config: EmbedderConfig | None = None, random_seed: int | None = None
) -> Embedder:
    """The checkpoint's network or, for a config and a seed, one with random weights; in eval mode.

    Raises FileNotFoundError for a missing checkpoint or JSON, ValueError for one that does not fit.
    """
    if checkpoint is not None:
        return load_embedder(checkpoint)
    if config is None or random_seed is None:
        raise ValueError("either a checkpoint, or a config and a random seed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed)
        return Embedder(config).eval()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    arguments = parser.parse_args(argv)
    try:
        export_embedder(arguments.checkpoint, arguments.output, precision=arguments.precision)
    except (ValueError, FileNotFoundError) as error:
        print(f"export.embedder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
