"""Measure each model by itself: compare its engine with eager PyTorch and with what this machine's hardware allows.

    python -m benchmarks.models --rounds 3

Each model runs on the tensors that it gets in the pipeline, one call at a time, with all processors. Each round times
the engines, eager PyTorch with the same weights, a matrix product and a memory copy, so that a change in the machine's
load affects all of them. A model's bound is the time that its floating-point operations and bytes, which are counted
(`benchmarks.harness.roofline`), would take at the rates of that product and that copy.

The bound of the whole pipeline is the throughput of its engines alone. In this process, several workers (threads / the
detector's threads) run images through all engines, each engine with the threads it is served with, and only time in
engines counts. The ensemble is measured in the same rounds. On a GPU this is left out, because engines that get one
image or crop at a time use little of a GPU.

The JSON has, for each of `models`, milliseconds and work per call, the `speedup` over eager PyTorch, and
`share_of_bound`, the bound over the engine's time. The top-level `share_of_bound` is the ensemble's throughput over
that of its engines alone. `rounds` has the values of which these are the medians.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.harness.eager import EagerNetworks
from benchmarks.harness.engines import Call, Engines
from benchmarks.harness.figures import Figures, each, median, rounded, seconds
from benchmarks.harness.images import Kind
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.roofline import Product, Rates, bound_s, count_products, measure_rates
from benchmarks.harness.server import ServerUnderTest, measure_closed_loop, run_on_server
from benchmarks.harness.workload import add_workload_arguments, pipeline_of, run_workload
from export.config import PipelineConfig
from livematch.types import Pixels

NUM_TRACED = 8  # images whose calls are timed one by one

Calls = dict[str, list[Call]]
Products = dict[str, list[list[Product]]]
"""By model, then by call."""

Eager = dict[str, EagerNetworks]
"""By the JSON key of the times: "eager_ms" or "eager_half_ms"."""


def trace(engines: Engines, eager: Eager, kind: Kind, images: Sequence[Pixels]) -> Calls:
    """Run some images through the engines and each call eagerly, as a warm-up, and return the calls of each model."""
    calls: Calls = {}
    for pixels in images:
        for call in engines.recognize(kind, pixels):
            calls.setdefault(call.model, []).append(call)
            if is_network(call.model):
                for networks in eager.values():
                    _eager_s(networks, call)
    return calls


def engines_per_s(engines: Engines, kind: Kind, images: Sequence[Pixels], num_workers: int) -> float:
    """Return the images per second that all workers together would reach if only engines took time."""

    def work(worker: int) -> float:
        mine = [*images[worker:], *images[:worker]]
        return sum(call.elapsed_s for pixels in mine for call in engines.recognize(kind, pixels))

    with ThreadPoolExecutor(num_workers) as pool:
        engine_s = sum(pool.map(work, range(num_workers)))
    return num_workers * num_workers * len(images) / engine_s


def measure_models(engines: Engines, eager: Eager, calls: Calls, rates: Rates, products: Products) -> Figures:
    """Time every call once in its engine and eagerly, and return JSON with each model's mean times and bound."""
    networks = {model: calls[model] for model in calls if is_network(model)}
    return {
        "gemm_gflop_per_s": rounded(rates.flop_per_s / 1e9),
        "memory_gbyte_per_s": rounded(rates.bytes_per_s / 1e9),
        "engine_ms": _mean_ms(calls, lambda call: engines.run(call.model, call.feeds).elapsed_s),
        **{name: _mean_ms(networks, partial(_eager_s, pytorch)) for name, pytorch in eager.items()},
        "bound_ms": _mean_ms(products, lambda call: bound_s(call, rates)),
    }


def measure_ensemble(
    server: ServerUnderTest, engines: Engines, num_workers: int, options: argparse.Namespace
) -> Figures:
    """Measure the ensemble and its engines (both after a warm-up), and return JSON of their throughputs."""
    bound_per_s = engines_per_s(engines, server.kind, server.images, num_workers)
    ensemble = measure_closed_loop(server, options.concurrency, options.window_s, options.seed, max_windows=3)
    fraction = rounded(ensemble["pictures_per_s"] / bound_per_s, 3)
    print(f"the ensemble reaches {fraction} of its engines' throughput", flush=True)
    return {
        "engines_pictures_per_s": rounded(bound_per_s),
        "ensemble_pictures_per_s": ensemble["pictures_per_s"],
        "ensemble_is_stable": ensemble["is_stable"],
        "share_of_bound": fraction,
    }


def run_rounds(config: PipelineConfig, eager: Eager, server: ServerUnderTest, options: argparse.Namespace) -> Figures:
    """Measure `options.rounds` rounds and return JSON of them and of their medians."""
    is_half = options.device == "cuda" and options.precision == "fp16"
    engines = Engines(options.repository, config, num_threads=options.threads, device=options.device)
    calls = trace(engines, eager, server.kind, server.images[:NUM_TRACED])
    products = {
        model: [count_products(options.repository / model / "1" / "model.onnx", call.feeds) for call in calls[model]]
        for model in calls
    }
    num_workers = max(1, options.threads // (config.serving_of("detector").num_threads or options.threads))
    as_served = None if options.device == "cuda" else Engines(options.repository, config)
    if as_served:
        engines_per_s(as_served, server.kind, server.images, num_workers)  # warm-up
    rounds = []
    for _ in range(options.rounds):
        rates = measure_rates(options.device, torch.float16 if is_half else torch.float32)
        turn = measure_models(engines, eager, calls, rates, products)
        if as_served:
            turn |= measure_ensemble(server, as_served, num_workers, options)
        rounds.append(turn)
    figures: Figures = {
        "threads": options.threads,
        "device": options.device,
        "eager_detector": "graph",
        "models": {
            model: {
                "calls_per_picture": rounded(len(calls[model]) / len(server.images[:NUM_TRACED])),
                "rows_per_call": _mean(len(next(iter(call.outputs.values()))) for call in calls[model]),
                "gflop_per_call": _mean(sum(p.num_flop for p in call) / 1e9 for call in products[model]),
                "mbyte_per_call": _mean(sum(p.num_bytes for p in call) / 1e6 for call in products[model]),
                **_medians(model, rounds),
            }
            for model in calls
        },
        "rounds": rounds,
    }
    if as_served:
        fractions = each(rounds, "share_of_bound")
        figures |= {
            "num_workers": num_workers,
            "concurrency": options.concurrency,
            "share_of_bound": {"median": statistics.median(fractions), "min": min(fractions), "max": max(fractions)},
        }
    return figures


def _eager_s(networks: EagerNetworks, call: Call) -> float:
    """Run a network's call in eager PyTorch, and return the seconds it took."""
    if call.model == "detector":
        inputs = [torch.from_numpy(call.feeds[name]) for name in ("pixels", "image_size")]
        return seconds(lambda: networks.run_graph(*inputs))
    return seconds(lambda: networks.embed(call.model, call.feeds["crops"]))


def _mean(values: Iterable[float]) -> float:
    return rounded(statistics.mean(values))


def is_network(model: str) -> bool:
    """Tell whether a model has weights."""
    return model == "detector" or model.startswith("embedder_")


def _mean_ms(calls: Mapping[str, Sequence[Any]], seconds_of: Callable[[Any], float]) -> dict[str, float]:
    return {model: _mean(seconds_of(call) * 1e3 for call in calls[model]) for model in calls}


def _medians(model: str, rounds: Sequence[Figures]) -> dict[str, float]:
    """Return medians over the rounds: of times per call, and of ratios formed within each round."""
    names = ("engine_ms", "eager_ms", "eager_half_ms", "bound_ms") if is_network(model) else ("engine_ms",)
    figures = {name: median(rounds, name, model) for name in names if name in rounds[0]}
    if is_network(model):
        for name, numerator in (("speedup", "eager_ms"), ("share_of_bound", "bound_ms")):
            ratios = [turn[numerator][model] / turn["engine_ms"][model] for turn in rounds]
            figures[name] = rounded(statistics.median(ratios))
    return figures


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    config = pipeline_of(options)
    build = partial(EagerNetworks, config, checkpoints=options.checkpoints, device=options.device)
    eager = {"eager_ms": build()}
    if options.eager_half:
        eager["eager_half_ms"] = build(is_half=True)
    return run_on_server(options, partial(run_rounds, config, eager))


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("models", __doc__)
    add_workload_arguments(parser)
    add_number(parser, "--rounds", 3, "number of rounds")
    add_number(parser, "--threads", len(os.sched_getaffinity(0)), "threads of one call")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks run")
    parser.add_argument("--eager-half", action="store_true", help="also time eager PyTorch in half precision")
    add_number(parser, "--concurrency", 8, "requests in flight for the ensemble")
    add_number(parser, "--window-s", 3.0, "minimum duration of a window for the ensemble")
    return run_workload(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
