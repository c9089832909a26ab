"""Make the paragraphs and tables of each benchmark's section on the page."""

from collections.abc import Callable, Iterable

from benchmarks.harness.figures import Figures, each
from benchmarks.report.table import engine_speedups, is_stable_on_both_sides

Table = list[dict[str, object]]
"""Rows, each from column name to value; all rows have the same columns."""

LATENCY = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "num_answered", "num_failures")

COLUMNS = {
    "baseline_cpu_s": "baseline CPU s",
    "calls_per_picture": "calls/image",
    "concurrency": "in flight",
    "cpu_ratio": "ratio",
    "max_memory_mib": "GPU MiB",
    "mean_load_percent": "GPU %",
    "mean_power_w": "GPU W",
    "num_answered": "responses",
    "num_failures": "failures",
    "pictures_per_s": "images/s",
    "pipeline_cpu_s": "pipeline CPU s",
    "server_memory_mib": "MiB",
    "share_of_bound": "fraction of bound",
    "speedup_unread": "speed-up without it",
    "speedup": "speed-up",
}
"""Names of columns that `_cells` cannot derive from the names of the figures."""


def _cells(figures: Figures, *names: str) -> dict[str, object]:
    """Return the named figures by column name; a figure that is missing becomes an empty cell."""
    return {COLUMNS.get(name, name.replace("_per_", "/").replace("_", " ")): figures.get(name, "") for name in names}


def _table(rows: Iterable[dict[str, object]]) -> Table:
    """Return the rows without the columns that are empty in all of them, such as a GPU's where there is none."""
    rows = list(rows)
    kept = [name for name in (rows[0] if rows else ()) if any(row[name] != "" for row in rows)]
    return [{name: row[name] for name in kept} for row in rows]


def _stable(figures: Figures) -> dict[str, object]:
    return {"stable": "yes" if figures["is_stable"] else "no"}


def _rounds(figures: Figures, cells: Callable[[Figures], dict[str, object]]) -> Table:
    """Return a table with one row per round, numbered from 1."""
    return _table({"round": number} | cells(turn) for number, turn in enumerate(figures["rounds"], 1))


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


def throughput(figures: Figures) -> list[str | Table]:
    """Images sent to the ensemble over gRPC on the loopback interface, a fixed number in flight. The client runs on the
    same machine.
    """
    sweep = []
    for point in figures["sweep"]:
        usage, gpu = point["usage"] or {}, point["gpu"] or {}  # no usage where the benchmark did not start the server
        sweep.append(
            _cells(point, "concurrency", "pictures_per_s", "crops_per_s", "crops_per_call")
            | _cells(point["latency"], *LATENCY)
            | _stable(point)
            | {f"{name} busy": _percent(usage.get(f"{name}_busy_share")) for name in ("machine", "server")}
            | _cells(usage, "server_memory_mib")
            | _cells(gpu, "mean_load_percent", "mean_power_w", "max_memory_mib")
        )
    first = figures["sweep"][0]
    names = ("calls_per_picture", "rows_per_call", "total_ms", "queue_ms", "input_ms", "compute_ms", "output_ms")
    stages = _table({"model": model} | _cells(row, *names) for model, row in sorted(first["stages"].items()))
    note = f"Per image, {first['concurrency']} in flight. crop_and_embed computes by calling crop and the embedders."
    if first["overhead"] is not None:
        note += f" For {first['overhead']:.1%} of a request's time, no step of the ensemble was computing."
    return [_table(sweep), note, stages]


def latency(figures: Figures) -> list[str | Table]:
    """The same images, sent at random times at fractions of the peak throughput."""
    peak = figures["peak"]
    loads = _table(
        {"load": _percent(load["share_of_peak"])}
        | _cells(load, "offered_per_s", "answered_per_s")
        | _cells(load["latency"], *LATENCY)
        | _stable(load)
        for load in figures["load"]
    )
    return [f"Peak: {peak['pictures_per_s']} images/s with {peak['concurrency']} in flight.", loads]


def baseline(figures: Figures) -> list[str | Table]:
    """The pipeline against the baseline: eager PyTorch in float32, one image at a time, seeking and decoding the frame
    again for every box and network, JSON files in between. Same weights, same clips, interleaved.
    """

    def cells(turn: Figures) -> dict[str, object]:
        agreement = turn["agreement"]
        return (
            _cells(turn, "baseline_s", "pipeline_s", "speedup")
            | {"baseline's decoding s": turn["baseline_steps"]["reading_s"]}
            | _cells(turn, "speedup_unread", "baseline_cpu_s", "pipeline_cpu_s", "cpu_ratio")
            | {f"{name} boxes": agreement[f"num_{name}_boxes"] for name in ("baseline", "pipeline", "same")}
            | {"lowest cosine": agreement["min_cosine"]}
        )

    return [
        f"The pipeline is {figures['headline_speedup']:.3g} times as fast as the baseline, and "
        f"{figures['speedup_unread']:.3g} times as fast excluding the baseline's decoding (medians of "
        f"{len(figures['rounds'])} rounds; clips: {figures['num_clips']}, frames of each: {figures['num_frames']}). "
        f"Baseline: eager PyTorch with {figures['threads']} threads on {figures['device']}, detector: "
        f"{figures['eager_detector']}.",
        _rounds(figures, cells),
    ]


def concurrency(figures: Figures) -> list[str | Table]:
    """What livematch embed gains from decoding each clip in one pass instead of seeking each frame, and from several
    sources in flight instead of one, interleaved.
    """
    ways = {"serial": "1 source", "overlapped": f"{figures['concurrency']} sources"}

    def cells(turn: Figures) -> dict[str, object]:
        decoding = turn["decoding"]
        busy = {way: _percent(turn[way]["usage"]["machine_busy_share"]) for way in ways}
        return (
            {"seeking each frame s": decoding["sought_s"], "one pass s": decoding["one_pass_s"]}
            | {"decoding speed-up": decoding["speedup"]}
            | {f"frames/s, {sources}": turn[way]["frames_per_s"] for way, sources in ways.items()}
            | {"embedding speed-up": turn["speedup"]}
            | {f"computing, {sources}": turn[way]["computing"] for way, sources in ways.items()}
            | {f"machine busy, {sources}": busy[way] for way, sources in ways.items()}
        )

    return [
        f"Clips: {figures['num_clips']}. Computing: average number of requests that the server computes at a time; "
        "with one source in flight, this is the fraction of the time in which the server is busy.",
        _rounds(figures, cells),
    ]


def models(figures: Figures) -> list[str | Table]:
    """Each model alone, on the tensors that it gets in the pipeline: its engine, eager PyTorch with the same weights,
    and the bound: the time its counted arithmetic would take at the rates measured on this machine.
    """
    times = ("engine_ms", "eager_ms", "eager_half_ms", "speedup")
    names = ("calls_per_picture", "rows_per_call", *times, "gflop_per_call", "mbyte_per_call", "bound_ms")
    models = []
    for model, row in figures["models"].items():
        speedups = engine_speedups(figures, model)
        spread = f"{min(speedups):.3g} to {max(speedups):.3g}" if speedups else ""
        models.append({"model": model} | _cells(row, *names, "share_of_bound") | {"speed-up over the rounds": spread})
    gemm, memory = (each(figures["rounds"], name) for name in ("gemm_gflop_per_s", "memory_gbyte_per_s"))
    cost_ms = {model: row["calls_per_picture"] * row["engine_ms"] for model, row in figures["models"].items()}
    largest = max(cost_ms, key=cost_ms.__getitem__)
    paragraphs = [
        f"Measured rates of this machine: matrix product {min(gemm)} to {max(gemm)} GFLOP/s, memory {min(memory)} to "
        f"{max(memory)} GB/s. What limits the ensemble: {largest} takes {cost_ms[largest] / sum(cost_ms.values()):.0%} "
        "of the engines' time per image."
    ]
    if fraction := figures.get("share_of_bound"):
        paragraphs.append(
            f"The ensemble reaches {fraction['median']:.2f} ({fraction['min']:.2f} to {fraction['max']:.2f}) of the "
            "throughput of its engines alone."
        )
    return [*paragraphs, _table(models)]


def perf_analyzer(figures: Figures) -> list[str | Table]:
    """NVIDIA's perf_analyzer and our own loop, interleaved, on the same images."""
    rounds = _rounds(
        figures,
        lambda turn: {
            "our images/s": turn["ours_per_s"],
            "perf_analyzer's images/s": turn["perf_analyzer"]["inferences_per_s"],
            "ratio": turn["ratio"],
            **_stable({"is_stable": is_stable_on_both_sides(turn)}),
        },
    )
    names = ("inferences_per_s", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    models = _table({"model": model} | _cells(row, *names) | _stable(row) for model, row in figures["models"].items())
    return [rounds, "perf_analyzer on each model by itself, one request in flight:", models]


def detector(figures: Figures) -> list[str | Table]:
    """The exported detector in ONNX Runtime against detectron2 with the same weights, interleaved, on one random
    image.
    """
    height, width = figures["image_size"]
    note = f"{width} × {height} px, {figures['threads']} threads each. Median speed-up: {figures['speedup']}."
    return [note, _rounds(figures, lambda turn: _cells(turn, "detectron2_s", "onnxruntime_s", "speedup"))]


def regression(figures: Figures) -> list[str | Table]:
    """Time of each stage in the server over the time of its engine alone, one request in flight."""
    names = ("server_ms", "engine_ms", "ratio", "min_ratio", "max_ratio")
    return [_table({"stage": stage} | _cells(row, *names) for stage, row in figures["stages"].items())]


def search(figures: Figures) -> list[str | Table]:
    """Exact search over features on disk against a plain matrix product of the same size."""
    return [[{"figure": name, "value": value} for name, value in figures.items() if not isinstance(value, list)]]


_FUNCTIONS = (baseline, concurrency, throughput, latency, models, detector, perf_analyzer, regression, search)
SECTIONS: dict[str, Callable[[Figures], list[str | Table]]] = {function.__name__: function for function in _FUNCTIONS}
"""By benchmark: the function that turns its figures into paragraphs and tables; its docstring is on the page, too."""
