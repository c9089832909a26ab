"""Measure images and crops per second of the served pipeline, by the number of requests in flight.

    python -m benchmarks.throughput --concurrency 1 2 4 8 16

Starts its own server on loopback. With `--server HOST:PORT` it measures a running one instead, such as tritonserver
with TensorRT engines in NVIDIA's container; that server's load and memory are then not measured. For each concurrency,
a closed loop sends all images again and again, in windows of whole passes, until three windows in a row are stable.

The JSON has, under `sweep`, one entry per concurrency: images (`pictures_per_s`) and crops per second, latency, what
the server used of the machine, and the queue, input, compute and output time of each model from Triton's statistics.
"""

import argparse
from collections.abc import Sequence

from benchmarks.harness.figures import Figures
from benchmarks.harness.options import add_number, new_parser, positive
from benchmarks.harness.server import ServerUnderTest, measure_closed_loop, run_on_server
from benchmarks.harness.workload import add_workload_arguments, run_workload


def sweep(server: ServerUnderTest, options: argparse.Namespace) -> Figures:
    """Run a closed loop with each number of requests in flight, and return JSON of their figures."""
    points = []
    for concurrency in options.concurrency:
        point = measure_closed_loop(server, concurrency, options.window_s, options.seed, options.max_windows)
        print(
            f"{concurrency:3} in flight: {point['pictures_per_s']:7} images/s, {point['crops_per_s']} crops/s"
            f"{'' if point['is_stable'] else ' (not stable)'}",
            flush=True,
        )
        points.append(point)
    return {"window_s": options.window_s, "sweep": points}


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("throughput", __doc__)
    add_workload_arguments(parser, takes_address=True)
    parser.add_argument(
        "--concurrency", type=positive, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="requests in flight"
    )
    add_number(parser, "--window-s", 4.0, "minimum duration of a window")
    add_number(parser, "--max-windows", 8, "maximum number of windows per concurrency")
    return run_workload(parser, argv, lambda options: run_on_server(options, sweep))


if __name__ == "__main__":
    raise SystemExit(main())
