"""The options that commands share, and what they name: a world to send, and a model repository to serve."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.images import InputImage
from benchmarks.harness.options import add_number, add_path
from benchmarks.harness.results import RESULTS
from export.build import build
from export.config import CONFIGS, PipelineConfig
from export.graphs.precision import PRECISIONS
from training.demo.world import render_world

DEMO_CHECKPOINTS = Path("training/demo/checkpoints")
WORLD = RESULTS / "world"
WORLD_SEED, WORLD_ITEMS = 7, 12
MEAN_BOXES = 2.0
"""Boxes per image that random weights are made to find, by their score limit. The data set's frames have 1.65."""


def add_server_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options for what is served, the world that is sent, and the results file."""
    parser.add_argument("--config", choices=sorted(CONFIGS), default="demo", help="pipeline")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the networks")
    add_path(parser, "--checkpoints", None, "folder; default: the demo's checkpoints, random weights for production")
    add_path(parser, "--world", None, "a part of the data set; default: a small demo world, rendered once")
    add_path(parser, "--output", None, f"results file; default: build/benchmarks/CONFIG_{benchmark}.json")
    parser.set_defaults(benchmark=benchmark)


def add_workload_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Add the options of `add_server_arguments`, and those for which images of the world are sent."""
    add_server_arguments(parser, benchmark)
    parser.add_argument("--seed", type=int, default=0, help="for choosing and ordering images")
    parser.add_argument("--kind", choices=("image", "frame"), default="frame", help="shop photos or video frames")
    add_number(parser, "--pictures", 48, "number of images sent")


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """Add --server, for benchmarks that need only a server's answers and statistics."""
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


def prepare_repository(options: argparse.Namespace, images: Sequence[InputImage]) -> PipelineConfig:
    """Build or update the options' model repository at `repository_path`, and return the config it was built from.

    For random weights (seed 0), the config's score limit is replaced by the one at which they find MEAN_BOXES boxes
    per image on average in these images.
    """
    repository = repository_path(options)
    config = CONFIGS[options.config]()
    checkpoints = checkpoints_of(options)
    if checkpoints is not None:
        build(config, repository, checkpoints=checkpoints, precision=options.precision)
        return config
    build(config, repository, random_seed=0, precision=options.precision)
    config = _with_mean_boxes(config, Engines(repository, config, num_threads=0), images)
    build(config, repository, random_seed=0, precision=options.precision)
    return config


def _with_mean_boxes(config: PipelineConfig, engines: Engines, images: Sequence[InputImage]) -> PipelineConfig:
    kind = images[0].kind
    scores = np.concatenate([engines.detection_scores(kind, image.pixels) for image in images])
    rank = round(MEAN_BOXES * len(images))
    limit = float(np.sort(scores)[::-1][min(rank, len(scores) - 1)])
    settings = replace(config.kind(kind), min_score=limit)
    return replace(config, image=settings) if kind == "image" else replace(config, frame=settings)
