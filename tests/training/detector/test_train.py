import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.detector.config import DEMO
from training.detector.model import build_detector
from training.detector.recipe import RECIPES, Recipe, demo, stage1
from training.detector.train import build_optimizer, learning_rate_factor, load_weights, main, split_by_item, train
from training.wab.dataset import Annotation, Picture

pytestmark = pytest.mark.detectron2


def draw_pictures(directory: Path, num_items: int) -> list[Picture]:
    rng = np.random.default_rng(0)
    pictures = []
    for item in range(num_items):
        pixels = rng.integers(0, 80, (120, 100, 3)).astype(np.uint8)
        pixels[30:90, 20:80] += 150
        path = directory / f"{item}.png"
        cv2.imwrite(str(path), pixels)
        pictures.append(Picture(str(item), "0", path, None, (Annotation("短裙", 0, 0, 7, (20, 30, 80, 90)),)))
    return pictures


def small_recipe() -> Recipe:
    return replace(
        demo(), batch_size=2, photo_short_sides_px=(64, 96), warmup_iterations=1, checkpoint_every=2, num_workers=0
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, 3)
    recipe = replace(small_recipe(), iterations=3)
    whole = train(pictures, recipe, tmp_path, weights=None, resume=False, seed=0).state_dict()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["iteration"] == 2
    resumed = train(pictures, recipe, tmp_path, weights=None, resume=True, seed=0).state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_command_writes_checkpoint_config_and_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = tmp_path / "part"
    (part / "video_annotation").mkdir(parents=True)
    for picture in draw_pictures(tmp_path, 2):
        image = part / "image" / picture.item_id / "0.jpg"
        image.parent.mkdir(parents=True)
        cv2.imwrite(str(image), cv2.imread(str(picture.path)))
        entry = {"label": "短裙", "viewpoint": 0, "display": 0, "instance_id": 7, "box": [20, 30, 80, 90]}
        path = part / "image_annotation" / picture.item_id / "0.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": [entry]}))
    output = tmp_path / "out"
    assert main(["--config", "demo", "--data", str(part), "--output", str(output), "--iterations", "1"]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["num_photos"] == 1
    assert 0 <= metrics["ap"] <= metrics["ap50"] <= 1
    model = build_detector(DEMO)
    load_weights(model, torch.load(output / "detector.pth", weights_only=True)["model"], output / "detector.pth")
    assert (output / "detector.pth").stat().st_size <= 6e6


def test_wrong_keys_are_listed() -> None:
    model = build_detector(DEMO)
    state_dict = dict(model.state_dict())
    state_dict["extra.weight"] = state_dict.pop("backbone.fpn_lateral2.bias")
    with pytest.raises(ValueError, match=r"w\.pth.*fpn_lateral2\.bias.*extra\.weight"):
        load_weights(model, state_dict, Path("w.pth"))


def test_the_last_twentieth_of_the_items_is_held_out() -> None:
    pictures = [Picture(f"{item:03}", name, Path(), None, ()) for item in range(40) for name in "ab"]
    training, held_out = split_by_item(pictures)
    assert {picture.item_id for picture in held_out} == {"038", "039"}
    assert len(training) == 76
    with pytest.raises(ValueError, match="1 items"):
        split_by_item(pictures[:2])


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    recipe = replace(demo(), iterations=1000, warmup_iterations=10)
    assert learning_rate_factor(0, recipe) == pytest.approx(0.1)
    assert learning_rate_factor(500, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(1000, recipe) == pytest.approx(0.0)
    assert learning_rate_factor(50_000, stage1()) == 1.0


def test_norms_and_biases_do_not_decay() -> None:
    decayed, free = build_optimizer(build_detector(DEMO), demo()).param_groups
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in free["params"])


def test_every_recipe_is_whole() -> None:
    for make in RECIPES.values():
        recipe = make()
        assert recipe.optimizer in ("sgd", "adamw") and recipe.schedule in ("constant", "cosine")
