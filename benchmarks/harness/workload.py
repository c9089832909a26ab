"""Define the options that commands share, and prepare what they name: a world and a model repository to serve."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.images import Kind
from benchmarks.harness.options import add_number, add_path
from benchmarks.harness.results import RESULTS, Run, run_benchmark
from export.build import build
from export.config import PIPELINES, PipelineConfig, add_gpu_memory_option, load_pipeline
from export.graphs.precision import PRECISIONS
from livematch.types import Pixels
from training.demo.world import render_world

DEMO_CHECKPOINTS = Path("training/demo/checkpoints")
WORLD = RESULTS / "world"
WORLD_SEED, WORLD_ITEMS = 7, 12
MEAN_BOXES = 2.0
"""Boxes per image that a detector with random weights is made to find. The data set's frames have 1.65."""


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the served networks, the world whose images are sent, and the results file."""
    parser.add_argument("--config", choices=("demo", "production"), default="demo", help="pipeline")
    add_gpu_memory_option(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the networks")
    add_path(parser, "--checkpoints", None, "folder; default: the demo's checkpoints, random weights for production")
    add_path(parser, "--world", None, "a part of the data set; default: a small demo world, rendered once")
    output = f"build/benchmarks/CONFIG_{parser.get_default('benchmark')}.json"
    add_path(parser, "--output", None, f"results file; default: {output}")


def add_workload_arguments(parser: argparse.ArgumentParser, *, takes_address: bool = False) -> None:
    """Add the options of `add_server_arguments`, and those that choose images of the world.

    `takes_address` adds --server, for benchmarks that need only a server's responses and statistics.
    """
    add_server_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the choice and order of images")
    parser.add_argument("--kind", choices=("image", "frame"), default="frame", help="shop photos or video frames")
    add_number(parser, "--pictures", 48, "number of images sent")
    parser.set_defaults(server=None)
    if takes_address:
        help = "measure a running server at this gRPC address; --config then only names the results file"
        parser.add_argument("--server", metavar="HOST:PORT", help=help)


def run_workload(parser: argparse.ArgumentParser, argv: Sequence[str] | None, run: Run) -> int:
    """Do what `run_benchmark` does, after replacing the defaults of options that depend on other options.

    `checkpoints` stays None for random weights (seed 0). `repository` is added: the folder that `prepare_repository`
    builds. Its name and that of the results file differ for each config and precision.
    """

    def run_resolved(options: argparse.Namespace) -> int:
        name = options.config if options.precision == "fp32" else f"{options.config}_{options.precision}"
        if options.checkpoints is None and options.config == "demo":
            options.checkpoints = DEMO_CHECKPOINTS
        options.output = options.output or RESULTS / f"{name}_{options.benchmark}.json"
        options.repository = RESULTS / f"{name}_repository"
        return run(options)

    return run_benchmark(parser, argv, run_resolved)


def describe_networks(options: argparse.Namespace) -> dict[str, str]:
    """Return JSON of the served networks: their precision, and where their weights come from."""
    return {"precision": options.precision, "weights": str(options.checkpoints or "random (seed 0)")}


def prepare_world(directory: Path | None) -> Path:
    """Return `directory`; without one, render the benchmarks' own world unless it is complete, and return that."""
    if directory is not None:
        return directory
    render_world(WORLD, seed=WORLD_SEED, num_items=WORLD_ITEMS)
    return WORLD


def pipeline_of(options: argparse.Namespace) -> PipelineConfig:
    """Return the pipeline that --config and --gpu-memory name."""
    return load_pipeline(PIPELINES / f"{options.config}.json", options.gpu_memory)


def prepare_repository(options: argparse.Namespace, kind: Kind, images: Sequence[Pixels]) -> PipelineConfig:
    """Build or update the repository `options.repository`, and return the config it was built from.

    Random weights (seed 0) give arbitrary scores. For them, the config gets the score limit at which the detector finds
    MEAN_BOXES boxes per image, on average over these images.
    """
    config = pipeline_of(options)
    seed = 0 if options.checkpoints is None else None
    build_repository = partial(build, checkpoints=options.checkpoints, random_seed=seed, precision=options.precision)
    build_repository(config, options.repository)
    if options.checkpoints is None:
        engines = Engines(options.repository, config, num_threads=0)
        scores = np.sort(np.concatenate([engines.detection_scores(kind, pixels) for pixels in images]))[::-1]
        limit = float(scores[min(round(MEAN_BOXES * len(images)), len(scores) - 1)])
        settings = replace(config.kind(kind), min_score=limit)
        config = replace(config, image=settings) if kind == "image" else replace(config, frame=settings)
        build_repository(config, options.repository)
    return config
