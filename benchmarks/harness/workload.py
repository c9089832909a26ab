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

from benchmarks.harness.engines import Engines
from benchmarks.harness.results import RESULTS
from export.build import build
from export.config import CONFIGS, PipelineConfig
from export.graphs.precision import PRECISIONS
from livematch import Client, read_frames, read_image
from livematch.media.sources import list_images, list_videos
from livematch.media.videos import DEFAULT_FRAMES
from training.demo.world import render_world

DEMO_CHECKPOINTS = Path("training/demo/checkpoints")
WORLD = RESULTS / "world"
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
    parser.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="default: those of the demo; for production made-up weights"
    )
    parser.add_argument(
        "--world", type=Path, metavar="DIR", help="a part of the data set; default: a demo world of the benchmarks' own"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: build/benchmarks/CONFIG_BENCHMARK.json")
    parser.set_defaults(benchmark=benchmark)


def add_workload_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """The same, and which pictures of the world are sent."""
    add_server_arguments(parser, benchmark)
    parser.add_argument("--seed", type=int, default=0, help="of the choice and order of pictures")
    parser.add_argument("--kind", choices=("image", "frame"), default="frame", help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=48, metavar="N", help="default: %(default)s")


def add_server_address(parser: argparse.ArgumentParser) -> None:
    """For benchmarks that need nothing of a server but its answers and its statistics."""
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="gRPC, of a server that runs; --config then only names the output"
    )


def networks_name(options: argparse.Namespace) -> str:
    """What tells the networks of one run from those of another: "demo", "production_fp16"."""
    return options.config if options.precision == "fp32" else f"{options.config}_{options.precision}"


def default_output(options: argparse.Namespace) -> Path:
    return options.output or RESULTS / f"{networks_name(options)}_{options.benchmark}.json"


def checkpoints_of(options: argparse.Namespace) -> Path | None:
    """The folder of checkpoints; None for weights that are made up (seed 0)."""
    return options.checkpoints or (DEMO_CHECKPOINTS if options.config == "demo" else None)


def describe_networks(options: argparse.Namespace) -> dict[str, str]:
    """JSON of what is served: its precision, and where its weights are from."""
    checkpoints = checkpoints_of(options)
    return {"precision": options.precision, "weights": str(checkpoints) if checkpoints else "made up (seed 0)"}


def prepare_world(directory: Path | None) -> Path:
    """`directory` as it is; without one, the benchmarks' own world, rendered unless it is complete."""
    if directory is not None:
        return directory
    render_world(WORLD, seed=WORLD_SEED, num_items=WORLD_ITEMS)
    return WORLD


def list_clips(world: Path, num_clips: int) -> list[Path]:
    """The first clips of a world."""
    return [source.path for source in list_videos(world / "video")[0]][:num_clips]


def spread_frames(num_frames: int) -> range:
    """At most so many of the frames that `livematch embed` looks at, in even steps from the first."""
    return DEFAULT_FRAMES[:: -(-len(DEFAULT_FRAMES) // num_frames)]


def read_clips(clips: Sequence[Path], frames: Sequence[int]) -> list[Picture]:
    """These frames of all clips."""
    return [Picture("frame", pixels) for clip in clips for _, pixels in read_frames(clip, frames)]


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
        found = [picture.pixels for picture in read_clips(paths, indices)]
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

    Made-up weights (seed 0) get the score limit at which they find MEAN_BOXES on average in these pictures.
    """
    repository = RESULTS / f"{networks_name(options)}_repository"
    config = CONFIGS[options.config]()
    checkpoints = checkpoints_of(options)
    if checkpoints is not None:
        build(config, repository, checkpoints=checkpoints, precision=options.precision)
        return repository, config
    build(config, repository, random_seed=0, precision=options.precision)
    engines = Engines(repository, config, num_threads=0)
    kind = pictures[0].kind
    scores = np.concatenate([engines.detection_scores(kind, picture.pixels) for picture in pictures])
    rank = round(MEAN_BOXES * len(pictures))
    limit = float(np.sort(scores)[::-1][min(rank, len(scores) - 1)])
    config = replace(config, **{kind: replace(config.kind(kind), min_score=limit)})
    build(config, repository, random_seed=0, precision=options.precision)
    return repository, config


def _emptied(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    colour = pixels.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, pixels.shape))
