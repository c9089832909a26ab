"""ResNets and ResNeXts compute what torchvision's compute, and have detectron2's tensor names."""

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from export.graphs.precision import fold_norms
from training.detector.backbone import build_backbone
from training.detector.config import DetectorConfig
from training.detector.resnet import ResNet


def small_resnet(norm: str = "FrozenBN", *, groups: int = 1, has_stride_in_1x1: bool = False) -> ResNet:
    """Return a ResNet with few blocks, whose norms differ in all their parts."""
    torch.manual_seed(0)
    network = ResNet(
        (1, 2, 1, 1), norm, groups=groups, group_width=64 // groups, has_stride_in_1x1=has_stride_in_1x1
    ).eval()
    for name, value in network.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.5 + (0.75 if name.endswith(("weight", "var")) else -0.25))
    return network


def torchvision_name(name: str) -> str:
    """Translate our name of a tensor, such as res3.0.conv2.norm.bias, into layer2.0.bn2.bias."""
    name = re.sub(r"^stem\.", "", name)
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@torch.inference_mode()
def test_same_features_as_torchvision(groups: int, norm: str) -> None:
    network = small_resnet(norm, groups=groups)
    block = torchvision.models.resnet.Bottleneck
    reference = torchvision.models.ResNet(block, [1, 2, 1, 1], groups=groups, width_per_group=64 // groups).eval()
    weights = {torchvision_name(name): value for name, value in network.state_dict().items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert unexpected == [] and {name.split(".")[-1] for name in missing if not name.startswith("fc.")} <= {
        "num_batches_tracked"
    }
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = reference.maxpool(reference.relu(reference.bn1(reference.conv1(pixels))))
    for index, found in enumerate(network.extract(pixels)):
        expected = getattr(reference, f"layer{index + 1}")(expected)
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def stride_of(network: nn.Module, name: str) -> int:
    convolution = network.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    return convolution.stride[0]


@pytest.mark.parametrize("has_stride_in_1x1", [True, False])
def test_the_stride_is_in_the_first_or_second_convolution(has_stride_in_1x1: bool) -> None:
    network = small_resnet(has_stride_in_1x1=has_stride_in_1x1)
    strides = [stride_of(network, f"res3.0.conv{index}") for index in (1, 2, 3)]
    assert strides == ([2, 1, 1] if has_stride_in_1x1 else [1, 2, 1])
    assert stride_of(network, "res3.0.shortcut") == 2
    assert {stride_of(network, f"{block}.conv{i}") for block in ("res2.0", "res3.1") for i in (1, 2, 3)} == {1}


@torch.inference_mode()
def test_folded_norms_are_the_same_function() -> None:
    network = small_resnet(groups=8)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = network.extract(pixels)
    fold_norms(network)
    assert not any(name.endswith("running_var") for name in network.state_dict())
    for found, level in zip(network.extract(pixels), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)


# Millions of parameters: those of torchvision's networks, without their classifiers.
@pytest.mark.parametrize(
    ("backbone", "groups", "width", "millions"),
    [("resnet50", 1, 64, 23.508), ("resnet101", 1, 64, 42.500), ("resnet101", 32, 8, 86.743)],
)
def test_sizes_and_names(backbone: str, groups: int, width: int, millions: float) -> None:
    config = DetectorConfig(backbone=backbone, resnet_groups=groups, resnet_group_width=width, norm="BN")
    with torch.device("meta"):
        network = build_backbone(config)
    assert network.channels == (256, 512, 1024, 2048)
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(millions * 1e6, rel=1e-4)
    names = {f"stem.conv1.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    names |= {"stem.conv1.weight", "res2.0.shortcut.norm.bias", "res4.5.conv3.weight", "res5.2.conv2.norm.running_var"}
    assert names <= network.state_dict().keys()


def test_levels_have_strides_4_to_32() -> None:
    network: ResNet = small_resnet()
    with torch.inference_mode():
        levels: list[Tensor] = network.extract(torch.zeros(2, 3, 96, 160))
    assert [tuple(level.shape) for level in levels] == [
        (2, 256, 24, 40),
        (2, 512, 12, 20),
        (2, 1024, 6, 10),
        (2, 2048, 3, 5),
    ]
