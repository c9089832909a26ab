"""How busy the machine was, and what the server used of it, between two moments."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.harness.machine import TICKS_PER_S, query_gpus, read_processor_s
from benchmarks.harness.results import rounded

_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_GPU_FIELDS = ("utilization.gpu", "power.draw", "memory.used")


@dataclass(frozen=True)
class Usage:
    """Totals since the machine and the server started, and the server's memory at the moment."""

    machine_busy_s: float  # of all processors together
    machine_idle_s: float
    server_cpu_s: float  # of the server's processes, the Python backend's among them
    server_memory_mib: float  # resident, shared pages counted once (PSS)
    energy_j: float | None  # of the processor package; None where it cannot be read


def read_usage(server_pid: int) -> Usage:
    machine_busy_s, machine_idle_s = read_processor_s()
    pids = process_tree(server_pid)
    energy_j = int(_ENERGY.read_text()) / 1e6 if os.access(_ENERGY, os.R_OK) else None
    return Usage(
        machine_busy_s=machine_busy_s,
        machine_idle_s=machine_idle_s,
        server_cpu_s=sum(map(_cpu_s, pids)),
        server_memory_mib=sum(map(_memory_mib, pids)),
        energy_j=energy_j,
    )


def describe_usage(before: Usage, after: Usage, duration_s: float, num_pictures: int) -> dict[str, Any]:
    """JSON: shares of all processors, the server's processor time per picture and its memory."""
    busy_s = after.machine_busy_s - before.machine_busy_s
    all_s = busy_s + after.machine_idle_s - before.machine_idle_s
    server_s = after.server_cpu_s - before.server_cpu_s
    figures = {
        "machine_busy_share": rounded(busy_s / all_s, 3),
        "server_busy_share": rounded(server_s / all_s, 3),
        "server_cpu_ms_per_picture": rounded(server_s * 1e3 / max(num_pictures, 1)),
        "server_memory_mib": round(after.server_memory_mib),
    }
    if before.energy_j is not None and after.energy_j is not None and after.energy_j > before.energy_j:
        figures["processor_power_w"] = rounded((after.energy_j - before.energy_j) / duration_s)
    return figures


class GpuSampler:
    """Reads load, power and memory of the first GPU once a second while it is open; nothing where there is none."""

    def __init__(self) -> None:
        self._samples: list[list[float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def describe(self) -> dict[str, Any] | None:
        if not self._samples:
            return None
        load, power, memory = np.array(self._samples).T
        return {
            "mean_load_percent": rounded(load.mean()),
            "mean_power_w": rounded(power.mean()),
            "max_memory_mib": rounded(memory.max()),
        }

    def _work(self) -> None:
        while True:
            lines = query_gpus(_GPU_FIELDS)
            if not lines:
                return
            self._samples.append([float(value) for value in lines[0].split(", ")])
            if self._stopped.wait(1.0):
                return


def process_tree(root: int) -> list[int]:
    """The process `root` and those started by it, at any depth."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (stat := _read(folder / "stat")):
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    pids = [root]
    for pid in pids:  # grows while it is walked
        pids += children.get(pid, [])
    return pids


def _cpu_s(pid: int) -> float:
    stat = _read(Path(f"/proc/{pid}/stat"))
    user, system = stat.rpartition(")")[2].split()[11:13] if stat else (0, 0)
    return (int(user) + int(system)) / TICKS_PER_S


def _memory_mib(pid: int) -> float:
    lines = _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _read(path: Path) -> str:
    """Empty if the process has ended meanwhile."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
