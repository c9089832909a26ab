"""What a measurement ran on: processor, memory, GPU, versions, and how busy the machine was."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

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
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit")


def describe_machine() -> dict[str, Any]:
    """JSON of the hardware, and how busy it was with other work; takes a second."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [dict(zip(_GPU_FIELDS, line.split(", "), strict=True)) for line in query_gpus(_GPU_FIELDS)],
        "busy_share": busy_share(),
    }


def busy_share(duration_s: float = 1.0) -> float:
    """Share of all processors' time that whatever else runs used while this process slept."""
    before_busy_s, before_idle_s = read_processor_s()
    time.sleep(duration_s)
    busy_s, idle_s = read_processor_s()
    busy_s, idle_s = busy_s - before_busy_s, idle_s - before_idle_s
    return round(busy_s / (busy_s + idle_s), 2)


def read_processor_s() -> tuple[float, float]:
    """Seconds of all processors together since the machine started, busy and idle."""
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(ticks) / TICKS_PER_S for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return user + nice + system + irq + softirq + steal, idle + iowait


def describe_versions() -> dict[str, str]:
    """Versions of Python, the C library and those of PACKAGES that are installed."""
    versions = {"python": platform.python_version(), "libc": "-".join(platform.libc_ver())}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def query_gpus(fields: tuple[str, ...]) -> list[str]:
    """One line per GPU, "value, value, ...", as nvidia-smi prints them; none where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
