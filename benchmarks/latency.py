"""Latency under requests that arrive at random, at several shares of the ensemble's throughput.

    python -m benchmarks.latency --load 0.3 0.5 0.7 0.9

Starts a server of its own on loopback, or takes one that runs (`--server`). A closed loop with many requests in flight
finds the throughput ("peak") first; then requests arrive at Poisson times, and each latency counts from the moment the
request was due. A share is stable if no request fails and latency does not grow from the first third of the arrivals to
the last. MLPerf's scenario names are not used: its Server scenario asks for 600 seconds at least and a bound on the
99th percentile.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.bench import Bench, measure, run_on_bench
from benchmarks.harness.load import describe_latency, open_loop
from benchmarks.harness.results import rounded
from benchmarks.harness.workload import add_server_address, add_workload_arguments


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser, "latency")
    add_server_address(parser)
    parser.add_argument("--load", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9], metavar="SHARE")
    parser.add_argument("--duration-s", type=float, default=20.0, metavar="S", help="of each share")
    parser.add_argument("--peak-concurrency", type=int, default=16, metavar="N", help="of the closed loop")
    parser.add_argument("--window-s", type=float, default=4.0, metavar="S", help="of the closed loop")
    parser.add_argument("--threads", type=int, default=64, metavar="N", help="that send; default: %(default)s")
    options = parser.parse_args(argv)

    def run_arrivals(bench: Bench) -> dict[str, Any]:
        peak, _ = measure(bench, options.peak_concurrency, window_s=options.window_s, max_windows=8, seed=options.seed)
        rng = np.random.default_rng(options.seed)
        arrivals = []
        for share in options.load:
            rate = share * peak["pictures_per_s"]
            samples, is_stable = open_loop(
                bench.send,
                bench.order(options.seed),
                rate=rate,
                duration_s=options.duration_s,
                num_threads=options.threads,
                rng=rng,
            )
            figures = {
                "share_of_peak": share,
                "offered_per_s": rounded(rate),
                "answered_per_s": rounded(
                    sum(not sample.error for sample in samples)
                    / max(options.duration_s, *(sample.end_s for sample in samples))
                ),
                "is_stable": is_stable,
                "latency": describe_latency(samples),
                "samples": [[rounded(s.due_s), rounded(s.latency_ms), s.num_boxes] for s in samples if not s.error],
            }
            print(f"{share:4} of peak: {figures['latency']}", flush=True)
            arrivals.append(figures)
        return {"peak": {name: peak[name] for name in ("concurrency", "pictures_per_s", "is_stable")}, "load": arrivals}

    return run_on_bench(options, argv, run_arrivals)


if __name__ == "__main__":
    raise SystemExit(main())
