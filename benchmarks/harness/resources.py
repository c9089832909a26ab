"""Measure how busy the machine is, and what the server uses of it."""

import os
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness.figures import Figures, rounded
from benchmarks.harness.gpus import query_gpus

_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Usage:
    """Totals since the machine and the server started, and the server's current memory."""

    machine_busy_s: float  # of all processors together
    machine_idle_s: float  # of all processors together, waiting for disks included
    server_cpu_s: float  # processor time of the server's processes, the Python backend's included
    server_memory_mib: float  # resident memory of the server's processes, shared pages counted once (PSS)
    energy_j: float | None  # used by the processor package; None where it cannot be read


def read_usage(server_pid: int) -> Usage:
    times = psutil.cpu_times()
    idle_s = times.idle + times.iowait
    busy_s = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    server_cpu_s, server_memory_bytes = 0.0, 0
    for pid in process_tree(server_pid):
        with suppress(psutil.NoSuchProcess):  # a child may end between being listed and being read
            process = psutil.Process(pid)
            user_s, system_s, *_ = process.cpu_times()
            server_memory_bytes += process.memory_full_info().pss
            server_cpu_s += user_s + system_s
    energy_j = int(_ENERGY.read_text()) / 1e6 if os.access(_ENERGY, os.R_OK) else None
    return Usage(busy_s, idle_s, server_cpu_s, server_memory_bytes / 2**20, energy_j)


def describe_usage(before: Usage, after: Usage, duration_s: float, num_images: int) -> Figures:
    """Return JSON: how busy machine and server kept the processors, the server's CPU time per image, and its memory."""
    busy_s = after.machine_busy_s - before.machine_busy_s
    all_s = busy_s + after.machine_idle_s - before.machine_idle_s
    server_s = after.server_cpu_s - before.server_cpu_s
    figures = {
        "machine_busy_share": rounded(busy_s / all_s, 3),
        "server_busy_share": rounded(server_s / all_s, 3),
        "server_cpu_ms_per_picture": rounded(server_s * 1e3 / max(num_images, 1)),
        "server_memory_mib": round(after.server_memory_mib),
    }
    if before.energy_j is not None and after.energy_j is not None and after.energy_j > before.energy_j:
        figures["processor_power_w"] = rounded((after.energy_j - before.energy_j) / duration_s)
    return figures


def process_tree(root: int) -> list[int]:
    """Return the ids of process `root` and of all its descendants."""
    return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]


@contextmanager
def gpu_sampling() -> Iterator[Future[Figures | None]]:
    """Context manager: sample the first GPU once a second; the future has JSON of its load, None without a GPU."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(_sample_gpu, stopped)
        finally:
            stopped.set()


def _sample_gpu(stopped: threading.Event) -> Figures | None:
    samples = []
    while lines := query_gpus(("utilization.gpu", "power.draw", "memory.used")):
        samples.append([float(value) for value in lines[0].split(", ")])
        if stopped.wait(1.0):
            break
    if not samples:
        return None
    load, power, memory = zip(*samples, strict=True)
    return {
        "mean_load_percent": rounded(statistics.mean(load)),
        "mean_power_w": rounded(statistics.mean(power)),
        "max_memory_mib": rounded(max(memory)),
    }
