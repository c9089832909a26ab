"""Draw the report's plots, one PNG each, from the figures of results files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Figures = dict[str, Any]

PARTS = {"queue": "#b8c4d6", "input": "#e0a458", "compute": "#2f6690", "output": "#81a88d"}


def plot_throughput(figures: Figures, path: Path) -> None:
    """Draw images and crops per second, and latency, by the number of requests in flight."""
    sweep = figures["sweep"]
    concurrency = [point["concurrency"] for point in sweep]
    figure, (left, right) = _figure(2)
    for name, label in (("pictures_per_s", "images"), ("crops_per_s", "crops")):
        left.plot(concurrency, [point[name] for point in sweep], marker="o", label=label)
    for percent in (50, 95, 99):
        latencies = [point["latency"].get(f"p{percent}_ms", float("nan")) for point in sweep]
        right.plot(concurrency, latencies, marker="o", label=f"p{percent}")
    unstable = [point for point in sweep if not point["is_stable"]]
    left.plot(
        [point["concurrency"] for point in unstable],
        [point["pictures_per_s"] for point in unstable],
        linestyle="",
        marker="x",
        color="black",
        markersize=10,
        label="not stable",
    )
    for axes, label in ((left, "per second"), (right, "latency in ms")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(concurrency, [str(number) for number in concurrency])
        axes.set_xlabel("requests in flight")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.legend()
    _save(figure, path)


def plot_stages(figures: Figures, path: Path) -> None:
    """Draw how an image's time divides within each model, with the fewest and the most requests in flight."""
    points = [figures["sweep"][0], figures["sweep"][-1]]
    figure, axes = _figure(2)
    for plot, point in zip(axes, points, strict=True):
        models = sorted(point["stages"], reverse=True)
        left = [0.0] * len(models)
        for part, colour in PARTS.items():
            values = [point["stages"][model][f"{part}_ms"] for model in models]
            plot.barh(models, values, left=left, label=part, color=colour)
            left = [start + value for start, value in zip(left, values, strict=True)]
        plot.set_xlabel("ms per image")
        plot.set_title(f"{point['concurrency']} in flight", fontsize=10)
    axes[1].set_yticklabels([])
    axes[0].legend()
    _save(figure, path)


def plot_latency(figures: Figures, path: Path) -> None:
    """Draw the fraction of the requests that were answered within a time, for each load."""
    figure, (axes,) = _figure(1)
    for load in figures["load"]:
        latencies = sorted(sample[1] for sample in load["samples"])
        fractions = [number / len(latencies) for number in range(1, len(latencies) + 1)]
        stable = "" if load["is_stable"] else ", not stable"
        axes.step(latencies, fractions, where="post", label=f"{load['share_of_peak']:.0%} of peak{stable}")
    axes.set_xscale("log")
    axes.set_xlabel("latency from the moment the request was due, ms")
    axes.set_ylabel("fraction of requests")
    axes.legend()
    _save(figure, path)


def plot_baseline(figures: Figures, path: Path) -> None:
    """Draw the seconds that the baseline and the pipeline took in each round."""
    rounds = figures["rounds"]
    figure, (axes,) = _figure(1)
    for offset, (name, label) in enumerate((("baseline_s", "baseline"), ("pipeline_s", "pipeline"))):
        xs = [position + 0.4 * offset for position in range(len(rounds))]
        axes.bar(xs, [turn[name] for turn in rounds], width=0.38, label=label)
    axes.set_xticks(
        [position + 0.2 for position in range(len(rounds))],
        [f"round {position + 1}\n{turn['speedup']:.1f}×" for position, turn in enumerate(rounds)],
    )
    axes.set_ylabel("seconds for the same clips")
    axes.legend()
    _save(figure, path)


def plot_models(figures: Figures, path: Path) -> None:
    """Draw milliseconds per call of each network: eager PyTorch, its engine, and the bound that its arithmetic sets."""
    models = {model: row for model, row in figures["models"].items() if "bound_ms" in row}
    figure, (axes,) = _figure(1)
    for offset, (name, label) in enumerate((("eager_ms", "eager"), ("engine_ms", "engine"), ("bound_ms", "bound"))):
        xs = [position + 0.27 * offset for position in range(len(models))]
        axes.bar(xs, [row[name] for row in models.values()], width=0.25, label=label)
    axes.set_xticks([position + 0.27 for position in range(len(models))], list(models))
    axes.set_ylabel("ms per call")
    axes.legend()
    _save(figure, path)


PLOTS: dict[str, dict[str, Callable[[Figures, Path], None]]] = {
    "throughput": {"throughput": plot_throughput, "stages": plot_stages},
    "latency": {"latency": plot_latency},
    "baseline": {"baseline": plot_baseline},
    "models": {"models": plot_models},
}
"""By benchmark and name of the plot: function from figures and path."""


def _figure(num_columns: int) -> tuple[Figure, list[Axes]]:
    figure, axes = pyplot.subplots(1, num_columns, figsize=(9, 3.4), squeeze=False, layout="constrained")
    for plot in axes[0]:
        plot.grid(alpha=0.3)
        plot.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
