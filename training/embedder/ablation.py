"""Ablation study: measure what each component of the embedders' recipe contributes, on demo worlds.

    python -m training.embedder.ablation -o build/ablation --result benchmarks/results/ablation.json

Two of the four embedders are trained: the one without a cross-batch memory and the one with the largest. They are
trained like those of the demo, but with three template sets, on one rendered world and tested on another, whose items
no training has seen. Each variant leaves one component out. "full" and the variants are the two embedders fused;
"without fusion" is the mean of the two alone. Every training stores its test embeddings in OUTPUT under a name that
depends on its recipe and the worlds, so that an interrupted study continues when it is started again.
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from livematch.cli.commands import run_command
from livematch.files import replace_file
from training.demo.world import STAMP, render_world
from training.embedder.crops import Crop, prepare_crops
from training.embedder.evaluate import embed_crops, fuse, retrieval_in_both_directions
from training.embedder.recipe import Recipe, demo
from training.embedder.templates import ASPECT_RATIOS
from training.embedder.trainer import EmbedderTrainer

TRAINING_SEED, TEST_SEED = 201, 202
SQUARE = ASPECT_RATIOS.index(1.0)
EMBEDDERS = ("b5a", "b7")
DIRECTIONS = ("video_to_item", "item_to_video")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of the study; the default takes a little over an hour on two slow cores."""

    num_training_items: int = 100
    num_test_items: int = 60
    num_epochs: int = 6
    num_seeds: int = 3


def full_recipe(recipe: Recipe) -> Recipe:
    """Return the demo's recipe without restarts, to save time, and with three template sets."""
    return replace(recipe, num_restarts=0, template_sets=("XS-S", "XS", "XS-M"))


def without_gem(recipe: Recipe) -> Recipe:
    """Return the recipe with average pooling instead."""
    return replace(recipe, model=replace(recipe.model, gem_p=1.0, gem_learnable=False))


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "full": lambda recipe: recipe,
    "without aspect buckets": lambda recipe: recipe,  # all crops are square, see `crops_of`
    "without GeM": without_gem,
    "without memory": lambda recipe: replace(recipe, memory_size=0),
    "without multi-scale": lambda recipe: replace(recipe, template_sets=("XS",)),
    "without heavy augmentation": lambda recipe: replace(
        recipe, heavy_augmentation=False
    ),  # still with jitter of boxes
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of one embedder, for one variant and seed."""

    variant: str
    embedder: str
    seed: int
    size: Size
    worlds: str  # identifies the two worlds: the content of their stamps
    output: Path

    @property
    def recipe(self) -> Recipe:
        recipe = demo(self.embedder)
        recipe = replace(recipe, seed=recipe.seed + 10 * self.seed, num_epochs=self.size.num_epochs)
        return VARIANTS[self.variant](full_recipe(recipe))

    @property
    def result(self) -> Path:
        """The file for the embeddings of the test crops."""
        digest = hashlib.sha256(repr((self.recipe, self.worlds)).encode()).hexdigest()[:12]
        return self.output / self.variant.replace(" ", "_") / f"{self.embedder}_{self.seed}_{digest}.npy"

    def train_and_embed(self) -> None:
        """Train, and write the embeddings of the test crops to `result`."""
        torch.set_num_threads(1)
        run = EmbedderTrainer(self.recipe, crops_of(self.variant, self.output / "training", self.output / "cache"))
        for _ in range(self.recipe.num_epochs):
            run.train_epoch(0)
        crops = crops_of(self.variant, self.output / "test", self.output / "cache")
        embeddings = embed_crops(run.model.eval(), crops)
        with replace_file(self.result) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)


def crops_of(variant: str, world: Path, cache: Path) -> list[Crop]:
    """Return the crops of a world, all of them square for the variant without aspect buckets."""
    crops = prepare_crops([world], cache, max_side_px=demo("b5a").max_crop_side_px)
    if variant == "without aspect buckets":
        return [replace(crop, aspect=SQUARE) for crop in crops]
    return crops


def plan(size: Size, worlds: str, output: Path) -> dict[tuple[str, int, str], Training]:
    """Return the training for each variant, seed and embedder.

    If a variant does not change the recipe of an embedder, it shares the training of the full recipe.
    """
    trainings = {}
    for variant in VARIANTS:
        for seed in range(size.num_seeds):
            for embedder in EMBEDDERS:
                training = Training(
                    variant=variant, embedder=embedder, seed=seed, size=size, worlds=worlds, output=output
                )
                full = replace(training, variant="full")
                is_full = training.recipe == full.recipe and variant != "without aspect buckets"
                trainings[variant, seed, embedder] = full if is_full else training
    return trainings


def measure(
    trainings: dict[tuple[str, int, str], Training], size: Size, crops: Sequence[Crop]
) -> dict[str, dict[str, list[float]]]:
    """Return recall at 1 and mAP of every variant in both directions, with one value per seed."""
    rows: dict[str, dict[str, list[float]]] = {}

    def add(row: str, results: Sequence[dict[str, dict[str, float]]]) -> None:
        for direction in DIRECTIONS:
            for metric in ("r1", "map"):
                value = float(np.mean([result[direction][metric] for result in results]))
                rows.setdefault(row, {}).setdefault(f"{direction}_{metric}", []).append(round(value, 4))

    for variant in VARIANTS:
        for seed in range(size.num_seeds):
            parts = [np.load(trainings[variant, seed, embedder].result) for embedder in EMBEDDERS]
            add(variant, [retrieval_in_both_directions(fuse(parts), crops)])
            if variant == "full":
                add("without fusion", [retrieval_in_both_directions(part, crops) for part in parts])
    return rows


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Return the results as a Markdown table: mean ± standard deviation over the seeds, in percent."""
    lines = ["| recipe | video → item R@1 | mAP | item → video R@1 | mAP |", "| --- | --- | --- | --- | --- |"]
    for name, metrics in rows.items():
        cells = [f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}" for values in metrics.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="for worlds, crops and embeddings"
    )
    parser.add_argument("--result", type=Path, required=True, metavar="JSON", help="where to write the results")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time, with one thread each")
    for field, default in vars(Size()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default, metavar="N")
    return run_command("training.embedder.ablation", partial(_run, parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    size = Size(**{name: getattr(arguments, name) for name in vars(Size())})
    output: Path = arguments.output
    for name, seed, num_items in (
        ("training", TRAINING_SEED, size.num_training_items),
        ("test", TEST_SEED, size.num_test_items),
    ):
        render_world(output / name, seed=seed, num_items=num_items, render_every=20)
        crops = crops_of("full", output / name, output / "cache")  # fills the cache that the trainings share
    worlds = "".join((output / name / STAMP).read_text() for name in ("training", "test"))
    trainings = plan(size, worlds, output)
    missing = sorted({t for t in trainings.values() if not t.result.exists()}, key=lambda t: str(t.result))
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(training.train_and_embed) for training in missing]
        for job in tqdm(jobs, desc="training", unit="network"):
            job.result()
    rows = measure(trainings, size, crops)
    result = {
        "size": vars(size),
        "rows": rows,
        "num_trainings": len(set(trainings.values())),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    with replace_file(arguments.result) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
