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

import numpy as np

from benchmarks.harness.figures import Figures, rounded
from benchmarks.harness.load import describe_latency, open_loop
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.server import ServerUnderTest, measure_closed_loop, run_on_server
from benchmarks.harness.workload import add_workload_arguments, run_workload


def measure(server: ServerUnderTest, options: argparse.Namespace) -> Figures:
    """Measure the peak, then send requests at each fraction of it, and return JSON of their figures."""
    peak = measure_closed_loop(server, options.peak_concurrency, options.window_s, options.seed)
    rng = np.random.default_rng(options.seed)
    loads = []
    for fraction in options.load:
        rate = fraction * peak["pictures_per_s"]
        samples, is_stable = open_loop(
            server.send,
            server.order(options.seed),
            rate=rate,
            duration_s=options.duration_s,
            num_threads=options.threads,
            rng=rng,
        )
        answered = [sample for sample in samples if not sample.error]
        duration_s = max(options.duration_s, *(sample.end_s for sample in samples))
        loads.append(
            {
                "share_of_peak": fraction,
                "offered_per_s": rounded(rate),
                "answered_per_s": rounded(len(answered) / duration_s),
                "is_stable": is_stable,
                "latency": describe_latency(samples),
                "samples": [[rounded(s.due_s), rounded(s.latency_ms), s.num_boxes] for s in answered],
            }
        )
        print(f"{fraction:4} of peak: {loads[-1]['latency']}", flush=True)
    return {"peak": {name: peak[name] for name in ("concurrency", "pictures_per_s", "is_stable")}, "load": loads}


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("latency", __doc__)
    add_workload_arguments(parser, takes_address=True)
    parser.add_argument(
        "--load", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9], metavar="FRACTION", help="fractions of the peak"
    )
    add_number(parser, "--duration-s", 20.0, "seconds per load")
    add_number(parser, "--peak-concurrency", 16, "requests in flight in the closed loop")
    add_number(parser, "--window-s", 4.0, "minimum duration of a window of the closed loop")
    add_number(parser, "--threads", 64, "threads that send requests")
    return run_workload(parser, argv, lambda options: run_on_server(options, measure))


if __name__ == "__main__":
    raise SystemExit(main())
