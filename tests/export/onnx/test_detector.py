"""The exported file matches its PyTorch source, on shapes that were not traced."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import box_iou

from export.detector import main
from export.graphs.checkpoints import build_detector_graph
from export.graphs.detector import DetectorGraph
from export.onnx.export import export_detector
from export.parity.__main__ import main as parity_main
from export.parity.check import check_detector
from export.parity.compare import DETECTOR_LIMITS, ParityError
from training.detector.config import DEMO, PRODUCTION

FORBIDDEN = {"NonZero", "Loop", "If", "Scan", "Unique", "Compress", "SequenceAt"}  # their shapes depend on the data
SIZES = (  # of the padded batch, then of each image in it
    ((480, 256), [(455, 256)]),
    ((256, 480), [(256, 455), (240, 480)]),
    ((320, 352), [(320, 320), (300, 350), (64, 40)]),
    ((32, 32), [(20, 31)]),
)
MANY_CLASSES = replace(DEMO, num_classes=13, box_head_layers=3, pixel_std_bgr=(57.375, 57.12, 58.395))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    assert main(["--config", "demo", "--random-weights", "0", "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize(("padded", "sizes"), SIZES)
def test_onnx_runtime_finds_what_pytorch_finds(
    path: Path, padded: tuple[int, int], sizes: list[tuple[int, int]]
) -> None:
    height, width = padded
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(len(sizes), 3, height // 16, width // 16, generator=generator) * 255 - 110
    pixels, image_size = F.interpolate(coarse, padded, mode="bicubic"), torch.tensor(sizes, dtype=torch.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": pixels.numpy(), "image_size": image_size.numpy()})
    with torch.inference_mode():
        expected = build_detector_graph(None, config=DEMO, random_seed=0)(pixels, image_size)

    assert [value.shape for value in found] == [tuple(value.shape) for value in expected]
    assert found[2].dtype == np.int32
    boxes, scores = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    num_expected = num_matched = 0
    for i in range(len(sizes)):
        count = expected[2][i].item()
        is_same_box = box_iou(expected[0][i, :count], boxes[i]) > 0.99
        is_same_score = (expected[1][i, :count, None] - scores[i]).abs() < 1e-3
        num_expected += count
        num_matched += int((is_same_box & is_same_score).any(dim=1).sum())
        assert abs(int(found[2][i, 0]) - count) <= 1
    assert num_expected >= 15 * len(sizes)
    assert num_matched >= 0.995 * num_expected


@pytest.fixture(scope="module")
def many_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's detector with 13 classes, pixels divided by a standard deviation, and three hidden layers."""
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    export_detector(None, path, config=MANY_CLASSES, random_seed=0)
    return path


@pytest.mark.detectron2
def test_many_classes_are_detectron2s(many_classes: Path) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    report = check_detector(many_classes, None, config=MANY_CLASSES, random_seed=0, reference="detectron2")
    assert report["num_detections"] == 500 and report["matched_share"] >= 0.995


def test_many_classes_are_those_of_the_graph(many_classes: Path) -> None:
    report = check_detector(many_classes, None, config=MANY_CLASSES, random_seed=0)
    assert report["num_detections"] == 500 and report["matched_share"] >= 0.995
    session = onnxruntime.InferenceSession(many_classes, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(3)
    pixels = F.interpolate(torch.rand(2, 3, 6, 8, generator=generator) * 4 - 2, (96, 128), mode="bicubic").numpy()
    feeds = {"pixels": pixels, "image_size": np.array([[96, 128], [40, 50]], np.float32)}
    boxes, scores, num_detections, labels = session.run(None, feeds)
    assert labels.dtype == np.int32 and labels.shape == scores.shape == (2, 100)
    assert len(np.unique(labels[0])) > 6 and labels.max() <= 12 and labels.min() == 0
    for row, (count,) in enumerate(num_detections):
        assert not labels[row, count:].any() and not boxes[row, count:].any()
        overlap = box_iou(*[torch.from_numpy(boxes[row, :count])] * 2).fill_diagonal_(0).numpy()
        is_same_class = labels[row, :count, None] == labels[row, :count]
        assert overlap[is_same_class].max() <= 0.5 < overlap[~is_same_class].max()


@pytest.mark.slow
def test_many_classes_in_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_detector(None, path, config=MANY_CLASSES, random_seed=0, precision="fp16")
    assert "NonMaxSuppression" not in {node.op_type for node in onnx.load(path).graph.node}
    report = check_detector(path, None, config=MANY_CLASSES, random_seed=0)
    assert report["precision"] == "fp16" and report["num_detections"] == 500


def test_graph_of_many_classes_is_static(many_classes: Path) -> None:
    model = onnx.load(many_classes)
    assert not FORBIDDEN & {node.op_type for node in model.graph.node}
    assert len([node for node in model.graph.node if node.op_type == "NonMaxSuppression"]) == 2


def test_graph_is_static(path: Path) -> None:
    model = onnx.load(path)
    assert not FORBIDDEN & {node.op_type for node in model.graph.node}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    (pooling,) = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in pooling.attribute}
    assert attributes["sampling_ratio"] == 0
    assert attributes["coordinate_transformation_mode"] == b"half_pixel"


def test_weights_are_inside_the_one_file(path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_checkpoint_with_other_keys_or_shapes_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "detector.pth"
    state_dict = build_detector_graph(None, config=DEMO, random_seed=0).state_dict()
    state_dict["backbone.bottom_up.stem.7.conv.weight"] = state_dict.pop("roi_heads.box_head.fc2.bias")
    state_dict["proposal_generator.rpn_head.anchor_deltas.bias"] = torch.zeros(24)
    torch.save({"model": state_dict}, checkpoint)
    DEMO.save(tmp_path / "detector.json")
    with pytest.raises(ValueError, match=r"detector\.pth.*fc2\.bias.*stem\.7.*anchor_deltas\.bias \(24,\)"):
        build_detector_graph(checkpoint)


def test_checkpoint_restores_the_graph(tmp_path: Path) -> None:
    graph = build_detector_graph(None, config=DEMO, random_seed=1)
    torch.save({"model": graph.state_dict()}, tmp_path / "detector.pth")
    DEMO.save(tmp_path / "detector.json")
    loaded = build_detector_graph(tmp_path / "detector.pth")
    assert not loaded.training
    assert all(value.equal(graph.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_contradictory_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        export_detector(None, tmp_path / "model.onnx", config=DEMO)
    with pytest.raises(ValueError, match="checkpoint"):
        export_detector(None, tmp_path / "model.onnx", random_seed=0)


@torch.inference_mode()
def test_a_batch_gives_the_same_as_its_images_one_by_one(path: Path) -> None:
    sizes = np.array([[160, 192], [150, 100], [64, 180]], np.float32)
    coarse = torch.rand(3, 3, 10, 12, generator=torch.Generator().manual_seed(0)) * 255 - 110
    pixels = F.interpolate(coarse, (160, 192), mode="bicubic").numpy()
    for image, (height, width) in zip(pixels, sizes.astype(int), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    together = session.run(None, {"pixels": pixels, "image_size": sizes})
    for i in range(3):
        alone = session.run(None, {"pixels": pixels[i : i + 1], "image_size": sizes[i : i + 1]})
        assert together[2][i] == alone[2][0] > 20
        np.testing.assert_allclose(together[0][i], alone[0][0], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(together[1][i], alone[1][0], atol=1e-4)


def test_checkpoint_without_json_is_production_with_the_named_backbone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model_final.pth"
    with pytest.raises(ValueError, match=r"model_final\.json is missing"):
        build_detector_graph(checkpoint)
    config = replace(PRODUCTION, backbone="ese_vovnet19b_slim")
    source = {name: torch.zeros(()).expand(value.shape) for name, value in DetectorGraph(config).state_dict().items()}
    torch.save({"model": source}, checkpoint)
    graph = build_detector_graph(checkpoint, backbone="ese_vovnet19b_slim", max_proposals=300, max_detections=50)
    assert graph.config == replace(config, post_nms_top_k=300, max_detections=50)
    config.save(tmp_path / "model_final.json")
    with pytest.raises(ValueError, match=r"ese_vovnet99b.*ese_vovnet19b_slim"):
        build_detector_graph(checkpoint, backbone="ese_vovnet99b")


def test_a_config_of_detectron2_that_cannot_be_exported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file, output = tmp_path / "config.yaml", tmp_path / "model.onnx"
    config_file.write_text("MODEL: {META_ARCHITECTURE: RetinaNet}")
    assert main(["--config-file", str(config_file), "--random-weights", "0", "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export.detector: {config_file}: MODEL.META_ARCHITECTURE is 'RetinaNet'; only ")
    assert not output.exists()


def test_a_missing_config_and_one_with_other_classes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, config_file, output = tmp_path / "model_final.pth", tmp_path / "c.json", tmp_path / "model.onnx"
    torch.save({"model": build_detector_graph(None, config=DEMO, random_seed=0).state_dict()}, checkpoint)
    arguments = ["--config-file", str(config_file), "--checkpoint", str(checkpoint)]
    for command in (main, parity_main):
        output.touch()
        options = ["--output", str(output)] if command is main else ["--onnx", str(output)]
        prefix = [] if command is main else ["detector"]
        assert command([*prefix, *arguments, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f": no such file: {config_file}; give --config-file, which is the model's YAML" in line
    replace(DEMO, num_classes=13).save(config_file)
    assert main([*arguments, "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"export.detector: {checkpoint} has 1 classes, but its config has 13: "
        "correct NUM_CLASSES in the YAML, or num_classes in the JSON"
    )


def test_config_file_names_the_architecture_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of the settings is a config file too; the checkpoint has a mask head, and lacks a tensor."""
    checkpoint, config_file = tmp_path / "model_final.pth", tmp_path / "settings.json"
    weights = build_detector_graph(None, config=DEMO, random_seed=0).state_dict()
    del weights["roi_heads.box_head.fc2.bias"]
    torch.save({"model": weights | {"roi_heads.mask_head.predictor.bias": torch.zeros(1)}}, checkpoint)
    DEMO.save(config_file)
    arguments = ["--config-file", str(config_file), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--output", str(tmp_path / "model.onnx")]) == 2
    ignored, missing = capsys.readouterr().err.splitlines()
    assert ignored == "export.detector: ignored roi_heads.mask_head.*: boxes do not depend on it"
    assert "missing ['roi_heads.box_head.fc2.bias'], unexpected [], wrong shapes []" in missing
    with pytest.raises(ValueError, match="backbone is 'ese_vovnet99b', but 'vovnet_demo' in the config"):
        build_detector_graph(checkpoint, config=DEMO, backbone="ese_vovnet99b")


def test_parity_command_reports_each_image(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "detector.pth"
    torch.save({"model": build_detector_graph(None, config=DEMO, random_seed=0).state_dict()}, checkpoint)
    DEMO.save(tmp_path / "detector.json")
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    for name, size in (("a.png", (60, 80)), ("b.jpg", (200, 100))):
        Image.fromarray(noise).resize(size).save(images / name)
    arguments = ["detector", "--onnx", str(path), "--checkpoint", str(checkpoint), "--images", str(images)]
    arguments += ["--pipeline", "demo"]
    assert parity_main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "fp32" and report["matched_share"] >= 0.995
    assert [image["image"] for image in report["images"]] == ["a.png", "b.jpg"]
    for image in report["images"]:
        assert image["num_expected"] > 20
        assert image["max_score_error"] < 1e-3 and image["max_box_error_px"] < 2
    too_strict = replace(DETECTOR_LIMITS["fp32"], min_iou=1)  # an IoU cannot exceed 1
    with pytest.raises(ParityError, match="not matched is 1, limit"):
        check_detector(path, checkpoint, limits=too_strict)
