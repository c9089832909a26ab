"""The targets of `make train-demo`, with a command that trains nothing."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("target", "saved"),
    [("detector.pth", "last.pt"), ("b5a.trained", "b5a.resume.pth"), ("b7.trained", "b7.resume.pth")],
)
def test_a_checkpoint_is_made_again_for_another_world_and_a_stopped_training_goes_on(
    tmp_path: Path, target: str, saved: str
) -> None:
    def write(name: str, time_s: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time_s, time_s))

    def trains() -> bool:
        command = ["make", "-C", str(ROOT), f"TRAIN={tmp_path}", "RUN=echo trains", str(tmp_path / target)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        return any(line.startswith("trains -m training.") for line in finished.stdout.splitlines())

    write("world/world.json", 1000)
    write(saved, 2000)
    assert trains() and (tmp_path / saved).exists()  # it was stopped before the end
    write(target, 3000)
    assert not trains()
    write("world/world.json", 4000)
    assert trains() and not (tmp_path / saved).exists()
