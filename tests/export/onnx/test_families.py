"""Embedders on backbones of other families: forward, export for one crop size, parity."""

from pathlib import Path

import pytest
import torch

from export.onnx.export import export_embedder
from export.parity.check import check_embedder
from training.embedder.model import Embedder, EmbedderConfig

SMALL = {  # backbone: crop size, and what is special
    "test_resnet": "96x64",
    "test_vit": "96x96",  # tokens, one of them a class token; one image size
    "test_convnext": "96x64",
    "mambaout_femto": "96x64",  # channels last, and a head with other channels
}
LARGE = {
    "tf_efficientnet_b0": "96x64",
    "mobilenetv3_small_050": "96x64",
    "resnet50": "96x96",
    "regnety_002": "96x64",
    "swin_tiny_patch4_window7_224": "224x224",
    "vit_small_patch14_dinov2": "98x98",
    "densenet121": "96x96",
    "repvgg_a0": "96x96",
}


@pytest.mark.parametrize(
    ("backbone", "crops"),
    [*SMALL.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in LARGE.items())],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_exported_file_matches(backbone: str, crops: str, precision: str, tmp_path: Path) -> None:
    config = EmbedderConfig(backbone=backbone, embedding_size=128, template=crops)
    width, height = map(int, crops.split("x"))
    size = (height, width)
    export_embedder(None, tmp_path / "m.onnx", config=config, random_seed=0, crop_size=size, precision=precision)
    report = check_embedder(tmp_path / "m.onnx", None, sizes=[size] * 3, config=config, random_seed=0, crop_size=size)
    assert report["min_embedding_cosine"] >= (0.99999 if precision == "fp32" else 0.999)


def test_a_backbone_for_one_size_needs_one_crop_size() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 takes one image size: crops must be one size"):
        Embedder(EmbedderConfig(backbone="vit_tiny_patch16_224"))


def test_an_unknown_backbone_or_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"backbone 'resnet5': .*resnet5"):
        Embedder(EmbedderConfig(backbone="resnet5"))
    with pytest.raises(ValueError, match=r"backbone 'resnet18': .*img_size"):
        Embedder(EmbedderConfig(backbone="resnet18", backbone_options={"img_size": 96}))


def test_the_classifier_of_any_family_is_left_out(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "weights.pth")
    embedder = Embedder(EmbedderConfig(backbone="test_resnet", template="96x96"), pretrained=tmp_path / "weights.pth")
    assert embedder(torch.zeros(2, 3, 96, 96)).shape == (2, 512)
