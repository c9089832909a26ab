"""Half precision files: which operators compute in which type, and how far the results are from float32."""

from collections import defaultdict
from itertools import chain
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from export.config import demo
from export.graphs.checkpoints import build_detector_graph
from export.graphs.precision import fold_norms, to_half
from export.onnx.export import export_detector, export_embedder
from export.parity.check import check_detector, check_embedder, check_signature
from export.parity.inputs import folder_batches
from export.signature import signatures
from training.detector import config as detector_config
from training.embedder import model as embedder_model

ROOT = Path(__file__).parents[3]
FLOAT_ONLY = {  # operators on logits, boxes and embeddings
    "RoiAlign",
    "NonMaxSuppression",
    "Softmax",
    "TopK",
    "Exp",
    "Sqrt",
    "Pow",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "Min",
    "Div",
    "Greater",
    "GreaterOrEqual",
    "GatherND",
    "GatherElements",
    "ScatterND",
}
FLOATS = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}


def float_types(path: Path) -> dict[str, list[str]]:
    """Returns, for each kind of operation, the precision of each of its nodes, by type inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    found = defaultdict(list)
    for node in model.graph.node:
        inputs = node.input[:1] if node.op_type == "Resize" else node.input  # its scales are float32 by definition
        precisions = {FLOATS[types[name]] for name in inputs if types.get(name) in FLOATS}
        if precisions:
            assert len(precisions) == 1, f"{node.name} mixes {precisions}"
            found[node.op_type].append(precisions.pop())
    return found


CHECKPOINTS = ROOT / "training" / "demo" / "checkpoints"


@pytest.fixture
def detector(half_repository: Path) -> Path:
    return half_repository / "detector" / "1" / "model.onnx"


@pytest.fixture
def embedder(half_repository: Path) -> Path:
    return half_repository / "embedder_b6" / "1" / "model.onnx"


def test_detector_is_half_with_float_islands(detector: Path) -> None:
    types = float_types(detector)
    # ReduceMean is the squeeze of channel attention: over a large map its sum overflows float16.
    assert {"RoiAlign", "Softmax", "TopK", "Exp", "Sqrt", "ReduceMean"} <= types.keys()
    assert all(set(types[kind]) == {"fp32"} for kind in FLOAT_ONLY & types.keys())
    levels = len(detector_config.LEVELS)
    assert types["Conv"].count("fp32") == 2 * levels  # logits and deltas
    assert types["Conv"].count("fp16") > 30
    assert types["Gemm"].count("fp16") == types["Gemm"].count("fp32") == 2  # hidden; predicting
    assert "NonMaxSuppression" not in {node.op_type for node in onnx.load(detector).graph.node}
    check_signature(detector, signatures(demo())["detector"])


def test_embedder_is_half_with_float_islands(embedder: Path) -> None:
    types = float_types(embedder)
    assert {"ReduceMean", "Pow"} <= types.keys()
    assert all(set(types[kind]) == {"fp32"} for kind in FLOAT_ONLY & types.keys())
    assert set(types["Conv"]) == {"fp16"}
    # TensorRT accepts a uint8 input only if a Cast reads it.
    assert {node.op_type for node in onnx.load(embedder).graph.node if "crops" in node.input} == {"Cast"}
    check_signature(embedder, signatures(demo())["embedder_b6"])


@pytest.mark.parametrize("network", ["detector", "embedder"])
def test_files_do_not_contain_the_paths_of_this_machine(network: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(network).read_bytes()
    assert not [folder for folder in (ROOT, Path(torch.__file__).parent) if str(folder).encode() in content]


def test_half_detector_matches_float32(detector: Path, demo_world: Path) -> None:
    folders = sorted((demo_world / "image").iterdir())
    batches = chain.from_iterable(folder_batches(folder, demo()) for folder in folders)
    report = check_detector(detector, CHECKPOINTS / "detector.pth", batches=batches)
    assert report["precision"] == "fp16"
    assert report["num_detections"] > 40 and report["matched_share"] >= 0.98


def test_half_embedder_matches_float32(embedder: Path) -> None:
    sizes = ((160, 40), (116, 116), (64, 33), (90, 120))
    report = check_embedder(embedder, CHECKPOINTS / "embedder_b6.pth", sizes=sizes)
    assert 0.999 < report["min_embedding_cosine"] < 1 + 1e-6


@torch.inference_mode()
def test_folded_norms_are_the_same_function() -> None:
    graph = build_detector_graph(None, config=detector_config.DEMO, random_seed=1)
    pixels = torch.randn(1, 3, 64, 96) * 50
    expected = graph.backbone(pixels)
    fold_norms(graph.backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    for found, level in zip(graph.backbone(pixels), expected, strict=True):
        torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-4)


def test_weights_beyond_float16_are_refused() -> None:
    convolution = nn.Sequential(nn.Conv2d(1, 1, 1))
    nn.init.constant_(convolution[0].weight, 1e5)
    with pytest.raises(ValueError, match=r"0\.weight reaches 1e\+05"):
        to_half(convolution)


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        export_detector(None, tmp_path / "m.onnx", config=detector_config.DEMO, random_seed=0, precision="int8")
    with pytest.raises(ValueError, match="int8"):
        export_embedder(None, tmp_path / "m.onnx", config=embedder_model.DEMO["b6"], random_seed=0, precision="int8")
