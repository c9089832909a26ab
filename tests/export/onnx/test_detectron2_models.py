"""Models that detectron2 builds from the configs of its zoo, with random weights, against their export.

The reference is detectron2's own model, built by detectron2 from the same YAML file that the export reads.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from export.detector import main
from export.graphs.checkpoints import build_detector_graph
from export.graphs.detector import DetectorGraph
from export.onnx.files import open_onnx
from export.parity.check import check_detector
from export.parity.compare import DETECTOR_LIMITS, Detections, compare_detections, detections_of
from export.parity.reference import graph_detector, pad
from training.detector.config import DetectorConfig
from training.detector.detectron2_config import read_config

pytestmark = pytest.mark.detectron2

SIZES = ((320, 320), (256, 455), (120, 77))  # height, width
SMALL = {"MODEL": {"FPN": {"OUT_CHANNELS": 64}, "ROI_BOX_HEAD": {"FC_DIM": 256}}}  # for tests that are not slow


@dataclass(frozen=True)
class Pair:
    """One model twice: as detectron2 has it, and as the graph; both have the same weights."""

    config_file: Path
    reference: Any
    graph: DetectorGraph


def build_pair(folder: Path, zoo_name: str, num_classes: int, settings: dict[str, Any]) -> Pair:
    config_file = folder / "config.yaml"
    inherited = {"_BASE_": model_zoo.get_config_file(zoo_name), "MODEL": {"ROI_HEADS": {"NUM_CLASSES": num_classes}}}
    inherited["MODEL"] |= settings.get("MODEL", {})
    config_file.write_text(yaml.safe_dump(inherited))
    graph = build_detector_graph(None, config=read_config(config_file), random_seed=0)
    cfg = get_cfg()
    cfg.merge_from_file(str(config_file))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    reference = build_model(cfg).eval()
    missing, unexpected = reference.load_state_dict(graph.state_dict(), strict=False)
    assert unexpected == [] and all(name.startswith("roi_heads.mask_head.") for name in missing)
    return Pair(config_file, reference, graph)


def smooth_images() -> list[torch.Tensor]:
    """Return two images float32 [3, height, width] in 0..255 of each of SIZES.

    With one of each, 300 detections, two boxes that score the same to seven digits could already make 1 % differ.
    """
    images = []
    for height, width in SIZES:
        generator = torch.Generator().manual_seed(width)
        coarse = torch.rand(2, 3, height // 16 + 1, width // 16 + 1, generator=generator) * 255
        images += F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return images


@torch.inference_mode()
def detect_by_detectron2(reference: Any, image: torch.Tensor) -> Detections:
    (found,) = reference.inference([{"image": image}], do_postprocess=False)
    return found.pred_boxes.tensor, found.scores, found.pred_classes


def matched_fraction(found: list[Detections], expected: list[Detections], num_classes: int) -> float:
    """Return the fraction that match: with the same class, an IoU above 0.99 and scores within 0.001."""
    limits = DETECTOR_LIMITS["fp32"]
    assert (limits.min_iou, limits.max_score_error) == (0.99, 1e-3)
    num_matched = sum(compare_detections(*pair, limits)[0] for pair in zip(found, expected, strict=True))
    num_all = sum(max(len(one[1]), len(other[1])) for one, other in zip(found, expected, strict=True))
    assert num_all >= 20 * len(expected)
    assert len(torch.cat([labels for _, _, labels in expected]).unique()) > num_classes / 2
    return num_matched / num_all


@pytest.mark.parametrize(
    ("zoo_name", "num_classes", "settings"),
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", 1, SMALL),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", 13, SMALL),
        ("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml", 5, SMALL),
    ],
)
def test_graph_finds_what_detectron2_finds(
    zoo_name: str, num_classes: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    pair = build_pair(tmp_path, zoo_name, num_classes, settings)
    images = smooth_images()
    expected = [detect_by_detectron2(pair.reference, image) for image in images]
    detect = graph_detector(pair.graph)
    assert matched_fraction([detect([image])[0] for image in images], expected, num_classes) >= 0.995


@pytest.fixture
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Pair, Path]]:
    """Export a checkpoint of detectron2's model, with its mask head, by the command line; files of 100s of MB."""
    zoo_name, num_classes, suffix = request.param
    pair = build_pair(tmp_path, zoo_name, num_classes, {})
    checkpoint, output = tmp_path / f"model_final{suffix}", tmp_path / "model.onnx"
    weights = pair.reference.state_dict()
    if suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in weights.items()}
        with checkpoint.open("wb") as file:
            pickle.dump({"model": arrays, "__author__": "Detectron2 Model Zoo"}, file)
    else:
        torch.save({"model": weights, "iteration": 9}, checkpoint)
    arguments = ["--config-file", str(pair.config_file), "--checkpoint", str(checkpoint), "--output", str(output)]
    assert main(arguments) == 0
    checkpoint.unlink()
    yield pair, output
    output.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "exported",
    [
        ("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", 1, ".pth"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", 13, ".pkl"),
        ("COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml", 13, ".pth"),
        ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", 13, ".pth"),
    ],
    indirect=True,
    ids=["R50 one class", "Mask R50", "R101", "X101"],
)
def test_exported_file_finds_what_detectron2_finds(exported: tuple[Pair, Path]) -> None:
    pair, path = exported
    config = DetectorConfig.load(path.with_suffix(".json"))
    assert config == pair.graph.config
    images = smooth_images()
    expected = [detect_by_detectron2(pair.reference, image) for image in images]
    detect, run = graph_detector(pair.graph), open_onnx(path)
    assert matched_fraction([detect([image])[0] for image in images], expected, config.num_classes) >= 0.995
    found = []
    for image in images:
        pixels, image_size = pad([image], config)
        found.append(detections_of(run({"pixels": pixels.numpy(), "image_size": image_size.numpy()}), 0))
    assert matched_fraction(found, expected, config.num_classes) >= 0.995
    report = check_detector(path, None, config=config, random_seed=0)  # the same weights; batches of several sizes
    assert report["matched_share"] >= 0.995
