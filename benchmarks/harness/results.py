"""Run benchmarks, and write and read their results files: JSON that says what was measured, how, and on what machine.

    {"benchmark", "command", "commit", "started", "elapsed_s", "seed", "config", "machine", "versions", "models",
     "busy_share_after", "figures"}

`machine` includes `busy_share`, the fraction of the processors' time that other work used before the run;
`busy_share_after` is the same after it. `models` maps each model to the SHA-256 of its ONNX file. `figures` is
different for each benchmark; the docstring of its command describes it.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.figures import Figures
from benchmarks.harness.gpus import query_gpus
from livematch.cli.commands import run_command
from livematch.evaluation.results import write_json
from livematch.media.annotations import read_json

RESULTS = Path("build/benchmarks")
"""Where commands write by default; `benchmarks/results` holds the files that are in git."""

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "torchvision",
    "timm",
    "tritonclient",
    "nvidia-pytriton",
    "tensorrt",
    "av",
    "pillow",
    "opencv-python-headless",
)

Run = Callable[[argparse.Namespace], int]
"""Run a benchmark with the given options, and return its exit code."""

_ROOT = Path(__file__).parents[2]
_GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit")


def run_benchmark(parser: argparse.ArgumentParser, argv: Sequence[str] | None, run: Run) -> int:
    """Parse the arguments, those of the process if `argv` is None, and return the exit code of `run`.

    `run` gets the options, to which the arguments are added as `argv`. What it raises becomes one line on stderr.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse_args(arguments)
    options.argv = arguments
    return run_command(f"benchmarks.{options.benchmark}", lambda: run(options))


class Record:
    """The record of one benchmark run. Create it before measuring, and write it afterwards.

    Creating it reads the commit, the versions and the machine, and takes a second to measure how busy the machine is;
    `elapsed_s` in the file is the time since. The options come from `run_benchmark`: `output` is the results file, and
    `seed` and `config` are recorded where they exist.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._start_s = time.monotonic()
        self._output: Path = options.output
        self._head: dict[str, Any] = {
            "benchmark": options.benchmark,
            "command": " ".join(["python", "-m", f"benchmarks.{options.benchmark}", *options.argv]),
            "commit": _commit(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": getattr(options, "seed", None),
            "config": getattr(options, "config", None),
            "machine": describe_machine(),
            "versions": describe_versions(),
        }

    def write(self, figures: Figures, repository: Path | None = None) -> None:
        """Write the results file and print its path; `repository` is the model repository that was measured, if any."""
        models = [] if repository is None else sorted(repository.glob("*/1/model.onnx"))
        content = {
            **self._head,
            "elapsed_s": round(time.monotonic() - self._start_s, 1),
            "models": {path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest() for path in models},
            "busy_share_after": busy_fraction(),
            "figures": figures,
        }
        write_json(content, self._output)
        print(f"{content['benchmark']}: {content['elapsed_s']:.0f} s, written to {self._output}")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file; raise ValueError, naming the file, if it is not one or cannot be read."""
    content = read_json(path)
    if not isinstance(content, dict) or "figures" not in content:
        raise ValueError(f"{path} is not a results file of a benchmark: it has no figures")
    return content


def _commit() -> str | None:
    """Return the checkout's commit, with "-changed" appended if files differ; None outside a git checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty=-changed", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_machine() -> dict[str, Any]:
    """Return JSON of the hardware and of how busy it was with other work; takes a second."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [dict(zip(_GPU_FIELDS, line.split(", "), strict=True)) for line in query_gpus(_GPU_FIELDS)],
        "busy_share": busy_fraction(),
    }


def busy_fraction() -> float:
    """Return the fraction of all processors' time that other processes used while this one slept for a second."""
    busy_percent: float = psutil.cpu_percent(interval=1.0)
    return round(busy_percent / 100, 2)


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, the C library and the installed ones of PACKAGES."""
    versions = {"python": platform.python_version(), "libc": "-".join(platform.libc_ver())}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _cpu_model() -> str:
    """Return the processor's name, which `platform.processor()` leaves empty on most Linux systems."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
