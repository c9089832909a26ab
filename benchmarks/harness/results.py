"""The results file that every benchmark writes: JSON that says what was measured, how, and on what.

    {"benchmark", "command", "commit", "started", "elapsed_s", "seed", "config", "machine", "versions", "models",
     "busy_share_after", "figures"}

`machine` includes `busy_share`, the fraction of the processors that other work used before the run, and
`busy_share_after` is the same after it. `models` maps each model to the SHA-256 of its ONNX file. `figures` is
different for each benchmark; the docstring of its command describes it.
"""

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import busy_fraction, describe_machine, describe_versions
from livematch.files import replace_file

RESULTS = Path("build/benchmarks")
"""Where commands write by default; `benchmarks/results` holds the files that are in git."""

_ROOT = Path(__file__).parents[2]


class Record:
    """The record of one benchmark run. Create it before measuring, and write it afterwards.

    Creating it reads the commit, the versions and the machine, and takes a second to see how busy the machine is;
    `elapsed_s` in the file counts from then on.

    Args:
        benchmark: the command's name, such as "throughput".
        options: the parsed options, whose `seed` and `config` are recorded where they exist.
        argv: the arguments that `main` was given; None for those of the process.

    Example:
        >>> record = Record("search", options, argv)
        >>> record.write({"ratio": 0.95}, Path("build/benchmarks/search.json"))
    """

    def __init__(self, benchmark: str, options: argparse.Namespace, argv: Sequence[str] | None) -> None:
        self._start_s = time.monotonic()
        arguments = sys.argv[1:] if argv is None else argv
        self._head: dict[str, Any] = {
            "benchmark": benchmark,
            "command": " ".join(["python", "-m", f"benchmarks.{benchmark}", *arguments]),
            "commit": _commit(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": getattr(options, "seed", None),
            "config": getattr(options, "config", None),
            "machine": describe_machine(),
            "versions": describe_versions(),
        }

    def write(self, figures: dict[str, Any], output: Path, *, models: dict[str, str] | None = None) -> None:
        """Write the results file and print its path.

        Args:
            figures: the benchmark's own part, as JSON.
            output: the file to write or replace.
            models: SHA-256 by model, from `digest_models`.
        """
        content = {
            **self._head,
            "elapsed_s": round(time.monotonic() - self._start_s, 1),
            "models": models or {},
            "busy_share_after": busy_fraction(),
            "figures": figures,
        }
        with replace_file(output) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{content['benchmark']}: {content['elapsed_s']:.0f} s, written to {output}")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file; raise ValueError, naming the file, if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or "figures" not in content:
        raise ValueError(f"{path} is not a results file of a benchmark: it has no figures")
    return content


def digest_models(repository: Path) -> dict[str, str]:
    """Return the SHA-256 of every model.onnx in a model repository, by model."""
    return {
        path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.glob("*/1/model.onnx"))
    }


def rounded(value: float, digits: int = 4) -> float:
    """Round to `digits` significant digits; measurements are not more precise than that."""
    return float(f"{value:.{digits}g}")


def _commit() -> str | None:
    """Return the checkout's commit, with "-changed" appended if files differ; None outside a git checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty=-changed", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
