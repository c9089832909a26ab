"""Measure a server under load: prepare and start it, run closed loops on it, and record the results."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from benchmarks.harness.figures import rounded
from benchmarks.harness.images import Kind, describe_boxes, sample_images
from benchmarks.harness.load import Indices, closed_loop, describe_latency
from benchmarks.harness.resources import GpuSampler, Usage, describe_usage, read_usage
from benchmarks.harness.results import Record, digest_models
from benchmarks.harness.stage_times import (
    Stages,
    crops_per_call,
    describe_stages,
    overhead,
    read_stages,
    subtract_stages,
)
from benchmarks.harness.workload import (
    default_output,
    describe_networks,
    prepare_repository,
    prepare_world,
    repository_path,
)
from livematch import Client, LocalServer
from livematch.types import Pixels

Counters = tuple[Stages, Usage | None]


@dataclass(frozen=True)
class ServerUnderTest:
    """A server that is measured, with the images that are sent to it.

    Attributes:
        url: gRPC address, "host:port".
        client: never retries, so that a refused or lost request counts as a failure.
        statistics: a second connection, for Triton's statistics.
        kind: which ensemble the images are sent to.
        images: RGB [H,W,3] each.
        pid: process id of a server started by the benchmark; None for one already running, whose processes are not
            measured.
    """

    url: str
    client: Client
    statistics: triton.InferenceServerClient
    kind: Kind
    images: Sequence[Pixels]
    pid: int | None

    def send(self, index: int) -> int:
        """Send one image and return its number of boxes."""
        recognize = self.client.recognize_image if self.kind == "image" else self.client.recognize_frame
        return len(recognize(self.images[index]))

    def send_all(self) -> list[int]:
        """Send every image once, and return how many boxes the server finds in each."""
        return [self.send(index) for index in range(len(self.images))]

    def read_counters(self) -> Counters:
        return read_stages(self.statistics), None if self.pid is None else read_usage(self.pid)

    def order(self, seed: int) -> Indices:
        """Return every image's index once, in a seeded order."""
        return np.random.default_rng(seed).permutation(len(self.images))


@contextmanager
def connect(url: str, kind: Kind, images: Sequence[Pixels], pid: int | None = None) -> Iterator[ServerUnderTest]:
    """Context manager: connect to a running server."""
    with Client(url, max_tries=1) as client, triton.InferenceServerClient(url) as statistics:
        yield ServerUnderTest(url, client, statistics, kind, images, pid)


def measure_closed_loop(
    server: ServerUnderTest, concurrency: int, *, window_s: float, max_windows: int, seed: int
) -> dict[str, Any]:
    """Run `closed_loop` on a server, and return JSON of the windows that count."""
    with GpuSampler() as gpu:
        window, is_stable = closed_loop(
            server.send,
            server.order(seed),
            concurrency=concurrency,
            window_s=window_s,
            max_windows=max_windows,
            read_counters=server.read_counters,
        )
    (stages_before, usage_before), (stages_after, usage_after) = window.before, window.after
    stages = subtract_stages(stages_after, stages_before)
    usage = None
    if usage_before and usage_after:
        usage = describe_usage(usage_before, usage_after, window.duration_s, len(window.answered))
    ensemble = stages.get(f"recognize_{server.kind}")
    return {
        "concurrency": concurrency,
        "is_stable": is_stable,
        "duration_s": rounded(window.duration_s),
        "pictures_per_s": rounded(window.rate),
        "crops_per_s": rounded(sum(sample.num_boxes for sample in window.answered) / window.duration_s),
        "crops_per_call": rounded(crops_per_call(stages)),
        "overhead": rounded(overhead(stages, server.kind), 3) if ensemble and concurrency == 1 else None,
        "latency": describe_latency(window.samples),
        "usage": usage,
        "gpu": gpu.describe(),
        "stages": describe_stages(stages, ensemble.num_requests if ensemble else 1),
        "latencies_ms": [rounded(sample.latency_ms) for sample in window.answered],
    }


def run_on_server(
    options: argparse.Namespace, argv: Sequence[str] | None, measure: Callable[[ServerUnderTest], dict[str, Any]]
) -> int:
    """Run a benchmark whose options are those of `add_workload_arguments`, and return exit code 0.

    Renders the world, builds the repository and starts a server, or connects to the one at `options.server`; then
    calls `measure` and writes the figures it returns, with the conditions, to the results file.
    """
    images = sample_images(prepare_world(options.world), options.kind, options.pictures, options.seed)
    url, pid, models = getattr(options, "server", None), None, {}
    served: dict[str, Any] = {"server": url}
    if url is None:
        config = prepare_repository(options, options.kind, images)
        models = digest_models(repository_path(options))
        served = {**describe_networks(options), "min_score": rounded(config.kind(options.kind).min_score)}
    record = Record(options.benchmark, options, argv)
    with ExitStack() as resources:
        if url is None:
            started = resources.enter_context(LocalServer(repository_path(options)))
            url, pid = started.url, started.pid
        server = resources.enter_context(connect(url, options.kind, images, pid))
        if pid is None:
            served["model_identity"] = server.client.model_identity
        figures = {
            "kind": options.kind,
            **served,
            "picture_size": list(images[0].shape[:2]),
            "boxes": describe_boxes(server.send_all()),  # and warm the server up
            **measure(server),
        }
    record.write(figures, default_output(options), models=models)
    return 0
