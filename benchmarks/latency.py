"""Measure latency under requests that arrive at random times, at several fractions of the pipeline's throughput.

    python -m benchmarks.latency --load 0.3 0.5 0.7 0.9

Starts its own server on loopback, or measures a running one (`--server`). First a closed loop with many requests in
flight finds the throughput, called the peak. Then requests arrive at Poisson times, and each latency counts from the
moment the request was due. A load is stable if no request fails and the median latency of the last third of the
arrivals is at most twice that of the first third. MLPerf's name for this, the Server scenario, is not used: it requires
at least 600 seconds and a limit on the 99th percentile.

The JSON has the `peak` and, under `load`, one entry per fraction: offered and answered requests per second, whether it
was stable, latency percentiles, and for every answer [due time in s, latency in ms, number of boxes] under `samples`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.figures import rounded
from benchmarks.harness.load import describe_latency, open_loop
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.server import ServerUnderTest, measure_closed_loop, run_on_server
from benchmarks.harness.workload import add_server_address, add_workload_arguments
from livematch.cli.commands import run_command


def measure_load(
    server: ServerUnderTest, fraction: float, peak_per_s: float, rng: np.random.Generator, options: argparse.Namespace
) -> dict[str, Any]:
    """Send requests at a fraction of the peak, and return JSON of their latency."""
    rate = fraction * peak_per_s
    samples, is_stable = open_loop(
        server.send,
        server.order(options.seed),
        rate=rate,
        duration_s=options.duration_s,
        num_threads=options.threads,
        rng=rng,
    )
    duration_s = max(options.duration_s, *(sample.end_s for sample in samples))
    return {
        "share_of_peak": fraction,
        "offered_per_s": rounded(rate),
        "answered_per_s": rounded(sum(not sample.error for sample in samples) / duration_s),
        "is_stable": is_stable,
        "latency": describe_latency(samples),
        "samples": [[rounded(s.due_s), rounded(s.latency_ms), s.num_boxes] for s in samples if not s.error],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_workload_arguments(parser, "latency")
    add_server_address(parser)
    loads = [0.3, 0.5, 0.7, 0.9]
    parser.add_argument(
        "--load", type=float, nargs="+", default=loads, metavar="FRACTION", help="fractions of the peak"
    )
    add_number(parser, "--duration-s", 20.0, "seconds per load")
    add_number(parser, "--peak-concurrency", 16, "requests in flight in the closed loop")
    add_number(parser, "--window-s", 4.0, "minimum duration of a window of the closed loop")
    add_number(parser, "--threads", 64, "threads that send requests")
    options = parser.parse_args(argv)

    def measure(server: ServerUnderTest) -> dict[str, Any]:
        peak = measure_closed_loop(
            server, options.peak_concurrency, window_s=options.window_s, max_windows=8, seed=options.seed
        )
        rng = np.random.default_rng(options.seed)
        loads = []
        for fraction in options.load:
            loads.append(measure_load(server, fraction, peak["pictures_per_s"], rng, options))
            print(f"{fraction:4} of peak: {loads[-1]['latency']}", flush=True)
        return {"peak": {name: peak[name] for name in ("concurrency", "pictures_per_s", "is_stable")}, "load": loads}

    return run_command("benchmarks.latency", lambda: run_on_server(options, argv, measure))


if __name__ == "__main__":
    raise SystemExit(main())
