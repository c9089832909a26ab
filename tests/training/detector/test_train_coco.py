"""The command on COCO JSON: classes, models of detectron2, and how a run continues."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.detector.config import DEMO, DetectorConfig
from training.detector.detectron2_config import read_config
from training.detector.model import build_detector
from training.detector.progress import read_log
from training.detector.recipe import demo
from training.detector.splits import read_splits
from training.detector.train import main
from training.detector.trainer import train
from training.detector.weights import load_checkpoint, load_weights

pytestmark = pytest.mark.detectron2

CLASSES = ("dress", "coat", "hat")
PREDICTOR = [f"roi_heads.box_predictor.{name}" for name in ("bbox_pred", "cls_score")]

# A Faster R-CNN of detectron2 with narrow layers, for small images.
CONFIG = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {DEPTH: 50, NORM: "BN", OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 1000, PRE_NMS_TOPK_TRAIN: 2000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"], NUM_CLASSES: 80}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
INPUT: {MIN_SIZE_TRAIN: [64, 96], MAX_SIZE_TRAIN: 160, MIN_SIZE_TEST: 80, MAX_SIZE_TEST: 160}
SOLVER: {IMS_PER_BATCH: 16, MAX_ITER: 90000}
VERSION: 2
"""


def write_coco(folder: Path, num_images: int) -> Path:
    """Noisy images of 120 × 100 pixels (width × height); image i has a bright square of class i modulo 3."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    annotations = []
    for index in range(num_images):
        pixels = rng.integers(0, 80, (100, 120, 3)).astype(np.uint8)
        pixels[30:90, 20:80, index % 3] += 150
        cv2.imwrite(str(folder / f"{index}.jpg"), pixels)
        annotations.append({"id": index, "image_id": index, "category_id": index % 3, "bbox": [20, 30, 60, 60]})
    value = {
        "images": [{"id": index, "file_name": f"{index}.jpg"} for index in range(num_images)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(value))
    return path


def run(output: Path, data: Path, *options: object) -> int:
    return main(["--data", str(data), "--output", str(output), *map(str, options)])


def weights_of(output: Path) -> tuple[DetectorConfig, dict[str, torch.Tensor]]:
    config = DetectorConfig.load(output / "detector.json")
    return config, load_checkpoint(output / "detector.pth", config)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return values


def test_a_detector_has_the_classes_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_coco(tmp_path / "data", 5), tmp_path / "out"
    assert run(output, data, "--config", "demo", "--iterations", 1, "--batch", 2) == 0
    values = last_line(capsys)
    assert values["num_photos"] == 1 and 0 <= values["ap"] <= values["ap50"] <= 1
    config, tensors = weights_of(output)
    assert config == replace(DEMO, num_classes=3, class_names=CLASSES)
    load_weights(build_detector(config), tensors, output)
    assert tensors[f"{PREDICTOR[1]}.weight"].shape == (4, DEMO.box_head_dim)


@pytest.mark.slow
def test_each_class_is_learned(tmp_path: Path) -> None:
    """The squares differ by their colour only; a detector that confuses them has an average precision of about 1/3."""
    data, validation = write_coco(tmp_path / "data", 12), write_coco(tmp_path / "validation", 6)
    splits = read_splits([data], [validation], tmp_path / "cache", max_bad_images=0)
    recipe = replace(
        demo(),
        model=replace(DEMO, num_classes=3, class_names=splits.class_names),
        iterations=200,
        batch_size=4,
        warmup_iterations=10,
        photo_short_sides_px=(64, 96),
        photo_test_short_side_px=80,
        evaluate_every=1000,
        num_workers=0,
    )
    train(splits.training, splits.validation, recipe, tmp_path / "out")
    assert read_log(tmp_path / "out/log.jsonl")[-1]["ap50"] > 0.8


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_model_of_detectron2_is_fine_tuned_on_other_classes(tmp_path: Path, suffix: str) -> None:
    file, weights = tmp_path / "config.yaml", tmp_path / f"model_final{suffix}"
    file.write_text(CONFIG)
    torch.manual_seed(0)
    before = build_detector(read_config(file)).state_dict()
    if suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in before.items()}
        weights.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save({"model": before, "iteration": 9}, weights)
    output = tmp_path / "out"
    options = ["--config-file", file, "--weights", weights, "--iterations", 1, "--lr", 1e-6]
    assert run(output, write_coco(tmp_path / "data", 3), *options) == 0
    config, after = weights_of(output)
    assert config == replace(read_config(file), num_classes=3, class_names=CLASSES)
    changed = {name for name, value in after.items() if value.shape != before[name].shape}
    assert changed == {f"{name}.{kind}" for name in PREDICTOR for kind in ("weight", "bias")}
    name = "backbone.bottom_up.res3.0.conv1.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=0)
    (line,) = [line for line in read_log(output / "log.jsonl") if "start_from" in line]
    assert line["start_from"] == str(weights) and line["initialized_for_other_classes"] == sorted(changed)
    assert len(changed) == 4


def test_what_to_pass_to_resume_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_coco(tmp_path / "data", 3), tmp_path / "out"
    assert run(output, data, "--config", "demo", "--iterations", 1) == 0
    capsys.readouterr()
    other = write_coco(tmp_path / "other", 4)
    shape = json.loads(data.read_text())
    shape["categories"][2]["name"] = "cap"
    (data.parent / "renamed.json").write_text(json.dumps(shape))
    for path, options, difference in (
        (data, [], "--iterations 1 (here 3000); warmup_iterations 1 (here 100)"),
        (data, ["--iterations", 1, "--batch", 2, "--lr", 0.1], "--batch 8 (here 2); --lr 0.001 (here 0.1)"),
        (other, ["--iterations", 1], "other images, boxes or identities in --data"),
        (
            data.parent / "renamed.json",
            ["--iterations", 1],
            "model.class_names ('dress', 'coat', 'hat') (here ('dress', 'coat', 'cap'))",
        ),
    ):
        assert run(output, path, "--config", "demo", "--resume", *options) == 2
        hint = "pass the same to resume it, or remove the file to train anew"
        error = f"training.detector.train: {output}/last.pt was trained with {difference}: {hint}\n"
        assert capsys.readouterr().err.endswith(error)


def test_a_file_that_is_no_state_of_a_training_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = write_coco(tmp_path / "data", 2), tmp_path / "out"
    output.mkdir()
    for content in ({"model": {}}, [1]):
        torch.save(content, output / "last.pt")
        assert run(output, data, "--config", "demo", "--resume") == 2
        assert capsys.readouterr().err.endswith(
            "last.pt is not the state of a training: remove the file to train anew\n"
        )
