import json
from pathlib import Path

import pytest
import timm
import torch

from training.embedder.model import DEMO, PRODUCTION, Embedder, GeM, load_embedder, save_embedder


def test_gem_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = ((1 + 8 + 27 + 64) / 4) ** (1 / 3)
    assert GeM(3.0, learnable=False)(features).item() == pytest.approx(expected, rel=1e-6)
    assert GeM(1.0, learnable=False)(features).item() == pytest.approx(2.5, rel=1e-6)


def test_gem_clamps_and_survives_half_precision() -> None:
    gem = GeM(3.0, learnable=False)
    assert gem(torch.full((1, 1, 2, 2), -5.0)).item() == pytest.approx(1e-6, rel=1e-3)
    assert gem(torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16)).item() == pytest.approx(100, rel=1e-5)


def test_only_b6_learns_its_exponent() -> None:
    for configs in (DEMO, PRODUCTION):
        assert [name for name, config in configs.items() if config.gem_learnable] == ["b6"]


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Embedder(DEMO["b6"]).eval()
    save_embedder(model, tmp_path / "embedder_b6.pth")
    again = load_embedder(tmp_path / "embedder_b6.pth")
    assert again.config == DEMO["b6"] and not again.training
    pixels = torch.randn(2, 3, 94, 140)
    with torch.no_grad():
        assert torch.equal(model(pixels), again(pixels))


def test_checkpoint_that_does_not_fit_is_refused_with_its_keys(tmp_path: Path) -> None:
    model = Embedder(DEMO["b5a"])
    save_embedder(model, tmp_path / "e.pth")
    state = model.state_dict()
    state["surplus"] = state.pop("norm.weight")
    state["projection.weight"] = state["projection.weight"][:, :5]
    torch.save({"model": state}, tmp_path / "e.pth")
    with pytest.raises(
        ValueError, match=r"missing norm\.weight; projection\.weight is \(512, 5\).*; unexpected surplus"
    ):
        load_embedder(tmp_path / "e.pth")


def test_config_names_the_backbone(tmp_path: Path) -> None:
    DEMO["b7"].save(tmp_path / "c.json")
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["backbone"] == "test_efficientnet" and values["template"] == "XS"


def test_local_pretrained_weights_in_timm_naming(tmp_path: Path) -> None:
    donor = Embedder(DEMO["b5a"])
    torch.save(donor.backbone.state_dict(), tmp_path / "backbone.pth")
    model = Embedder(DEMO["b5a"], pretrained=tmp_path / "backbone.pth")
    for (name, ours), theirs in zip(
        model.backbone.state_dict().items(), donor.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_pretrained_weights_of_a_whole_b5_lose_their_classifier_only(tmp_path: Path) -> None:
    donor = timm.create_model("tf_efficientnet_b5.ns_jft_in1k", pretrained=False)
    weights = donor.state_dict()
    assert "classifier.weight" in weights
    torch.save(weights, tmp_path / "b5.pth")
    model = Embedder(PRODUCTION["b5a"], pretrained=tmp_path / "b5.pth")
    assert all(torch.equal(value, weights[key]) for key, value in model.backbone.state_dict().items())


def test_pretrained_weights_that_do_not_fit_are_refused_with_their_keys(tmp_path: Path) -> None:
    weights = Embedder(DEMO["b5a"]).backbone.state_dict()
    weights["stem.weight"] = weights.pop("conv_stem.weight")
    torch.save(weights, tmp_path / "renamed.pth")
    with pytest.raises(ValueError, match=r"does not fit test_efficientnet: missing conv_stem\.weight; unexpected"):
        Embedder(DEMO["b5a"], pretrained=tmp_path / "renamed.pth")
