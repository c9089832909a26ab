"""Where a request's time goes, from Triton's own statistics, with one client and with many.

    python -m benchmarks.stages --repository build/demo/model_repository --images build/demo/world/image

Starts a server of its own. Prints a table for each number of clients, in milliseconds per request of the ensemble, and
ends in one line of JSON. A model's time is what it waits in its queue, what its inputs and outputs take to copy, and
what it computes. `crop_and_embed` computes by calling `crop` and the embedders, so its time holds theirs.

`overhead` is the share of a request's time in which none of the ensemble's three steps computes: queues, copies, and
Triton itself. `idle` goes further and counts as computing only what networks and graphs do, so that the work and the
waiting of `crop_and_embed` add to it; the four embedders count as if they shared the processors perfectly, by the
longest or by their sum over the processors.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from benchmarks.stage_times import Stages, read_stages
from export.signature import EMBEDDERS
from livematch import Client, LocalServer, read_image

ENSEMBLE = "recognize_image"
STEPS = ("prepare_image", "detector", "crop_and_embed")
MODELS = (ENSEMBLE, *STEPS, "crop", *EMBEDDERS)


def measure(url: str, pictures: Sequence[np.ndarray], *, num_requests: int, num_clients: int) -> tuple[Stages, float]:
    """What requests by `num_clients` threads at once cost each model, and how many were answered per second.

    A dozen that do not count go before them.
    """

    def ask(index: int) -> None:
        client.recognize_image(pictures[index % len(pictures)])

    with Client(url) as client, triton.InferenceServerClient(url) as observer, ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(ask, range(12)))
        before = read_stages(observer)
        start_s = time.monotonic()
        list(pool.map(ask, range(num_requests)))
        requests_per_s = num_requests / (time.monotonic() - start_s)
        after = read_stages(observer)
        return {model: after[model] - before[model] for model in MODELS}, requests_per_s


def overhead(stages: Stages) -> float:
    return 1 - sum(stages[model].compute_ms for model in STEPS) / stages[ENSEMBLE].total_ms


def idle(stages: Stages, num_cpus: int) -> float:
    embedders = [stages[model].compute_ms for model in EMBEDDERS]
    computing_ms = sum(stages[model].compute_ms for model in ("prepare_image", "detector", "crop"))
    return 1 - (computing_ms + max(max(embedders), sum(embedders) / num_cpus)) / stages[ENSEMBLE].total_ms


def table(stages: Stages) -> str:
    """Milliseconds per request of the ensemble; calls per request, and rows per call."""
    lines = [f"{'model':16}{'calls':>7}{'rows':>7}{'total':>9}{'queue':>9}{'input':>9}{'compute':>9}{'output':>9}"]
    num_requests = stages[ENSEMBLE].num_requests
    for model, stage in stages.items():
        times = (stage.total_ms, stage.queue_ms, stage.input_ms, stage.compute_ms, stage.output_ms)
        calls, rows = stage.num_calls / num_requests, stage.num_rows / max(stage.num_calls, 1)
        lines.append(f"{model:16}{calls:7.2f}{rows:7.2f}" + "".join(f"{ms / num_requests:9.2f}" for ms in times))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of <item_id>/<k>.jpg")
    parser.add_argument("--requests", type=int, default=200, help="for each number of clients (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], help="(default: 1 16)")
    options = parser.parse_args(argv)
    pictures = [read_image(path) for path in sorted(options.images.glob("*/*.jpg"))[:48]]
    if not pictures:
        parser.error(f"no pictures in {options.images}")
    num_cpus = os.cpu_count() or 1
    result: dict[str, object] = {"num_cpus": num_cpus}
    with LocalServer(options.repository) as server:
        for num_clients in options.clients:
            stages, requests_per_s = measure(
                server.url, pictures, num_requests=options.requests, num_clients=num_clients
            )
            print(f"{num_clients} clients\n{table(stages)}\n", flush=True)
            embedder = stages[EMBEDDERS[0]]
            result[f"{num_clients} clients"] = {
                "requests_per_s": round(requests_per_s, 2),
                "crops_per_call": round(embedder.num_rows / max(embedder.num_calls, 1), 2),
            }
            if num_clients == 1:  # with more, requests wait for each other
                result |= {"overhead": round(overhead(stages), 3), "idle": round(idle(stages, num_cpus), 3)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
