"""Engines compared with float32 files: the comparison itself on the CPU, and the errors on a machine without a GPU."""

import importlib.util
import json
import shutil
from pathlib import Path

import onnxruntime
import pytest
import torch

from export.config import demo, production
from export.parity.__main__ import main as parity_main
from export.parity.engines import detector_feeds, embedder_feeds
from export.tensorrt.profiles import profiles
from export.triton.model_config import write_files

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def arguments(engine: str, repository: Path, reference: Path) -> list[str]:
    return [
        *("engines", "--engine", engine),
        *("--repository", str(repository), "--reference", str(reference)),
    ]


@needs_no_gpu
@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime-cuda"])
def test_without_gpu_one_line_and_exit_code_2(
    engine: str, demo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity_main(arguments(engine, demo_repository, demo_repository)) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert ("TensorRT" if engine == "tensorrt" else "CUDAExecutionProvider") in err or "GPU" in err


@needs_no_gpu
def test_onnxruntime_falling_back_to_the_cpu_is_an_error(
    demo_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("CUDA"))
    assert parity_main(arguments("onnxruntime-cuda", demo_repository, demo_repository)) == 2
    assert "CUDAExecutionProvider did not start" in capsys.readouterr().err
    assert loaded == ["CUDA"]


def test_other_weights_are_noticed(demo_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(demo(), tmp_path)
    for model in demo().networks:
        source = {"embedder_b6": "embedder_b7"}.get(model, model)
        shutil.copy(demo_repository / source / "1" / "model.onnx", tmp_path / model / "1")
    assert parity_main(arguments("onnxruntime-cpu", tmp_path, demo_repository)) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["is_passed"]
    assert {model for model, part in report["models"].items() if not part["is_passed"]} == {"embedder_b6"}
    assert report["models"]["detector"]["matched_share"] == 1 and report["models"]["detector"]["num_detections"] > 16
    assert report["models"]["embedder_b5a"]["min_embedding_cosine"] > 0.99999


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("crop", "prepare_frame"):
        assert parity_main([model, "--onnx", str(tmp_path / "model.onnx")]) == 2
        assert capsys.readouterr().err.splitlines() == [f"export.parity: {tmp_path / 'model.onnx'}: no such file"]


def test_missing_repository_is_one_line(
    demo_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity_main(arguments("onnxruntime-cpu", tmp_path, demo_repository)) == 2
    assert "has no pipeline.json; build the repository with this version of export.build" in capsys.readouterr().err
    write_files(demo(), tmp_path)
    assert parity_main(arguments("onnxruntime-cpu", tmp_path, demo_repository)) == 2
    assert "model.onnx is missing" in capsys.readouterr().err


@pytest.mark.parametrize("config", [demo(), production()], ids=lambda config: config.name)
def test_inputs_fit_the_profiles(config: object) -> None:
    for model, all_feeds in (("detector", detector_feeds), ("embedder_b5a", embedder_feeds)):
        for feeds in all_feeds(config):
            assert any(
                all(
                    low <= side <= high
                    for name, array in feeds.items()
                    for low, side, high in zip(
                        profile.inputs[name].minimum, array.shape, profile.inputs[name].maximum, strict=True
                    )
                )
                for profile in profiles(model, config)
            )


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in __import__("onnxruntime").get_available_providers(), reason="no onnxruntime-gpu"
)
def test_onnxruntime_on_the_gpu_agrees(demo_repository: Path) -> None:
    assert parity_main(arguments("onnxruntime-cuda", demo_repository, demo_repository)) == 0


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensorrt_agrees(demo_repository: Path, tmp_path: Path) -> None:
    from export.tensorrt import build as tensorrt

    shutil.copytree(demo_repository, tmp_path, dirs_exist_ok=True)
    assert tensorrt.main(["--repository", str(tmp_path)]) == 0
    assert parity_main(arguments("tensorrt", tmp_path, demo_repository)) == 0
