"""A server under test, and one measured closed loop on it."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton

from benchmarks.harness.load import Window, closed_loop, describe_latency
from benchmarks.harness.resources import GpuSampler, Usage, describe_usage, read_usage
from benchmarks.harness.results import Record, digest_models, rounded
from benchmarks.harness.stage_times import (
    Stages,
    crops_per_call,
    describe_stages,
    overhead,
    read_stages,
    subtract_stages,
)
from benchmarks.harness.workload import (
    Picture,
    count_boxes,
    default_output,
    describe_boxes,
    describe_networks,
    prepare_repository,
    prepare_world,
    read_pictures,
    recognize,
)
from livematch import Client, LocalServer

Observed = tuple[Stages, Usage | None]


@dataclass
class Bench:
    """A server under test with a client, the pictures it is sent, and a way to read its counters."""

    url: str
    client: Client
    observer: triton.InferenceServerClient
    pictures: Sequence[Picture]
    num_boxes: list[int]
    repository: Path | None = None
    server_pid: int | None = None

    @classmethod
    def open(cls, resources: ExitStack, repository: Path, pictures: Sequence[Picture]) -> Self:
        """Starts a server on loopback and sends it every picture once."""
        server = resources.enter_context(LocalServer(repository))
        return replace(cls.connect(resources, server.url, pictures), repository=repository, server_pid=server.pid)

    @classmethod
    def connect(cls, resources: ExitStack, url: str, pictures: Sequence[Picture]) -> Self:
        """Sends a server that runs, with a repository nobody here knows, every picture once."""
        # One try: a request that is refused or lost is a failure here, not something to hide behind a second try.
        client = resources.enter_context(Client(url, max_tries=1))
        observer = resources.enter_context(triton.InferenceServerClient(url))
        return cls(url, client, observer, pictures, count_boxes(client, pictures))

    def send(self, picture: int) -> int:
        return len(recognize(self.client, self.pictures[picture]))

    def observe(self) -> Observed:
        return read_stages(self.observer), None if self.server_pid is None else read_usage(self.server_pid)

    def order(self, seed: int) -> np.ndarray:
        """Every picture once, in a seeded order."""
        return np.random.default_rng(seed).permutation(len(self.pictures))


def measure(
    bench: Bench, concurrency: int, *, window_s: float, max_windows: int, seed: int
) -> tuple[dict[str, Any], Window[Observed]]:
    """One closed loop; returns its JSON and its counted windows."""
    with GpuSampler() as gpu:
        window, is_stable = closed_loop(
            bench.send,
            bench.order(seed),
            concurrency=concurrency,
            window_s=window_s,
            max_windows=max_windows,
            observe=bench.observe,
        )
    (stages_before, usage_before), (stages_after, usage_after) = window.before, window.after
    usage = None
    if usage_before is not None and usage_after is not None:
        usage = describe_usage(usage_before, usage_after, window.duration_s, len(window.answered))
    stages = subtract_stages(stages_after, stages_before)
    kind = bench.pictures[0].kind
    ensemble = stages.get(f"recognize_{kind}")
    figures = {
        "concurrency": concurrency,
        "is_stable": is_stable,
        "duration_s": rounded(window.duration_s),
        "pictures_per_s": rounded(window.rate),
        "crops_per_s": rounded(sum(sample.num_boxes for sample in window.answered) / window.duration_s),
        "crops_per_call": rounded(crops_per_call(stages)),
        "overhead": rounded(overhead(stages, kind), 3) if ensemble and concurrency == 1 else None,
        "latency": describe_latency(window.samples),
        "usage": usage,
        "gpu": gpu.describe(),
        "stages": describe_stages(stages, ensemble.num_requests if ensemble else 1),
        "latencies_ms": [rounded(sample.latency_ms) for sample in window.answered],
    }
    return figures, window


def run_on_bench(
    options: argparse.Namespace, argv: Sequence[str] | None, measure_all: Callable[[Bench], dict[str, Any]]
) -> int:
    """Prepares world, repository and server as the options say, measures, writes the results."""
    pictures = read_pictures(prepare_world(options.world), options.kind, options.pictures, options.seed)
    with ExitStack() as resources:
        if url := getattr(options, "server", None):
            run = Record(options.benchmark, options, argv)
            bench, models = Bench.connect(resources, url, pictures), {}
            served: dict[str, Any] = {"server": url, "model_identity": bench.client.model_identity}
        else:
            repository, config = prepare_repository(options, pictures)
            run = Record(options.benchmark, options, argv)
            bench, models = Bench.open(resources, repository, pictures), digest_models(repository)
            served = {**describe_networks(options), "min_score": rounded(config.kind(options.kind).min_score)}
        figures = {
            "kind": options.kind,
            **served,
            "picture_size": list(pictures[0].pixels.shape[:2]),
            "boxes": describe_boxes(bench.num_boxes),
            **measure_all(bench),
        }
    run.write(figures, default_output(options), models=models)
    return 0
