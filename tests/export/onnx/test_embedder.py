import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from timm.layers import Conv2dSame

from export.embedder import main
from export.graphs.checkpoints import build_embedder
from export.graphs.embedder import EmbedderGraph, ParityPaddedConv
from export.onnx.export import export_embedder
from export.onnx.files import open_onnx
from export.parity.__main__ import main as parity_main
from export.parity.check import check_embedder, check_signature
from export.parity.compare import ParityError
from export.signature import embedder_signature
from training.embedder.model import DEMO, save_embedder

SIZES = ((160, 40), (116, 116), (81, 103), (64, 33))  # height, width; none of them traced


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedder") / "model.onnx"
    export_embedder(None, path, config=DEMO["b6"], random_seed=3)
    return path


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("groups", [1, 4])
def test_parity_padding_is_tf_same_at_every_size(kernel_size: int, groups: int) -> None:
    torch.manual_seed(0)
    reference = Conv2dSame(4, 8, kernel_size, stride=2, groups=groups, bias=groups == 1)
    padded = ParityPaddedConv(reference)
    for height in range(kernel_size, kernel_size + 9):
        for width in (kernel_size, kernel_size + 1, 30, 31):
            x = torch.rand(1, 4, height, width)
            torch.testing.assert_close(padded(x), reference(x), rtol=0, atol=0)


def test_parity_padding_refuses_other_convolutions() -> None:
    with pytest.raises(ValueError, match="not a stride-2 convolution"):
        ParityPaddedConv(Conv2dSame(3, 4, 3, stride=1))


def test_graph_leaves_the_original_embedder_unchanged() -> None:
    embedder = build_embedder(None, config=DEMO["b5a"], random_seed=0)
    before = {name: type(module) for name, module in embedder.named_modules()}
    EmbedderGraph(embedder)
    assert {name: type(module) for name, module in embedder.named_modules()} == before
    assert Conv2dSame in before.values()


def test_onnx_equals_pytorch_at_sizes_not_traced(onnx_path: Path) -> None:
    report = check_embedder(onnx_path, None, sizes=SIZES, config=DEMO["b6"], random_seed=3)
    assert report["max_embedding_difference"] < 1e-6


def test_embeddings_have_unit_length_and_differ(onnx_path: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, 100, 60, 3), np.uint8)
    embedding = open_onnx(onnx_path)({"crops": crops})["embedding"]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    assert np.abs(embedding[0] - embedding[1]).max() > 1e-4


def test_batch_is_the_same_as_one_by_one(onnx_path: Path) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (4, 80, 90, 3), np.uint8)
    run = open_onnx(onnx_path)
    together = run({"crops": crops})["embedding"]
    for row in range(4):
        alone = run({"crops": crops[row : row + 1]})["embedding"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_other_weights_are_noticed(onnx_path: Path) -> None:
    with pytest.raises(ParityError, match="largest difference of embedding is"):
        check_embedder(onnx_path, None, sizes=SIZES[:1], config=DEMO["b6"], random_seed=4)


def test_other_tensors_are_noticed(onnx_path: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_path)
    onnx.compose.add_prefix(model, "x_", rename_nodes=False, inplace=True)
    onnx.save(model, tmp_path / "renamed.onnx")
    with pytest.raises(ParityError, match="x_crops"):
        check_signature(tmp_path / "renamed.onnx", embedder_signature(512))


def test_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, output = tmp_path / "embedder_b5a.pth", tmp_path / "1" / "model.onnx"
    assert main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export.embedder: ") and "embedder_b5a" in line
    save_embedder(build_embedder(None, config=DEMO["b5a"], random_seed=1), checkpoint)
    assert main(["--checkpoint", str(checkpoint), "--output", str(output)]) == 0
    arguments = ["embedder", "--onnx", str(output), "--checkpoint", str(checkpoint), "--pipeline", "demo"]
    capsys.readouterr()
    assert parity_main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["max_embedding_difference"] < 1e-6
    save_embedder(build_embedder(None, config=DEMO["b5a"], random_seed=2), checkpoint)
    assert parity_main(arguments) == 3
    assert "limit" in capsys.readouterr().err


def test_needs_a_checkpoint_or_a_seed() -> None:
    with pytest.raises(ValueError, match="either a checkpoint"):
        build_embedder(None, config=DEMO["b5a"])
