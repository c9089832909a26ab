"""Write and read results files: JSON that says what a benchmark measured, how, and on what machine.

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
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.gpus import query_gpus
from livematch.files import replace_file

RESULTS = Path("build/benchmarks")
"""Where commands write by default; `benchmarks/results` holds the files that are in git."""

_ROOT = Path(__file__).parents[2]

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
_GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit")


class Record:
    """The record of one benchmark run. Create it before measuring, and write it afterwards.

    Creating it reads the commit, the versions and the machine, and takes a second to measure how busy the machine is;
    `elapsed_s` in the file is the time since.

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
            figures: what the benchmark measured, as JSON.
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


def read_json(path: Path) -> Any:
    """Read a JSON file; raise ValueError, naming the file, if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file; raise ValueError, naming the file, if it is not one."""
    content = read_json(path)
    if not isinstance(content, dict) or "figures" not in content:
        raise ValueError(f"{path} is not a results file of a benchmark: it has no figures")
    return content


def digest_models(repository: Path) -> dict[str, str]:
    """Return the SHA-256 of every model.onnx in a model repository, by model."""
    return {
        path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.glob("*/1/model.onnx"))
    }


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


def busy_fraction(duration_s: float = 1.0) -> float:
    """Return the fraction of all processors' time that other processes used while this one slept for `duration_s`."""
    busy_percent: float = psutil.cpu_percent(interval=duration_s)
    return round(busy_percent / 100, 2)


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, the C library and the installed ones of PACKAGES."""
    versions = {"python": platform.python_version(), "libc": "-".join(platform.libc_ver())}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    """Return the processor's name, which `platform.processor()` leaves empty on most Linux systems."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
