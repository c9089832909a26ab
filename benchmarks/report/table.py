"""Make the table of figures in benchmarks/README.md from results files, so that no figure is typed by hand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.harness.results import rounded

Figures = dict[str, Any]
Row = tuple[str, str, Sequence[float]]
"""What was measured, the figure, and its value in each round if there were rounds."""


def markdown_table(results: Iterable[dict[str, Any]]) -> str:
    """Return one line per figure, with its range and number of rounds, and the results file it comes from."""
    lines = ["| networks | what | figure | lowest to highest (rounds) | file |", "| --- | --- | --- | --- | --- |"]
    order = list(ROWS)
    measured = [result for result in results if result["benchmark"] in ROWS]
    for result in sorted(measured, key=lambda result: (result["config"] or "", order.index(result["benchmark"]))):
        for what, figure, rounds in ROWS[result["benchmark"]](result["figures"]):
            spread = f"{min(rounds):.3g} to {max(rounds):.3g} ({len(rounds)})" if len(rounds) > 1 else ""
            lines.append(f"| {result['config'] or ''} | {what} | {figure} | {spread} | `{result['file']}` |")
    return "\n".join(lines) + "\n"


def _baseline(figures: Figures) -> Iterator[Row]:
    speedups = [turn["speedup"] for turn in figures["rounds"]]
    yield f"pipeline over the baseline, {figures['device'].upper()}", f"{figures['headline_speedup']:.3g}×", speedups
    ratios = [turn["cpu_ratio"] for turn in figures["rounds"]]
    yield "the same in CPU seconds", f"{figures['cpu_ratio']:.3g}×", ratios
    speedups = [turn["speedup_unread"] for turn in figures["rounds"]]
    yield "speed-up excluding the baseline's decoding", f"{figures['speedup_unread']:.3g}×", speedups


def _concurrency(figures: Figures) -> Iterator[Row]:
    decoding = [turn["decoding"]["speedup"] for turn in figures["rounds"]]
    yield "decoding a clip in one pass over seeking each frame", f"{figures['decoding_speedup']:.3g}×", decoding
    speedups = [turn["speedup"] for turn in figures["rounds"]]
    yield f"embedding, {figures['concurrency']} sources in flight over one", f"{figures['speedup']:.2f}×", speedups
    computing = [turn["overlapped"]["computing"] for turn in figures["rounds"]]
    yield "average number of requests that the server computes at a time", f"{figures['computing']:.2f}", computing


def _throughput(figures: Figures) -> Iterator[Row]:
    best = max(figures["sweep"], key=lambda point: (point["is_stable"], point["pictures_per_s"]))
    images, crops = (rounded(best[rate], 3) for rate in ("pictures_per_s", "crops_per_s"))
    figure = f"{images:g} images/s, {crops:g} crops/s"
    yield f"throughput, {best['concurrency']} in flight{_mark(best['is_stable'])}", figure, []
    first = figures["sweep"][0]
    yield f"latency, {first['concurrency']} in flight", _latencies(first["latency"]), []


def _latency(figures: Figures) -> Iterator[Row]:
    for load in figures["load"]:
        if load["is_stable"]:
            peak = f"the throughput with {figures['peak']['concurrency']} in flight"
            what = f"latency, Poisson arrivals at {load['share_of_peak']:.0%} of {peak}"
            yield what, _latencies(load["latency"]), []


def _models(figures: Figures) -> Iterator[Row]:
    if "share_of_bound" in figures:
        fractions = [turn["share_of_bound"] for turn in figures["rounds"]]
        is_stable = all(turn.get("ensemble_is_stable", True) for turn in figures["rounds"])
        yield (
            f"throughput of the ensemble over that of its engines alone{_mark(is_stable)}",
            f"{figures['share_of_bound']['median']:.2f}",
            fractions,
        )
    for model, row in figures["models"].items():
        if speedups := engine_speedups(figures, model):
            figure = f"{row['speedup']:.2f}×, and {row['share_of_bound']:.2f} of the bound that its arithmetic sets"
            yield f"engine of {model} over eager PyTorch", figure, speedups


def engine_speedups(figures: Figures, model: str) -> list[float]:
    """Return the speed-up of a model's engine over eager PyTorch in each round; empty for a graph without a network."""
    rounds = figures["rounds"]
    return [turn["eager_ms"][model] / turn["engine_ms"][model] for turn in rounds if model in turn["eager_ms"]]


def _detector(figures: Figures) -> Iterator[Row]:
    speedups = [turn["speedup"] for turn in figures["rounds"]]
    yield "engine of the detector over detectron2", f"{figures['speedup']:.2f}×", speedups


def _perf_analyzer(figures: Figures) -> Iterator[Row]:
    ratios = [turn["ratio"] for turn in figures["rounds"]]
    is_stable = all(is_stable_on_both_sides(turn) for turn in figures["rounds"])
    yield (
        f"throughput that perf_analyzer measures over ours{_mark(is_stable)}",
        f"{figures['median_ratio']:.2f}",
        ratios,
    )


def is_stable_on_both_sides(turn: Figures) -> bool:
    """Return whether both loops were stable in a round; older files do not record it for ours."""
    return bool(turn["perf_analyzer"]["is_stable"] and turn.get("ours_is_stable", True))


def _search(figures: Figures) -> Iterator[Row]:
    sizes = f"{figures['num_queries']:,} × {figures['num_gallery']:,}"
    yield f"rate of matching {sizes} over that of a plain matrix product", f"{figures['ratio']:.2f}", figures["ratios"]


def _mark(is_stable: bool) -> str:
    return "" if is_stable else ", not stable"


def _latencies(latency: dict[str, Any]) -> str:
    counts = f"{latency['num_answered']} requests"
    if latency["num_failures"]:
        counts += f", {latency['num_failures']} more failed"
    if not latency["num_answered"]:
        return f"no response ({counts})"
    return f"p50 {latency['p50_ms']:.0f} ms, p99 {latency['p99_ms']:.0f} ms ({counts})"


ROWS: dict[str, Callable[[Figures], Iterator[Row]]] = {
    "baseline": _baseline,
    "concurrency": _concurrency,
    "throughput": _throughput,
    "latency": _latency,
    "models": _models,
    "detector": _detector,
    "perf_analyzer": _perf_analyzer,
    "search": _search,
}
