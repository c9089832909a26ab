"""Pictures and crops per second of an ensemble, by the number of requests in flight.

    python -m benchmarks.throughput --concurrency 1 2 4 8 16

Starts a server of its own on loopback, or takes one that runs (`--server HOST:PORT`, such as tritonserver with TensorRT
engines in NVIDIA's container), whose load and memory are then not read. For each concurrency a closed loop runs in
windows of whole passes over the pictures until three in a row are stable. Beside the client's figures stand the
server's own: queue, input, compute and output time of each model. The response cache is off (the statistics would
show hits).
"""

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.bench import Bench, measure, run_on_bench
from benchmarks.harness.workload import (
    add_server_address,
    add_workload_arguments,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser, "throughput")
    add_server_address(parser)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N")
    parser.add_argument("--window-s", type=float, default=4.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--max-windows", type=int, default=8, metavar="N", help="default: %(default)s")
    options = parser.parse_args(argv)

    def sweep(bench: Bench) -> dict[str, Any]:
        settings = {"window_s": options.window_s, "max_windows": options.max_windows, "seed": options.seed}
        sweeps = []
        for concurrency in options.concurrency:
            figures, _ = measure(bench, concurrency, **settings)
            print(
                f"{concurrency:3} in flight: {figures['pictures_per_s']:7} pictures/s, {figures['crops_per_s']} crops/s"
                f"{'' if figures['is_stable'] else ' (not stable)'}",
                flush=True,
            )
            sweeps.append(figures)
        return {"window_s": options.window_s, "sweep": sweeps}

    return run_on_bench(options, argv, sweep)


if __name__ == "__main__":
    raise SystemExit(main())
