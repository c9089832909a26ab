"""The form in which every benchmark of speed leaves its figures: a JSON file that says what was measured, how, on what.

    {"benchmark", "command", "commit", "started", "elapsed_s", "seed", "config", "machine", "versions", "models",
     "busy_share_after", "figures"}

`machine` has the share of the processors that other work used before the run; `models` maps each model to the
SHA-256 of its ONNX file; `figures` is the benchmark's own part.
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

from benchmarks.harness.machine import busy_share, describe_machine, describe_versions

RESULTS = Path("build/benchmarks")
"""Where commands write by default; `benchmarks/results` holds the files that are in git."""

_ROOT = Path(__file__).parents[2]


class Record:
    """One run of a benchmark; created before it measures, written after it."""

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
        """Writes the file; prints where it is."""
        content = {
            **self._head,
            "elapsed_s": round(time.monotonic() - self._start_s, 1),
            "models": models or {},
            "busy_share_after": busy_share(),
            "figures": figures,
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{content['benchmark']}: {content['elapsed_s']:.0f} s, written to {output}")


def read_results(path: Path) -> dict[str, Any]:
    """Raises ValueError, naming the file, if it is not such a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "figures" not in content:
        raise ValueError(f"{path} holds no benchmark's results")
    return content


def digest_models(repository: Path) -> dict[str, str]:
    """SHA-256 of every model.onnx in a model repository, by model."""
    return {
        path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.glob("*/1/model.onnx"))
    }


def rounded(value: float, digits: int = 4) -> float:
    """To `digits` significant digits: a measurement has no more."""
    return float(f"{value:.{digits}g}")


def _commit() -> str | None:
    """The checkout's commit, "-changed" behind it if files differ; None outside a git checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty=-changed", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
