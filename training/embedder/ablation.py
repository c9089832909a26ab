"""What each ingredient of the recipe is worth: trained without it, with three seeds, on demo worlds.

    python -m training.embedder.ablation --output build/ablation --result benchmarks/results/ablation.json

Two of the four embedders, the one without and the one with most memory, are trained as the demo's are, but with three
template sizes, on one world and tested on another, which has items, lookalikes among them, that no training saw. The
full recipe is the two fused; "without fusion" is the mean of the two alone. Every training leaves its test embeddings
in OUTPUT, under a name that changes with its recipe and the worlds, so a run that was stopped goes on there.
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from tqdm import tqdm

from training.demo.world import STAMP, render_world
from training.embedder.crops import Crop, prepare_crops
from training.embedder.evaluate import both_ways, embed_crops, fuse
from training.embedder.recipe import Recipe, demo
from training.embedder.templates import ASPECT_RATIOS
from training.embedder.train import EmbedderTrainer

TRAINING_SEED, TEST_SEED = 201, 202
SQUARE = ASPECT_RATIOS.index(1.0)
EMBEDDERS = ("b5a", "b7")
DIRECTIONS = ("video_to_item", "item_to_video")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long it takes: on two slow cores a little over an hour by default."""

    num_training_items: int = 100
    num_test_items: int = 60
    num_epochs: int = 6
    num_seeds: int = 3


def full(recipe: Recipe) -> Recipe:
    return replace(recipe, num_restarts=0, template_sets=("XS-S", "XS", "XS-M"))


def without_gem(recipe: Recipe) -> Recipe:
    """Average pooling."""
    return replace(recipe, model=replace(recipe.model, gem_p=1.0, gem_learnable=False))


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "full": lambda recipe: recipe,
    "without aspect buckets": lambda recipe: recipe,  # every crop is made square, see `crops_of`
    "without GeM": without_gem,
    "without memory": lambda recipe: replace(recipe, memory_size=0),
    "without multi-scale": lambda recipe: replace(recipe, template_sets=("XS",)),
    "without heavy augmentation": lambda recipe: replace(recipe, heavy_augmentation=False),  # boxes jitter still
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One embedder of one variant and seed."""

    variant: str
    embedder: str
    seed: int
    size: Size
    worlds: str  # what they were made from
    output: Path

    @property
    def recipe(self) -> Recipe:
        recipe = demo(self.embedder)
        recipe = replace(recipe, seed=recipe.seed + 10 * self.seed, num_epochs=self.size.num_epochs)
        return VARIANTS[self.variant](full(recipe))

    @property
    def result(self) -> Path:
        digest = hashlib.sha256(repr((self.recipe, self.worlds)).encode()).hexdigest()[:12]
        return self.output / self.variant.replace(" ", "_") / f"{self.embedder}_{self.seed}_{digest}.npy"

    def run(self) -> None:
        """Trains and writes the embeddings of the test crops."""
        torch.set_num_threads(1)
        run = EmbedderTrainer(self.recipe, crops_of(self.variant, self.output / "training", self.output / "cache"))
        for _ in range(self.recipe.num_epochs):
            run.train_epoch(0)
        crops = crops_of(self.variant, self.output / "test", self.output / "cache")
        embeddings = embed_crops(run.model.eval(), crops)
        self.result.parent.mkdir(parents=True, exist_ok=True)
        partial = self.result.with_suffix(".part.npy")
        np.save(partial, embeddings)
        partial.replace(self.result)


def crops_of(variant: str, world: Path, cache: Path) -> list[Crop]:
    crops = prepare_crops([world], cache, max_side=demo("b5a").max_crop_side)
    if variant == "without aspect buckets":
        return [replace(crop, aspect=SQUARE) for crop in crops]
    return crops


def plan(size: Size, worlds: str, output: Path) -> dict[tuple[str, int, str], Training]:
    """The trainings by variant, seed and embedder; what a variant does not change is the full recipe's."""
    trainings = {}
    for variant in VARIANTS:
        for seed in range(size.num_seeds):
            for embedder in EMBEDDERS:
                training = Training(
                    variant=variant, embedder=embedder, seed=seed, size=size, worlds=worlds, output=output
                )
                same = replace(training, variant="full")
                is_same = training.recipe == same.recipe and variant != "without aspect buckets"
                trainings[variant, seed, embedder] = same if is_same else training
    return trainings


def measure(trainings: dict[tuple[str, int, str], Training], size: Size, crops: Sequence[Crop]) -> dict[str, object]:
    """R@1 and mAP both ways of every variant, one value per seed."""
    rows: dict[str, dict[str, list[float]]] = {}

    def add(row: str, results: Sequence[dict[str, dict[str, float]]]) -> None:
        for direction in DIRECTIONS:
            for metric in ("r1", "map"):
                value = float(np.mean([result[direction][metric] for result in results]))
                rows.setdefault(row, {}).setdefault(f"{direction}_{metric}", []).append(round(value, 4))

    for variant in VARIANTS:
        for seed in range(size.num_seeds):
            parts = [np.load(trainings[variant, seed, embedder].result) for embedder in EMBEDDERS]
            add(variant, [both_ways(fuse(parts), crops)])
            if variant == "full":
                add("without fusion", [both_ways(part, crops) for part in parts])
    return dict(rows)


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """As Markdown: mean ± standard deviation over the seeds, in percent."""
    lines = ["| recipe | video → item R@1 | mAP | item → video R@1 | mAP |", "| --- | --- | --- | --- | --- |"]
    for name, metrics in rows.items():
        cells = [f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}" for values in metrics.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="worlds, crops and embeddings")
    parser.add_argument("--result", type=Path, required=True, metavar="JSON")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    for field, default in vars(Size()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default)
    arguments = parser.parse_args(argv)
    size = Size(**{name: getattr(arguments, name) for name in vars(Size())})
    output: Path = arguments.output
    for name, seed, num_items in (
        ("training", TRAINING_SEED, size.num_training_items),
        ("test", TEST_SEED, size.num_test_items),
    ):
        render_world(output / name, seed=seed, num_items=num_items, render_every=20)
        crops = prepare_crops([output / name], output / "cache", max_side=demo("b5a").max_crop_side)
    worlds = "".join((output / name / STAMP).read_text() for name in ("training", "test"))
    trainings = plan(size, worlds, output)
    missing = sorted({t for t in trainings.values() if not t.result.exists()}, key=lambda t: str(t.result))
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        for job in tqdm([pool.submit(training.checkpoint) for training in missing], desc="training", unit="network"):
            job.result()
    rows = measure(trainings, size, crops)
    result = {
        "size": vars(size),
        "rows": rows,
        "num_trainings": len(set(trainings.values())),
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
