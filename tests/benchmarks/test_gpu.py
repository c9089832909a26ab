import subprocess
import sys
import time
import zipfile
from pathlib import Path

import onnxruntime
import pytest

from benchmarks import gpu
from benchmarks.harness.gpus import query_gpus
from benchmarks.harness.workload import WORLD_ITEMS

has_gpu = bool(query_gpus(("name",)))


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.splitlines() == ["benchmarks.gpu: no GPU: nvidia-smi is missing or lists none"]


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_a_provider_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "query_gpus", lambda fields: ["16384"])
    assert gpu.main([]) == 2
    assert "onnxruntime does not start on the GPU" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert not gpu.starts_on_gpu()  # it claims CUDA, but the session runs on the CPU


def test_the_baseline_has_a_clip_for_every_request_in_flight(tmp_path: Path) -> None:
    """The world has one clip per item, and a clip's frames are sent one after another."""
    (step,) = [step for step in gpu.steps("production", 16, tmp_path) if step[1] == "benchmarks.baseline"]
    values = dict(zip(step[2::2], step[3::2], strict=True))
    assert int(values["--concurrency"]) == int(values["--clips"]) == WORLD_ITEMS


def test_the_environment_is_made_from_the_wheels_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ENVIRONMENT", tmp_path / "venv")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "carried_package-1.0.dist-info"
    with zipfile.ZipFile(wheels / "carried_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_package.py", "VALUE = 7\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried-package\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    python = gpu.install(wheels, time.monotonic() + 300)
    code = "import carried_package; print(carried_package.VALUE)"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"


def test_a_folder_without_wheels_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "query_gpus", lambda fields: ["16384"])
    assert gpu.main(["--wheels", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [f"benchmarks.gpu: no wheels in {tmp_path}"]


def test_it_starts_on_a_python_without_packages() -> None:
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--help"]
    assert subprocess.run(command, cwd=gpu.ROOT, capture_output=True).returncode == 0
