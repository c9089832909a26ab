"""What is served and what is sent: a model repository, and pictures of a demo world.

The pictures are the photos and frames of a world, a stated share of them with nothing to find, in a seeded order. How
many boxes they have is what the server finds, and every result states the distribution.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.engines import Engines
from benchmarks.results import RESULTS
from export.build import build
from export.config import CONFIGS, PipelineConfig
from export.precision import PRECISIONS
from livematch import Client, read_frames, read_image
from livematch.decoding import DEFAULT_FRAMES
from livematch.sources import list_images, list_videos
from training.demo.world import render_world

CHECKPOINTS = Path("training/demo/checkpoints")
WORLD_SEED, WORLD_ITEMS = 7, 12
EMPTY_SHARE = 1 / 8
MEAN_BOXES = 2.0
"""Per picture, for made-up weights: their score limit is set so. The data set's frames have 1.65 on average."""


@dataclass(frozen=True)
class Picture:
    kind: Literal["image", "frame"]
    pixels: npt.NDArray[np.uint8]


def add_server_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """What is served, the world that is sent, and where the results go."""
    parser.add_argument("--config", choices=sorted(CONFIGS), default="demo", help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the networks, default: %(default)s")
    parser.add_argument("--world", type=Path, default=RESULTS / "world", metavar="DIR", help="rendered if missing")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="built or brought up to date (default: in build/benchmarks)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice and order of pictures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: build/benchmarks/CONFIG_BENCHMARK.json")
    parser.set_defaults(benchmark=benchmark)


def add_workload_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """The same, and which pictures of the world are sent."""
    add_server_arguments(parser, benchmark)
    parser.add_argument("--kind", choices=("image", "frame"), default="frame", help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=48, metavar="N", help="default: %(default)s")


def default_output(options: argparse.Namespace) -> Path:
    return options.output or RESULTS / f"{options.config}_{options.benchmark}.json"


def prepare_world(directory: Path) -> Path:
    """Renders the world unless it is there; a data set of another origin is taken as it is."""
    if (directory / "world.json").exists() or not directory.exists():
        render_world(directory, seed=WORLD_SEED, num_items=WORLD_ITEMS)
    return directory


def read_pictures(world: Path, kind: str, num_pictures: int, seed: int) -> list[Picture]:
    """Photos or frames of a world in a seeded order; every eighth is a plain area of the picture's mean colour."""
    rng = np.random.default_rng(seed)
    if kind == "image":
        paths = [source.path for source in list_images(world / "image")[0]]
        chosen = rng.permutation(len(paths))[:num_pictures]
        found = [read_image(paths[index]) for index in chosen]
    else:
        paths = [source.path for source in list_videos(world / "video")[0]]
        per_clip = -(-num_pictures // len(paths))
        indices = [int(index) for index in rng.permutation(DEFAULT_FRAMES)[:per_clip]]
        found = [pixels for path in paths for _, pixels in read_frames(path, indices)]
        found = [found[index] for index in rng.permutation(len(found))[:num_pictures]]
    step = round(1 / EMPTY_SHARE)
    return [
        Picture(kind, _emptied(pixels) if position % step == step - 1 else pixels)
        for position, pixels in enumerate(found)
    ]


def describe_boxes(counts: Sequence[int]) -> dict[str, Any]:
    """JSON of how many pictures have how many boxes."""
    histogram = Counter(counts)
    return {
        "num_pictures": len(counts),
        "mean": round(float(np.mean(counts)), 3),
        "pictures_by_num_boxes": {str(count): histogram[count] for count in sorted(histogram)},
    }


def count_boxes(client: Client, pictures: Sequence[Picture]) -> list[int]:
    """Sends each picture once, which also warms the server up for these sizes."""
    return [len(recognize(client, picture)) for picture in pictures]


def recognize(client: Client, picture: Picture) -> Any:
    return (client.recognize_image if picture.kind == "image" else client.recognize_frame)(picture.pixels)


def prepare_repository(options: argparse.Namespace, pictures: Sequence[Picture]) -> tuple[Path, PipelineConfig]:
    """The repository of the options, built or brought up to date, and the config it was built from.

    The demo has its checkpoints. Production gets made-up weights (seed 0) and the score limit at which these find
    MEAN_BOXES in a picture on average.
    """
    name = options.config if options.precision == "fp32" else f"{options.config}_{options.precision}"
    repository = options.repository or RESULTS / f"{name}_repository"
    config = CONFIGS[options.config]()
    if options.config == "demo":
        build(config, repository, checkpoints=CHECKPOINTS, precision=options.precision)
        return repository, config
    build(config, repository, random_seed=0, precision=options.precision)
    engines = Engines(repository, config, num_threads=0)
    kind = pictures[0].kind
    scores = np.concatenate([engines.detection_scores(kind, picture.pixels) for picture in pictures[:4]])
    rank = round(MEAN_BOXES * len(pictures[:4]))
    limit = float(np.sort(scores)[::-1][min(rank, len(scores) - 1)])
    config = replace(config, **{kind: replace(config.kind(kind), min_score=limit)})
    build(config, repository, random_seed=0, precision=options.precision)
    return repository, config


def _emptied(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    colour = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, pixels.shape))
