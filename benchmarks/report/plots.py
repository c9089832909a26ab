"""Draw the report's plots from the figures of results files, each as a PNG file."""

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.harness.figures import Figures

PARTS = {"queue": "#b8c4d6", "input": "#e0a458", "compute": "#2f6690", "output": "#81a88d"}


def write_plots(benchmark: str, figures: Figures, folder: Path, stem: str) -> list[tuple[str, str]]:
    """Draw a benchmark's plots to `folder`/`stem`_NAME.png, and return (name, file name) of each."""
    written = []
    for name, (draw, num_columns) in PLOTS.get(benchmark, {}).items():
        figure, axes = pyplot.subplots(1, num_columns, figsize=(9, 3.4), squeeze=False, layout="constrained")
        for plot in axes[0]:
            plot.grid(alpha=0.3)
            plot.spines[["top", "right"]].set_visible(False)
        draw(figures, *axes[0])
        path = folder / f"{stem}_{name}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append((name, path.name))
    return written


def _throughput(figures: Figures, rates: Axes, latencies: Axes) -> None:
    """Draw images and crops per second, and latency, by the number of requests in flight."""
    sweep = figures["sweep"]
    concurrency = [point["concurrency"] for point in sweep]
    for name, label in (("pictures_per_s", "images"), ("crops_per_s", "crops")):
        rates.plot(concurrency, [point[name] for point in sweep], marker="o", label=label)
    for percent in (50, 95, 99):
        values = [point["latency"].get(f"p{percent}_ms", math.nan) for point in sweep]
        latencies.plot(concurrency, values, marker="o", label=f"p{percent}")
    unstable = [math.nan if point["is_stable"] else point["pictures_per_s"] for point in sweep]
    rates.plot(concurrency, unstable, linestyle="", marker="x", color="black", markersize=10, label="not stable")
    for axes, label in ((rates, "per second"), (latencies, "latency in ms")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(concurrency, [str(number) for number in concurrency])
        axes.set_xlabel("requests in flight")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend()


def _stages(figures: Figures, fewest: Axes, most: Axes) -> None:
    """Draw how an image's time divides within each model, with the fewest and the most requests in flight."""
    for axes, point in ((fewest, figures["sweep"][0]), (most, figures["sweep"][-1])):
        models = sorted(point["stages"], reverse=True)
        left = np.zeros(len(models))
        for part, colour in PARTS.items():
            values = [point["stages"][model][f"{part}_ms"] for model in models]
            axes.barh(models, values, left=left, label=part, color=colour)
            left += values
        axes.set_xlabel("ms per image")
        axes.set_title(f"{point['concurrency']} in flight", fontsize=10)
    most.set_yticklabels([])
    fewest.legend()


def _latency(figures: Figures, axes: Axes) -> None:
    """Draw the fraction of the requests that were answered within a time, for each load."""
    for load in figures["load"]:
        if latencies := [sample[1] for sample in load["samples"]]:
            stable = "" if load["is_stable"] else ", not stable"
            axes.ecdf(latencies, label=f"{load['share_of_peak']:.0%} of peak{stable}")
    axes.set_xscale("log")
    axes.set_xlabel("latency from the moment the request was due, ms")
    axes.set_ylabel("fraction of requests")
    axes.legend()


def _baseline(figures: Figures, axes: Axes) -> None:
    """Draw the seconds that the baseline and the pipeline took in each round."""
    rounds = {f"round {number}\n{turn['speedup']:.1f}×": turn for number, turn in enumerate(figures["rounds"], 1)}
    _draw_bars(axes, rounds, {"baseline_s": "baseline", "pipeline_s": "pipeline"}, "seconds for the same clips")


def _models(figures: Figures, axes: Axes) -> None:
    """Draw milliseconds per call of each network: eager PyTorch, its engine, and the bound that its arithmetic sets."""
    models = {model: row for model, row in figures["models"].items() if "bound_ms" in row}
    _draw_bars(axes, models, {"eager_ms": "eager", "engine_ms": "engine", "bound_ms": "bound"}, "ms per call")


def _draw_bars(axes: Axes, rows: dict[str, Figures], labels: dict[str, str], unit: str) -> None:
    """Draw one group of bars for each row, side by side, with one bar for each figure in `labels`."""
    step = 0.8 / len(labels)
    positions = np.arange(len(rows))
    for offset, (name, label) in enumerate(labels.items()):
        axes.bar(positions + step * offset, [row[name] for row in rows.values()], width=0.95 * step, label=label)
    axes.set_xticks(positions + step * (len(labels) - 1) / 2, list(rows))
    axes.set_ylabel(unit)
    axes.legend()


PLOTS: dict[str, dict[str, tuple[Callable[..., None], int]]] = {
    "throughput": {"throughput": (_throughput, 2), "stages": (_stages, 2)},
    "latency": {"latency": (_latency, 1)},
    "baseline": {"baseline": (_baseline, 1)},
    "models": {"models": (_models, 1)},
}
"""By benchmark and name of the plot: the function from figures and axes, and its number of axes."""
