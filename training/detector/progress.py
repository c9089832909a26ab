"""The record of a training run: log.jsonl, the same numbers in TensorBoard, and lines on the terminal."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG_EVERY = 20


class Progress:
    """Writes to `directory`/log.jsonl and `directory`/tensorboard what happens after `iteration`.

    Lines of later iterations, which a killed run left behind, are removed, so the log reads as that of one run. `state`
    is the `state_dict` saved at that iteration.
    """

    def __init__(self, directory: Path, iteration: int, state: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["iteration"] <= iteration] if iteration else []
        self.path.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        self.tensorboard = SummaryWriter(directory / "tensorboard", purge_step=iteration + 1)
        self._restart()
        if state is not None:
            self.sums, self.num_iterations = dict(state["sums"]), state["num_iterations"]

    def _restart(self) -> None:
        self.sums: dict[str, float] = {}
        self.num_iterations = 0
        self.time_s, self.num_timed = time.perf_counter(), 0

    def add(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Adds one iteration; every LOG_EVERY iterations writes the mean losses since the last time."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss
        self.num_iterations += 1
        self.num_timed += 1
        if iteration % LOG_EVERY:
            return
        line = {"loss": round(sum(self.sums.values()) / self.num_iterations, 4)}
        line |= {name: round(total / self.num_iterations, 4) for name, total in self.sums.items()}
        line["learning_rate"] = learning_rate
        line["s_per_iteration"] = round((time.perf_counter() - self.time_s) / self.num_timed, 3)
        self.write(iteration, line, "training")
        self._restart()

    def write(self, iteration: int, values: Mapping[str, Any], group: str | None = None) -> None:
        """Writes a line; with a group its values also become TensorBoard's scalars `group/name`."""
        line = json.dumps({"iteration": iteration, **values}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        print(line, flush=True)
        if group is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, iteration)
            self.tensorboard.flush()

    def state_dict(self) -> dict[str, Any]:
        """The losses that no line holds yet, so that a resumed run's next line is what it would have been."""
        return {"sums": dict(self.sums), "num_iterations": self.num_iterations}

    def close(self) -> None:
        self.tensorboard.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log.jsonl that was written completely; none if there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
