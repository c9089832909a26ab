"""Define the options that commands share, and prepare what they name: a world and a model repository to serve."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.images import Kind
from benchmarks.harness.options import add_number, add_path
from benchmarks.harness.results import RESULTS
from export.build import build
from export.config import CONFIGS, PipelineConfig
from export.graphs.precision import PRECISIONS
from livematch.types import Pixels
from training.demo.world import render_world

DEMO_CHECKPOINTS = Path("training/demo/checkpoints")
WORLD = RESULTS / "world"
WORLD_SEED, WORLD_ITEMS = 7, 12
MEAN_BOXES = 2.0
"""Boxes per image that a detector with random weights is made to find. The data set's frames have 1.65."""


def add_server_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options for the served networks, the world whose images are sent, and the results file."""
    parser.add_argument("--config", choices=sorted(CONFIGS), default="demo", help="pipeline")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the networks")
    add_path(parser, "--checkpoints", None, "folder; default: the demo's checkpoints, random weights for production")
    add_path(parser, "--world", None, "a part of the data set; default: a small demo world, rendered once")
    add_path(parser, "--output", None, f"results file; default: build/benchmarks/CONFIG_{benchmark}.json")
    parser.set_defaults(benchmark=benchmark)


def add_workload_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options of `add_server_arguments`, and those that choose images of the world."""
    add_server_arguments(parser, benchmark)
    parser.add_argument("--seed", type=int, default=0, help="of the choice and order of images")
    parser.add_argument("--kind", choices=("image", "frame"), default="frame", help="shop photos or video frames")
    add_number(parser, "--pictures", 48, "number of images sent")


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """Add --server, for benchmarks that need only a server's responses and statistics."""
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="measure a running server at this gRPC address; --config then only names the results file",
    )


def networks_name(options: argparse.Namespace) -> str:
    """Return a name that differs for each config and precision, such as "demo" or "production_fp16"."""
    return str(options.config) if options.precision == "fp32" else f"{options.config}_{options.precision}"


def default_output(options: argparse.Namespace) -> Path:
    return options.output or RESULTS / f"{networks_name(options)}_{options.benchmark}.json"


def repository_path(options: argparse.Namespace) -> Path:
    """Return where `prepare_repository` builds the options' model repository."""
    return RESULTS / f"{networks_name(options)}_repository"


def checkpoints_of(options: argparse.Namespace) -> Path | None:
    """Return the folder of checkpoints; None for random weights (seed 0)."""
    return options.checkpoints or (DEMO_CHECKPOINTS if options.config == "demo" else None)


def describe_networks(options: argparse.Namespace) -> dict[str, str]:
    """Return JSON of the served networks: their precision, and where their weights come from."""
    checkpoints = checkpoints_of(options)
    return {"precision": options.precision, "weights": str(checkpoints) if checkpoints else "random (seed 0)"}


def prepare_world(directory: Path | None) -> Path:
    """Return `directory`; without one, render the benchmarks' own world unless it is complete, and return that."""
    if directory is not None:
        return directory
    render_world(WORLD, seed=WORLD_SEED, num_items=WORLD_ITEMS)
    return WORLD


def prepare_repository(options: argparse.Namespace, kind: Kind, images: Sequence[Pixels]) -> PipelineConfig:
    """Build or update the options' model repository at `repository_path`, and return the config it was built from.

    Random weights (seed 0) give arbitrary scores. For them, the config gets the score limit at which the detector finds
    MEAN_BOXES boxes per image, on average over these images.
    """
    repository = repository_path(options)
    config = CONFIGS[options.config]()
    checkpoints = checkpoints_of(options)
    if checkpoints is not None:
        build(config, repository, checkpoints=checkpoints, precision=options.precision)
        return config
    build(config, repository, random_seed=0, precision=options.precision)
    engines = Engines(repository, config, num_threads=0)
    scores = np.sort(np.concatenate([engines.detection_scores(kind, pixels) for pixels in images]))[::-1]
    limit = float(scores[min(round(MEAN_BOXES * len(images)), len(scores) - 1)])
    settings = replace(config.kind(kind), min_score=limit)
    config = replace(config, image=settings) if kind == "image" else replace(config, frame=settings)
    build(config, repository, random_seed=0, precision=options.precision)
    return config
