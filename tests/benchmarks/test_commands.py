"""A user's mistake ends every command with exit code 2 and one line on stderr."""

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import baseline, color_histogram, detector, models, regression, throughput


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on stderr; there is no traceback before it."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize("command", [baseline, throughput])
def test_a_wrong_world_folder(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--world", str(tmp_path / "no-such-folder")]) == 2
    assert message(capsys).startswith(f"{command.__name__}: ")
    (tmp_path / "video").mkdir()
    assert command.main(["--world", str(tmp_path)]) == 2
    assert message(capsys).startswith(f"{command.__name__}: {tmp_path}/video holds nothing: expected ")


def test_no_server_at_the_address(demo_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "figures.json"
    arguments = ["--server", "127.0.0.1:1", "--world", str(demo_world), "--pictures", "2", "-o", str(output)]
    assert throughput.main(arguments) == 2
    assert message(capsys).startswith("benchmarks.throughput: ")
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("{", "cannot be read"),
        ("[]", "is not a results file"),
        ('{"benchmark": "throughput", "figures": {}}', "is not a results file of benchmarks.regression"),
    ],
)
def test_a_stored_file_that_cannot_be_compared_with(
    content: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored.json"
    if content is not None:
        stored.write_text(content)
    assert regression.main(["--stored", str(stored)]) == 2
    assert str(stored) in (line := message(capsys)) and reason in line


def test_a_folder_without_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert color_histogram.main(["--data", str(tmp_path)]) == 2
    assert str(tmp_path) in message(capsys)


def test_detectron2_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "training.detector.model", None)  # as if its import of detectron2 failed
    assert detector.main(["--config", "demo"]) == 2
    assert "needs detectron2" in message(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_pytorch_has_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--device", "cuda"]) == 2
    assert message(capsys) == "benchmarks.models: PyTorch finds no CUDA device"


def test_a_number_below_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        throughput.main(["--pictures", "0"])
    assert "must be at least 1, got 0" in message(capsys)
