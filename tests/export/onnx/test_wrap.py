"""Embedders that come as ONNX files are wrapped without changing what they compute, whatever wrote them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from export.checkpoints import read_onnx_embedder
from export.config import OnnxEmbedderConfig
from export.onnx import files
from export.onnx.wrap import wrap_embedder
from export.parity.__main__ import main as parity_main
from export.parity.check import check_onnx_embedder, check_signature
from export.parity.compare import ParityError
from export.signature import embedder_signature
from training.embedder.model import IMAGENET_MEAN, IMAGENET_STD

Write = Callable[..., Path]
ONE_SIZE = [(64, 64)]
SIZES = [(64, 64), (40, 96), (97, 33)]


def wrap(path: Path, sizes: list[tuple[int, int]]) -> tuple[Path, OnnxEmbedderConfig]:
    """Return the wrapped file and its config."""
    config = read_onnx_embedder(path, sizes)
    output = path.parent / "wrapped" / "model.onnx"
    files.save(wrap_embedder(path, config, sizes, config.embedding_size), output)
    return output, config


def check(path: Path, sizes: list[tuple[int, int]]) -> float:
    """Return the smallest cosine between the embeddings of a wrapped file and of the file itself."""
    output, config = wrap(path, sizes)
    crop_size = sizes[0] if len(sizes) == 1 else None
    check_signature(output, embedder_signature(config.embedding_size, crop_size))
    report = check_onnx_embedder(output, path, config, sizes=sizes, crop_size=crop_size)
    return float(report["min_embedding_cosine"])


def export(path: Path, *, is_half: bool = False, **options: object) -> torch.nn.Module:
    """Write a small ResNet with torch.onnx, and return it in float32."""
    torch.manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=48).eval()
    example = torch.rand(2 if "dynamic_shapes" in options else 1, 3, 64, 64)
    if is_half:
        network, example = network.half(), example.half()
    torch.onnx.export(network, (example,), path, input_names=["x"], output_names=["crops"], verbose=False, **options)
    path.with_suffix(".json").write_text(json.dumps({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}))
    return network.float()


@pytest.mark.parametrize(("opset", "ir"), [(9, 4), (11, 6), (13, 7), (17, 8), (18, 8), (25, 13)])
def test_embedding_is_that_calculated_by_hand(opset: int, ir: int, tmp_path: Path, write_embedder: Write) -> None:
    output, config = wrap(write_embedder(tmp_path / "embedder_a.onnx", opset=opset, ir=ir), SIZES)
    assert config.embedding_size == 2
    assert [entry.version for entry in onnx.load(output).opset_import] == [opset]
    crops = np.empty((2, 40, 30, 3), np.uint8)
    crops[0], crops[1] = (200, 7, 50), (250, 7, 200)  # RGB; normalised (2, …, -1) and (3, …, 2)
    embedding = files.open_onnx(output)({"crops": crops})["embedding"]
    np.testing.assert_allclose(embedding, [[2 / 20**0.5, -4 / 20**0.5], [3 / 73**0.5, 8 / 73**0.5]], atol=1e-6)


def test_weights_may_be_inputs_too_as_in_old_files(tmp_path: Path, write_embedder: Write) -> None:
    inputs = "float[n, 3, h, w] images, float[2, 3, 1, 1] weight"
    path = write_embedder(tmp_path / "embedder_a.onnx", inputs=inputs, opset=9, ir=3)
    assert check(path, SIZES) > 0.99999


def test_one_of_several_outputs_is_taken(tmp_path: Path, write_embedder: Write) -> None:
    settings = {"mean": [0, 0, 0], "std": [255, 255, 255], "output": "embedding"}
    path = write_embedder(
        tmp_path / "embedder_a.onnx", outputs="float[n, 2, h, w] maps, float[n, 2] embedding", settings=settings
    )
    assert check(path, SIZES) > 0.99999
    assert "maps" not in {value.name for value in onnx.load(tmp_path / "wrapped" / "model.onnx").graph.output}


def test_bodies_of_if_may_use_outer_weights(tmp_path: Path, write_embedder: Write) -> None:
    last = """flat = Flatten <axis = 1> (pooled)
    is_large = Constant <value = bool {1}> ()
    embedding = If (is_large) <
        then_branch = a () => (float[n, 2] b) { c = Conv (images, weight) d = GlobalAveragePool (c) b = Flatten (d) },
        else_branch = e () => (float[n, 2] f) { f = Neg (flat) }
    >"""
    assert check(write_embedder(tmp_path / "embedder_a.onnx", last=last), SIZES) > 0.99999


def test_weights_may_lie_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "embedder_a.onnx"
    network = export(path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},))
    assert (tmp_path / "embedder_a.onnx.data").exists()
    assert check(path, ONE_SIZE) > 0.99999
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        pixels = (torch.from_numpy(crops) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        expected = torch.nn.functional.normalize(network(pixels.permute(0, 3, 1, 2).contiguous()))
    found = files.open_onnx(tmp_path / "wrapped" / "model.onnx")({"crops": crops})["embedding"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_float16_files_keep_their_precision(tmp_path: Path) -> None:
    path = tmp_path / "embedder_a.onnx"
    export(path, is_half=True, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},))
    assert check(path, ONE_SIZE) > 0.9999
    assert files.precision_of(tmp_path / "wrapped" / "model.onnx") == "fp16"


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_size_that_is_no_part_of_the_computation_becomes_dynamic(
    batch: int, tmp_path: Path, write_embedder: Write
) -> None:
    inputs, outputs = f"float[{batch}, 3, 64, 64] images", f"float[{batch}, 2] embedding"
    assert check(write_embedder(tmp_path / "embedder_a.onnx", inputs=inputs, outputs=outputs), ONE_SIZE) > 0.99999
    run = files.open_onnx(tmp_path / "wrapped" / "model.onnx")
    assert run({"crops": np.zeros((5, 64, 64, 3), np.uint8)})["embedding"].shape == (5, 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_size_that_is_part_of_the_computation_is_refused(
    batch: int, tmp_path: Path, write_embedder: Write
) -> None:
    path = write_embedder(
        tmp_path / "embedder_a.onnx",
        inputs=f"float[{batch}, 3, h, w] images",
        outputs=f"float[{batch}, 2] embedding",
        last=f"shape = Constant <value_ints = [{batch}, 2]> () embedding = Reshape (pooled, shape)",
    )
    with pytest.raises(ValueError, match=rf"takes only batches of {batch}, .* export it with a dynamic batch, .*Dim"):
        read_onnx_embedder(path, SIZES)


def test_pytorch_without_dynamic_shapes_makes_the_batch_size_part_of_the_computation(tmp_path: Path) -> None:
    export(tmp_path / "embedder_a.onnx", dynamo=True)
    with pytest.raises(ValueError, match="takes only batches of 1, and computes with that number"):
        read_onnx_embedder(tmp_path / "embedder_a.onnx", ONE_SIZE)


def test_a_file_of_more_than_2_gb_is_refused(
    tmp_path: Path, write_embedder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.onnx.wrap.MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"embedder_a\.onnx and its weights have .* GB, more than 2\.1; use float16"):
        read_onnx_embedder(write_embedder(tmp_path / "embedder_a.onnx"), SIZES)


def test_other_weights_and_failing_sizes_are_noticed(tmp_path: Path, write_embedder: Write) -> None:
    path = write_embedder(tmp_path / "embedder_a.onnx")
    output, config = wrap(path, SIZES)
    write_embedder(path, last="negated = Neg (pooled) embedding = Flatten <axis = 1> (negated)")
    with pytest.raises(ParityError, match=r"1 - cosine of embedding is 2, limit 0\.0001"):
        check_onnx_embedder(output, path, config, sizes=SIZES)
    last = "size = Constant <value_ints = [-1, 8192]> () embedding = Reshape (maps, size)"  # 2 x 64 x 64
    write_embedder(path, outputs="float[n, D] embedding", last=last)
    with pytest.raises(ValueError, match=r"embedder_a\.onnx: ONNX Runtime cannot run it: .*Reshape"):
        read_onnx_embedder(path, SIZES)


def test_embeddings_whose_length_depends_on_the_crop_are_refused(tmp_path: Path, write_embedder: Write) -> None:
    last = "embedding = Flatten <axis = 1> (maps)"  # two channels
    path = write_embedder(tmp_path / "embedder_a.onnx", outputs="float[n, D] embedding", last=last)
    assert read_onnx_embedder(path, ONE_SIZE).embedding_size == 2 * 64 * 64
    message = "depends on the crop: 8192 for 64x64, 7680 for 96x40, 6402 for 33x97; set crops to one size"
    with pytest.raises(ValueError, match=message):
        read_onnx_embedder(path, SIZES)


def test_a_network_that_mixes_the_crops_of_a_batch_is_noticed(tmp_path: Path, write_embedder: Write) -> None:
    last = """flat = Flatten <axis = 1> (pooled)
    middle = ReduceMean <axes = [0], keepdims = 1> (flat)
    embedding = Add (flat, middle)"""
    path = write_embedder(tmp_path / "embedder_a.onnx", last=last, opset=17)
    output, config = wrap(path, SIZES)
    with pytest.raises(ParityError, match="1 - cosine of embedding is"):
        check_onnx_embedder(output, path, config, sizes=SIZES)


def test_command_line(tmp_path: Path, write_embedder: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_embedder(tmp_path / "embedder_a.onnx")
    output, _ = wrap(path, SIZES)
    arguments = ["embedder", "--onnx", str(output), "--checkpoint", str(path), "--pipeline", "demo"]
    assert parity_main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["min_embedding_cosine"] > 0.99999
    path.with_suffix(".json").unlink()
    assert parity_main(arguments) == 2
    assert "embedder_a.json" in capsys.readouterr().err
