"""Describe what a measurement ran on: processor, memory, GPU, versions, and how busy the machine was."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.gpus import query_gpus

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
