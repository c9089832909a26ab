"""The exported file against its PyTorch source, on shapes that were not traced."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from export.detector import build_detector_graph, export_detector, main
from training.detector.config import DEMO

FORBIDDEN = {"NonZero", "Loop", "If", "Scan", "Unique", "Compress", "SequenceAt"}  # shapes only known at run time
SIZES = (  # of the padded image, then of each image in it
    ((480, 256), [(455, 256)]),
    ((256, 480), [(256, 455), (240, 480)]),
    ((320, 352), [(320, 320), (300, 350), (64, 40)]),
    ((32, 32), [(20, 31)]),
)


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
    state_dict["extra.weight"] = state_dict.pop("roi_heads.box_head.fc2.bias")
    state_dict["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(24)
    torch.save({"model": state_dict}, checkpoint)
    DEMO.save(tmp_path / "detector.json")
    with pytest.raises(ValueError, match=r"detector\.pth.*fc2\.bias.*extra\.weight.*cls_score\.bias \(24,\)"):
        build_detector_graph(checkpoint)


def test_checkpoint_gives_the_graph_back(tmp_path: Path) -> None:
    graph = build_detector_graph(None, config=DEMO, random_seed=1)
    torch.save({"model": graph.state_dict()}, tmp_path / "detector.pth")
    DEMO.save(tmp_path / "detector.json")
    loaded = build_detector_graph(tmp_path / "detector.pth")
    assert not loaded.training
    assert all(value.equal(graph.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        export_detector(None, tmp_path / "model.onnx", config=DEMO)
    with pytest.raises(ValueError, match="checkpoint"):
        export_detector(None, tmp_path / "model.onnx", random_seed=0)
