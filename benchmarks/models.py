"""Each model by itself: its engine against eager PyTorch and against what this machine's hardware allows.

    python -m benchmarks.models --rounds 3

Every model is given the tensors it gets for the same pictures in the pipeline, one call at a time with all processors.
Rounds interleave the engines, eager PyTorch with the same weights, a matrix product and a memory copy (the measured
rates), so that a change in the machine's load meets all of them. The floating-point work and the bytes of a model are
counted (`benchmarks.harness.roofline`); their bound is the time these would take at the measured rates.

For the pipeline the bound is what its engines reach alone: as many workers as the processors carry take the pictures
from engine to engine in this process, each with the threads it is served with, and only the time in engines counts. The
share of this bound that the ensemble reaches is measured in the same rounds; not on a GPU, of which engines that get
one crop or picture after another use little.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.harness.bench import Bench, measure, run_on_bench
from benchmarks.harness.eager import EagerNetworks
from benchmarks.harness.engines import Call, Engines
from benchmarks.harness.rates import measure_gpu_rates, measure_rates
from benchmarks.harness.results import rounded
from benchmarks.harness.roofline import Rates, bound_s, count_products
from benchmarks.harness.workload import Picture, add_workload_arguments, checkpoints_of
from export.config import CONFIGS, PipelineConfig
from export.signature import MODELS

NUM_TRACED = 8  # pictures whose calls are timed one by one


def trace(engines: Engines, eager: dict[str, EagerNetworks], pictures: Sequence[Picture]) -> dict[str, list[Call]]:
    """The calls of each model that some pictures need; they have been made once, by the engines and eagerly."""
    calls: dict[str, list[Call]] = {}
    for picture in pictures:
        for call in engines.recognize(picture.kind, picture.pixels):
            calls.setdefault(call.model, []).append(call)
            if MODELS[call.model].kind == "network":
                for networks in eager.values():
                    run_eagerly(networks, call)
    return calls


def run_eagerly(networks: EagerNetworks, call: Call) -> None:
    """What the call did, in eager PyTorch; of networks only."""
    if call.model == "detector":
        inputs = [torch.from_numpy(call.feeds[name]).to(networks.device) for name in ("pixels", "image_size")]
        with torch.inference_mode():
            networks.run_graph(*inputs)
    else:
        networks.embed(call.model, call.feeds["crops"])


def engines_per_s(engines: Engines, pictures: Sequence[Picture], num_workers: int) -> float:
    """Pictures per second if nothing but the engines took time, all workers busy at once."""

    def work(worker: int) -> float:
        mine = [*pictures[worker:], *pictures[:worker]]
        return sum(call.elapsed_s for picture in mine for call in engines.recognize(picture.kind, picture.pixels))

    with ThreadPoolExecutor(num_workers) as pool:
        engine_s = sum(pool.map(work, range(num_workers)))
    return num_workers * num_workers * len(pictures) / engine_s


def compare_with_engines(
    bench: Bench, engines: Engines, num_workers: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One round of the ensemble against its engines, which are warm."""
    bound_per_s = engines_per_s(engines, bench.pictures, num_workers)
    ensemble, _ = measure(bench, options.concurrency, window_s=options.window_s, max_windows=3, seed=options.seed)
    share = rounded(ensemble["pictures_per_s"] / bound_per_s, 3)
    print(f"ensemble at {share} of its engines", flush=True)
    return {
        "engines_pictures_per_s": rounded(bound_per_s),
        "ensemble_pictures_per_s": ensemble["pictures_per_s"],
        "ensemble_is_stable": ensemble["is_stable"],
        "share_of_bound": share,
    }


def run_rounds(
    bench: Bench,
    config: PipelineConfig,
    eager: dict[str, EagerNetworks],
    measured_rates: Callable[[], Rates],
    options: argparse.Namespace,
) -> dict[str, Any]:
    repository = bench.repository
    provider = "CUDAExecutionProvider" if options.device == "cuda" else "CPUExecutionProvider"
    alone = Engines(repository, config, num_threads=options.threads, provider=provider)
    traced = trace(alone, eager, bench.pictures[:NUM_TRACED])
    products = {
        model: [count_products(repository / model / "1" / "model.onnx", call.feeds) for call in calls]
        for model, calls in traced.items()
    }
    served_threads = config.serving_of("detector").num_threads or options.threads
    num_workers = max(1, options.threads // served_threads)
    as_served = None if options.device == "cuda" else Engines(repository, config)
    if as_served:
        engines_per_s(as_served, bench.pictures, num_workers)  # warm-up
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rates = measured_rates()
        engine_s = {
            model: statistics.mean(alone.run(model, call.feeds).elapsed_s for call in calls)
            for model, calls in traced.items()
        }
        eager_ms = {
            name: {
                model: rounded(statistics.mean(_elapsed_s(networks, call) for call in calls) * 1e3)
                for model, calls in traced.items()
                if MODELS[model].kind == "network"
            }
            for name, networks in eager.items()
        }
        rounds.append(
            {
                "gemm_gflop_per_s": rounded(rates.flop_per_s / 1e9),
                "memory_gbyte_per_s": rounded(rates.bytes_per_s / 1e9),
                "engine_ms": {model: rounded(seconds * 1e3) for model, seconds in engine_s.items()},
                **eager_ms,
                "bound_ms": {
                    model: rounded(statistics.mean(bound_s(call, rates) for call in calls) * 1e3)
                    for model, calls in products.items()
                },
                **(compare_with_engines(bench, as_served, num_workers, options) if as_served else {}),
            }
        )
    models = {}
    for model, calls in traced.items():
        num_rows = [len(next(iter(call.outputs.values()))) for call in calls]
        models[model] = {
            "calls_per_picture": rounded(len(calls) / min(NUM_TRACED, len(bench.pictures))),
            "rows_per_call": rounded(statistics.mean(num_rows)),
            "gflop_per_call": rounded(statistics.mean(sum(p.num_flop for p in call) for call in products[model]) / 1e9),
            "mbyte_per_call": rounded(
                statistics.mean(sum(p.num_bytes for p in call) for call in products[model]) / 1e6
            ),
            **_medians(model, rounds),
        }
    figures: dict[str, Any] = {
        "threads": options.threads,
        "device": options.device,
        "eager_detector": "graph",
        "models": models,
        "rounds": rounds,
    }
    if as_served:
        shares = [turn["share_of_bound"] for turn in rounds]
        figures |= {
            "num_workers": num_workers,
            "concurrency": options.concurrency,
            "share_of_bound": {"median": statistics.median(shares), "min": min(shares), "max": max(shares)},
        }
    return figures


def _elapsed_s(networks: EagerNetworks, call: Call) -> float:
    start_s = time.perf_counter()
    run_eagerly(networks, call)
    return time.perf_counter() - start_s


def _medians(model: str, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of times per call and of the ratios that were formed within each round."""

    def median(ratio: Callable[[dict[str, Any]], float]) -> float:
        return rounded(statistics.median(map(ratio, rounds)))

    figures = {"engine_ms": median(lambda turn: turn["engine_ms"][model])}
    if model in rounds[0]["eager_ms"]:
        for name in rounds[0].keys() & {"eager_ms", "eager_half_ms"}:
            figures[name] = median(lambda turn, name=name: turn[name][model])
        figures["speedup"] = median(lambda turn: turn["eager_ms"][model] / turn["engine_ms"][model])
        figures["bound_ms"] = median(lambda turn: turn["bound_ms"][model])
        figures["share_of_bound"] = median(lambda turn: turn["bound_ms"][model] / turn["engine_ms"][model])
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser, "models")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="of one call")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the networks")
    parser.add_argument("--eager-half", action="store_true", help="eager PyTorch in half precision besides")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="of the ensemble")
    parser.add_argument("--window-s", type=float, default=3.0, metavar="S", help="of the ensemble")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    config = CONFIGS[options.config]()
    build = partial(EagerNetworks, config, checkpoints=checkpoints_of(options), device=options.device)
    eager = {"eager_ms": build()}
    if options.eager_half:
        eager["eager_half_ms"] = build(is_half=True)

    def measured_rates() -> Rates:
        if options.device == "cuda":
            return measure_gpu_rates(torch.float16 if options.precision == "fp16" else torch.float32)
        return measure_rates(options.threads)

    return run_on_bench(options, argv, lambda bench: run_rounds(bench, config, eager, measured_rates, options))


if __name__ == "__main__":
    raise SystemExit(main())
