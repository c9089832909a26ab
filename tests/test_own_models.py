"""The recipe "Your own models" of export/README.md: its commands and its pipeline file, from checkpoints to matches.

The detector is a Faster R-CNN R50-FPN of 13 classes in detectron2's files; the embedder is a ResNet-50, once as ONNX
and once as a checkpoint. All have random weights.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import livematch
from export.graphs.checkpoints import build_detector_graph
from training.detector.detectron2_config import read_config
from training.embedder.model import Embedder, EmbedderConfig, save_embedder

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[1]
CLASS_NAMES = [f"garment {label}" for label in range(13)]
CONFIG = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 50, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TEST: 1000, PRE_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 13}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7}
"""


@pytest.fixture
def folder(tmp_path: Path, demo_world: Path) -> Path:
    """The files that the recipe starts from."""
    output = tmp_path / "output"
    output.mkdir()
    (output / "config.yaml").write_text(CONFIG)
    graph = build_detector_graph(None, config=read_config(output / "config.yaml"), random_seed=0)
    torch.save({"model": graph.state_dict(), "iteration": 9}, output / "model_final.pth")
    torch.manual_seed(0)
    network = timm.create_model("resnet50", num_classes=256).eval()
    example = torch.zeros(2, 3, 224, 224)
    shapes = ({0: torch.export.Dim("n")},)
    options = {"dynamo": True, "dynamic_shapes": shapes, "external_data": False}
    torch.onnx.export(network, (example,), tmp_path / "resnet50.onnx", **options)
    for item in ("000001", "000002"):
        shutil.copytree(demo_world / "image" / item, tmp_path / "photos" / item)
        (tmp_path / "clips").mkdir(exist_ok=True)
        shutil.copy(demo_world / "video" / f"{item}.mp4", tmp_path / "clips")
    return tmp_path


def blocks(language: str) -> list[str]:
    """The code of one language in the recipe."""
    text = (ROOT / "export" / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^## Your own models\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", recipe, re.DOTALL | re.MULTILINE)


def run(script: str, folder: Path) -> str:
    paths = {"OUTPUT_DIR": "output", "EMBEDDER.onnx": "resnet50.onnx", "IMAGES": "photos", "VIDEOS": "clips"}
    for placeholder, path in paths.items():
        script = script.replace(placeholder, path)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")]),
    }
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("embedder", ["ONNX file", "checkpoint"])
def test_the_recipe_leads_from_checkpoints_to_matches(folder: Path, embedder: str) -> None:
    copy, build_and_run = blocks("sh")
    run(copy, folder)
    if embedder == "checkpoint":
        (folder / "models" / "embedder_main.onnx").unlink()
        network = Embedder(EmbedderConfig(backbone="resnet50", embedding_size=256, template="224x224"))
        save_embedder(network, folder / "models" / "embedder_main.pth")
    (pipeline,) = blocks("json")
    names = json.dumps(json.loads(pipeline)["class_names"])
    (folder / "mine.json").write_text(pipeline.replace(names, json.dumps(CLASS_NAMES)))
    # Fewer and smaller pictures, as two cores take seconds for one.
    small = {"image": {"short_side_px": 256, "min_score": 0.5}, "frame": {"short_side_px": 256, "min_score": 0.5}}
    settings = json.loads((folder / "mine.json").read_text()) | small
    (folder / "mine.json").write_text(json.dumps(settings))
    printed = run(build_and_run.replace("-o build/matches", "-o build/matches --frames 80:400:160 --limit 4"), folder)
    summary = json.loads(printed.splitlines()[-1])
    assert (summary["num_failures"], summary["images"]["num_stored"]) == (
        0,
        len(list((folder / "photos").rglob("*.jpg"))),
    )
    matches = livematch.read_matches(folder / "build/matches/matches.json")
    assert summary["num_matches"] == len(matches) > 0
    assert {match.video_id for match in matches} == set(livematch.read_result(folder / "build/matches/result.json"))
    for kind in ("images", "videos"):
        features = livematch.read_features(folder / "build/matches/features" / f"{kind}.parquet")
        assert features.embedding_size == 256
        assert len(set(features.labels)) > 1 and set(features.labels) <= set(CLASS_NAMES)
