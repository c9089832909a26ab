from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

from training.detector.progress import LOG_EVERY, Progress, read_log


def add(progress: Progress, first: int, last: int) -> None:
    for iteration in range(first, last + 1):
        progress.add(iteration, {"loss_cls": float(iteration), "loss_rpn_cls": 1.0}, learning_rate=0.1)


def curve(path: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "s_per_iteration"} for line in read_log(path)]


def test_a_line_holds_the_means_since_the_last_one(tmp_path: Path) -> None:
    add(Progress(tmp_path, 0), 1, 2 * LOG_EVERY)
    assert curve(tmp_path / "log.jsonl") == [
        {"iteration": 20, "loss": 11.5, "loss_cls": 10.5, "loss_rpn_cls": 1.0, "learning_rate": 0.1},
        {"iteration": 40, "loss": 31.5, "loss_cls": 30.5, "loss_rpn_cls": 1.0, "learning_rate": 0.1},
    ]


def test_a_killed_run_that_goes_on_logs_what_an_unbroken_one_does(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    add(Progress(tmp_path / "whole", 0), 1, 60)
    killed = Progress(tmp_path / "killed", 0)
    add(killed, 1, 30)
    state = killed.state_dict()  # as in the checkpoint
    add(killed, 31, 45)
    with (tmp_path / "killed/log.jsonl").open("a") as log:
        log.write('{"iteration": 4')  # killed while writing
    add(Progress(tmp_path / "killed", 30, state), 31, 60)
    assert curve(tmp_path / "killed/log.jsonl") == curve(tmp_path / "whole/log.jsonl")


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = Progress(tmp_path, 0)
    add(progress, 1, 40)
    progress.write(40, {"ap": 0.25}, "validation")
    progress.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("training/loss")] == [(20, 11.5), (40, 31.5)]
    assert [(event.step, event.value) for event in events.Scalars("validation/ap")] == [(40, 0.25)]
