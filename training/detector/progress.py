"""Log a training run to log.jsonl, TensorBoard and the terminal."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livematch.files import replace_file

LOG_EVERY = 20  # iterations


class Progress:
    """Log of a training run, in `directory`/log.jsonl and `directory`/tensorboard.

    Args:
        directory: output folder of the run.
        iteration: the last finished iteration: 0 for a new run. Log lines of later iterations, left behind by a killed
            run, are removed, so that a resumed run has the log of an uninterrupted one.
        state: the `state_dict` saved at `iteration`.
    """

    sums: dict[str, float]
    num_iterations: int

    def __init__(self, directory: Path, iteration: int, state: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["iteration"] <= iteration] if iteration else []
        with replace_file(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
        self.tensorboard = SummaryWriter(directory / "tensorboard", purge_step=iteration + 1)
        self._restart()
        if state is not None:
            self.sums, self.num_iterations = dict(state["sums"]), state["num_iterations"]

    def _restart(self) -> None:
        self.sums, self.num_iterations = {}, 0
        self.time_s, self.num_timed = time.perf_counter(), 0

    def add(self, iteration: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Add one iteration; every LOG_EVERY iterations, write the mean losses since the previous line."""
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
        """Write one line; if `group` is given, also write each value to TensorBoard as the scalar `group/name`."""
        line = json.dumps({"iteration": iteration, **values}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as log:
            log.write(f"{line}\n")
        print(line, flush=True)
        if group is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"{group}/{name}", value, iteration)
            self.tensorboard.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the losses that are not in a line yet, so that a resumed run writes the same next line."""
        return {"sums": dict(self.sums), "num_iterations": self.num_iterations}

    def close(self) -> None:
        self.tensorboard.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a log.jsonl; an empty list if there is no file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
