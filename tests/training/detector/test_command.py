"""Mistakes that the command reports before a training starts; these tests do not need detectron2."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from training.detector import train


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert train.main(["--output", "nowhere", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training.detector.train: ")
    return line


@pytest.fixture
def detectron2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command believe that detectron2 is installed."""
    monkeypatch.setattr(train, "find_spec", lambda name: ModuleSpec(name, None))


def test_missing_detectron2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: importlib.util.find_spec(f"no_{name}"))
    error = error_of(["--config", "demo", "--data", "nowhere"], capsys)
    assert "detectron2 is not installed: see https://" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "demo", "--num-gpus", "3"], "a batch of 8 images cannot be split evenly over 3 processes"),
        (["--config", "demo", "--num-gpus", "0"], "at least 1 each"),
        (["--config", "demo", "--num-machines", "2"], "--num-machines needs --dist-url"),
        (["--config", "demo", "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        (["--config", "demo", "--iterations", "0"], "--iterations is 0, not a positive number"),
        (["--stage", "3"], "there is no nowhere/stage2/detector.pth"),
        (["--config", "demo"], "nowhere: no such file or folder"),
    ],
)
@pytest.mark.usefixtures("detectron2")
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of([*options, "--data", "nowhere"], capsys)


@pytest.mark.usefixtures("detectron2")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    error = error_of(["--config", "demo", "--data", "nowhere", "--num-gpus", "2"], capsys)
    assert "--num-gpus is 2, this machine has 1" in error


@pytest.mark.usefixtures("detectron2")
def test_an_existing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "last.pt").touch()
    error = error_of(["--config", "demo", "--data", "nowhere", "--output", str(tmp_path)], capsys)
    assert error.endswith(f"{tmp_path}/last.pt exists: continue that run with --resume, or remove the file")
