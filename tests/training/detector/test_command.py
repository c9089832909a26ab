"""Mistakes that the command reports before a training starts; these tests do not need detectron2."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from training.detector import train
from training.detector.recipe import Recipe


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train.main(["--output", "nowhere", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training.detector.train: ")
    return line


@pytest.fixture
def detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command believe that detectron2 is installed."""
    monkeypatch.setattr(train, "find_spec", lambda name: ModuleSpec(name, None))


def test_missing_detectron2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: importlib.util.find_spec(f"no_{name}"))
    error = error_of(["--config", "demo", "--data", "nowhere"], capsys)
    assert "detectron2 is not installed: see https://" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "demo", "--num-gpus", "3"], "a batch of 8 images cannot be split evenly over 3 processes"),
        (["--config", "demo", "--num-gpus", "0"], "at least 1 each"),
        (["--config", "demo", "--num-machines", "2"], "--num-machines needs --dist-url"),
        (["--config", "demo", "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["--config", "demo", "--iterations", "0"], "--iterations is 0, not a positive number"),
        (["--config", "demo", "--batch", "-2"], "--batch is -2, not a positive number"),
        (["--config", "demo", "--lr", "nan"], "--lr is nan, not a positive number"),
        (["--config-file", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        (["--stage", "3"], "there is no nowhere/stage2/detector.pth"),
        (["--config", "demo"], "nowhere: no such file or folder"),
    ],
)
@pytest.mark.usefixtures("detectron2")
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of([*options, "--data", "nowhere"], capsys)


@pytest.mark.usefixtures("detectron2")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    error = error_of(["--config", "demo", "--data", "nowhere", "--num-gpus", "2"], capsys)
    assert "--num-gpus is 2, this machine has 1" in error


@pytest.mark.usefixtures("detectron2")
def test_an_existing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").touch()
    error = error_of(["--config", "demo", "--data", "nowhere", "--output", str(tmp_path)], capsys)
    assert error.endswith(f"{tmp_path}/last.pt exists: continue that run with --resume, or remove the file")


CONFIG = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
INPUT: {MIN_SIZE_TRAIN: [64, 96], MAX_SIZE_TRAIN: 160, MIN_SIZE_TEST: 80, MAX_SIZE_TEST: 200}
SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 90000}
"""


def recipe_of(*options: object) -> Recipe:
    arguments = ["--data", "nowhere", "--output", "nowhere", *map(str, options)]
    return train.recipe_of(train.build_parser().parse_args(arguments))


def test_a_recipe_has_model_and_image_sizes_of_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    recipe = recipe_of("--config-file", tmp_path / "config.yaml", "--batch", 3, "--lr", 0.01)
    assert (recipe.model.backbone, recipe.model.num_classes) == ("resnet50", 80)
    assert recipe.photo_short_sides_px == recipe.frame_short_sides_px == (64, 96)
    assert (recipe.max_side_px, recipe.test_max_side_px) == (160, 200)
    assert recipe.photo_test_short_side_px == recipe.frame_test_short_side_px == 80
    assert (recipe.batch_size, recipe.learning_rate, recipe.iterations) == (3, 0.01, 3000)  # SOLVER is not used


@pytest.mark.parametrize(("iterations", "warmup"), [(1, 1), (60, 6), (5000, 100)])
def test_a_short_training_warms_up_for_a_tenth_of_it(iterations: int, warmup: int) -> None:
    recipe = recipe_of("--config", "demo", "--iterations", iterations)
    assert (recipe.iterations, recipe.warmup_iterations) == (iterations, warmup)


@pytest.mark.usefixtures("detectron2")
def test_frozen_norms_need_weights_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    error = error_of(["--config-file", str(tmp_path / "config.yaml"), "--data", "nowhere"], capsys)
    assert "has frozen batch norms, so it needs --weights or --backbone-weights" in error


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["--stage", "1"], "out/stage1"),
        (["--stage", "2"], "out/stage2"),
        (["--stage", "3"], "out"),
        (["--config", "demo"], "out"),
    ],
)
def test_the_last_stage_writes_where_the_export_looks(options: list[str], folder: str) -> None:
    arguments = train.build_parser().parse_args([*options, "--data", "nowhere", "--output", "out"])
    assert train.output_of(arguments) == Path(folder)


@pytest.mark.usefixtures("detectron2")
def test_images_that_are_all_missing_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": index, "file_name": f"{index}.jpg"} for index in range(2)]
    value = {"images": images, "categories": [{"id": 1, "name": "dress"}], "annotations": []}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(value))
    assert train.main(["--config", "demo", "--data", str(path), "--output", str(tmp_path / "out")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert "2 images, boxes or annotation files are unusable, 0 allowed (--max-bad-images)" in first
    assert rest == [
        f"{path}: images[{index}].file_name is '{index}.jpg', but there is no {tmp_path}/{index}.jpg"
        for index in range(2)
    ]
