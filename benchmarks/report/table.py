"""Make the Markdown table of benchmarks/README.md from results files, so that nobody copies figures by hand."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks.harness.figures import Figures, each, rounded

Row = tuple[str, str, Sequence[float]]
"""What was measured, the figure as text, and its value in each round (empty if there were no rounds)."""


def markdown_table(results: Iterable[Figures]) -> str:
    """Return one line per figure: its range over the rounds, their number, and the results file it comes from."""
    lines = ["| networks | what | figure | lowest to highest (rounds) | file |", "| --- | --- | --- | --- | --- |"]
    order = list(ROWS)
    measured = [result for result in results if result["benchmark"] in ROWS]
    for result in sorted(measured, key=lambda result: (result["config"] or "", order.index(result["benchmark"]))):
        for what, figure, rounds in ROWS[result["benchmark"]](result["figures"]):
            spread = f"{min(rounds):.3g} to {max(rounds):.3g} ({len(rounds)})" if len(rounds) > 1 else ""
            lines.append(f"| {result['config'] or ''} | {what} | {figure} | {spread} | `{result['file']}` |")
    return "\n".join(lines) + "\n"


def baseline(figures: Figures) -> Iterator[Row]:
    device = figures["device"].upper()
    speedup, cpu_ratio, unread = (f"{figures[n]:.3g}×" for n in ("headline_speedup", "cpu_ratio", "speedup_unread"))
    yield f"pipeline over the baseline, {device}", speedup, each(figures["rounds"], "speedup")
    yield "the same in CPU seconds", cpu_ratio, each(figures["rounds"], "cpu_ratio")
    yield "speed-up excluding the baseline's decoding", unread, each(figures["rounds"], "speedup_unread")


def concurrency(figures: Figures) -> Iterator[Row]:
    rounds, decoding = figures["rounds"], f"{figures['decoding_speedup']:.3g}×"
    yield "decoding a clip in one pass over seeking each frame", decoding, each(rounds, "decoding", "speedup")
    what = f"embedding, {figures['concurrency']} sources in flight over one"
    yield what, f"{figures['speedup']:.2f}×", each(rounds, "speedup")
    what = "average number of requests that the server computes at a time"
    yield what, f"{figures['computing']:.2f}", each(rounds, "overlapped", "computing")


def throughput(figures: Figures) -> Iterator[Row]:
    best = max(figures["sweep"], key=lambda point: (point["is_stable"], point["pictures_per_s"]))
    images, crops = (rounded(best[rate], 3) for rate in ("pictures_per_s", "crops_per_s"))
    figure = f"{images:g} images/s, {crops:g} crops/s"
    yield f"throughput, {best['concurrency']} in flight{_mark(best['is_stable'])}", figure, []
    first = figures["sweep"][0]
    yield f"latency, {first['concurrency']} in flight", _latencies(first["latency"]), []


def latency(figures: Figures) -> Iterator[Row]:
    for load in figures["load"]:
        if load["is_stable"]:
            peak = f"the throughput with {figures['peak']['concurrency']} in flight"
            what = f"latency, Poisson arrivals at {load['share_of_peak']:.0%} of {peak}"
            yield what, _latencies(load["latency"]), []


def models(figures: Figures) -> Iterator[Row]:
    if "share_of_bound" in figures:
        is_stable = all(turn.get("ensemble_is_stable", True) for turn in figures["rounds"])
        what = f"throughput of the ensemble over that of its engines alone{_mark(is_stable)}"
        yield what, f"{figures['share_of_bound']['median']:.2f}", each(figures["rounds"], "share_of_bound")
    for model, row in figures["models"].items():
        if speedups := engine_speedups(figures, model):
            figure = f"{row['speedup']:.2f}×, and {row['share_of_bound']:.2f} of the bound that its arithmetic sets"
            yield f"engine of {model} over eager PyTorch", figure, speedups


def engine_speedups(figures: Figures, model: str) -> list[float]:
    """Return the speed-up of a model's engine over eager PyTorch in each round; empty if it has no eager times."""
    rounds = figures["rounds"]
    return [turn["eager_ms"][model] / turn["engine_ms"][model] for turn in rounds if model in turn["eager_ms"]]


def detector(figures: Figures) -> Iterator[Row]:
    yield "engine of the detector over detectron2", f"{figures['speedup']:.2f}×", each(figures["rounds"], "speedup")


def perf_analyzer(figures: Figures) -> Iterator[Row]:
    is_stable = all(is_stable_on_both_sides(turn) for turn in figures["rounds"])
    what = f"throughput that perf_analyzer measures over ours{_mark(is_stable)}"
    yield what, f"{figures['median_ratio']:.2f}", each(figures["rounds"], "ratio")


def is_stable_on_both_sides(turn: Figures) -> bool:
    """Return whether perf_analyzer and our loop were both stable in a round; older files do not say it of ours."""
    return bool(turn["perf_analyzer"]["is_stable"] and turn.get("ours_is_stable", True))


def search(figures: Figures) -> Iterator[Row]:
    sizes = f"{figures['num_queries']:,} × {figures['num_gallery']:,}"
    yield f"rate of matching {sizes} over that of a plain matrix product", f"{figures['ratio']:.2f}", figures["ratios"]


def _mark(is_stable: bool) -> str:
    return "" if is_stable else ", not stable"


def _latencies(latency: Figures) -> str:
    counts = f"{latency['num_answered']} requests"
    if latency["num_failures"]:
        counts += f", {latency['num_failures']} more failed"
    if not latency["num_answered"]:
        return f"no response ({counts})"
    return f"p50 {latency['p50_ms']:.0f} ms, p99 {latency['p99_ms']:.0f} ms ({counts})"


_FUNCTIONS = (baseline, concurrency, throughput, latency, models, detector, perf_analyzer, search)
ROWS: dict[str, Callable[[Figures], Iterator[Row]]] = {function.__name__: function for function in _FUNCTIONS}
