"""Measure a server under load: prepare and start it, run closed loops on it, and record the results."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton

from benchmarks.harness.figures import Figures, rounded
from benchmarks.harness.images import Kind, describe_boxes, sample_images
from benchmarks.harness.load import Indices, closed_loop, describe_latency
from benchmarks.harness.resources import describe_usage, gpu_sampling, read_usage
from benchmarks.harness.results import Record
from benchmarks.harness.stage_times import crops_per_call, describe_stages, overhead, read_stages, subtract_stages
from benchmarks.harness.workload import describe_networks, prepare_repository, prepare_world
from export.config import PipelineConfig
from livematch import Client, LocalServer
from livematch.types import Pixels


@dataclass(frozen=True)
class ServerUnderTest:
    """A server that is measured, with the images that are sent to it."""

    url: str  # gRPC address, "host:port"
    client: Client  # never retries, so that a refused or lost request counts as a failure
    statistics: triton.InferenceServerClient  # a second connection, for Triton's statistics
    kind: Kind  # which ensemble the images are sent to
    images: Sequence[Pixels]
    pid: int | None  # of a server started by the benchmark; None for one already running, whose usage is not measured

    def send(self, index: int) -> int:
        """Send one image and return its number of boxes."""
        recognize = self.client.recognize_image if self.kind == "image" else self.client.recognize_frame
        return len(recognize(self.images[index]))

    def send_all(self) -> list[int]:
        """Send every image once, and return how many boxes the server finds in each."""
        return [self.send(index) for index in range(len(self.images))]

    def order(self, seed: int) -> Indices:
        """Return every image's index once, in a seeded order."""
        return np.random.default_rng(seed).permutation(len(self.images))


@contextmanager
def connect(url: str, kind: Kind, images: Sequence[Pixels], pid: int | None = None) -> Iterator[ServerUnderTest]:
    with Client(url, max_tries=1) as client, triton.InferenceServerClient(url) as statistics:
        yield ServerUnderTest(url, client, statistics, kind, images, pid)


def measure_closed_loop(
    server: ServerUnderTest, concurrency: int, window_s: float, seed: int, max_windows: int = 8
) -> Figures:
    """Run `closed_loop` on a server, and return JSON of the windows that count."""
    with gpu_sampling() as gpu:
        window, is_stable = closed_loop(
            server.send,
            server.order(seed),
            concurrency=concurrency,
            window_s=window_s,
            max_windows=max_windows,
            read_counters=lambda: (read_stages(server.statistics), server.pid and read_usage(server.pid)),
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
        "gpu": gpu.result(),
        "stages": describe_stages(stages, ensemble.num_requests if ensemble else 1),
        "latencies_ms": [rounded(sample.latency_ms) for sample in window.answered],
    }


def serve(
    options: argparse.Namespace,
    kind: Kind,
    images: Sequence[Pixels],
    measure: Callable[[LocalServer, PipelineConfig], Figures],
) -> int:
    """Build the repository of `run_workload`'s options, start a server on it and record what `measure` returns.

    `kind` and `images` are what will be sent, for `prepare_repository`. Returns exit code 0.
    """
    config = prepare_repository(options, kind, images)
    record = Record(options)
    with LocalServer(options.repository) as server:
        figures = measure(server, config)
    record.write({**describe_networks(options), **figures}, options.repository)
    return 0


def run_on_server(
    options: argparse.Namespace, measure: Callable[[ServerUnderTest, argparse.Namespace], Figures]
) -> int:
    """Run a benchmark whose options are those of `add_workload_arguments`, and return exit code 0.

    Renders the world and starts a server as `serve` does, or connects to the one at `options.server`; then calls
    `measure` with the options and writes the figures it returns, with the conditions, to the results file.
    """
    images = sample_images(prepare_world(options.world), options.kind, options.pictures, options.seed)

    def measure_at(url: str, pid: int | None = None) -> Figures:
        with connect(url, options.kind, images, pid) as server:
            return {
                "kind": options.kind,
                **({} if pid else {"server": url, "model_identity": server.client.model_identity}),
                "picture_size": list(images[0].shape[:2]),
                "boxes": describe_boxes(server.send_all()),  # and warm the server up
                **measure(server, options),
            }

    def measure_own(server: LocalServer, config: PipelineConfig) -> Figures:
        min_score = rounded(config.kind(options.kind).min_score)
        return {"min_score": min_score, **measure_at(server.url, server.pid)}

    if options.server is None:
        return serve(options, options.kind, images, measure_own)
    record = Record(options)
    record.write(measure_at(options.server))
    return 0
