"""Trains the detector on parts of the Watch and Buy data set.

    python -m training.detector.train --stage 1 --data PART [PART …] --output DIR --backbone-weights FILE
    python -m training.detector.train --config demo --data PART [PART …] --output DIR

A stage writes to DIR/stage<N>, the demo to DIR: `detector.pth` and `detector.json` for the export, `last.pt` to resume
from, `log.jsonl` and `tensorboard/`. The last line printed is a JSON object with the metrics on the held-out pictures.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from training.checkpoint import save_whole
from training.detector.average_precision import evaluate
from training.detector.data import Batches
from training.detector.progress import Progress
from training.detector.recipe import STAGES, Recipe, demo
from training.detector.survey import read_data
from training.detector.trainer import DetectorTrainer
from training.detector.weights import load_backbone, load_checkpoint, load_weights
from training.wab.dataset import Picture, add_bad_pictures_option, digest


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = parser.add_mutually_exclusive_group(required=True)
    recipes.add_argument("--stage", type=int, choices=range(1, len(STAGES) + 1), help="of the production recipe")
    recipes.add_argument("--config", choices=["demo"], help="the demo's recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="parts of the data set")
    parser.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="parts to evaluate on; default: the last 5 %% of items",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of extracted frames; default: OUTPUT/cache")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a detector to start from; default: the last stage's detector.pth in OUTPUT, if it is there",
    )
    weights.add_argument("--backbone-weights", type=Path, metavar="FILE", help="a backbone to start from")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt if it is there")
    parser.add_argument("--iterations", type=int, help="instead of the recipe's")
    parser.add_argument("--evaluate-every", type=int, metavar="ITERATIONS", help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    add_bad_pictures_option(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, each with its GPU if any")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of the first machine")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.num_machines > 1 and arguments.dist_url == "auto":
        parser.error("several machines need --dist-url")
    if torch.cuda.is_available() and arguments.num_gpus > torch.cuda.device_count():
        parser.error(f"--num-gpus is {arguments.num_gpus}, this machine has {torch.cuda.device_count()}")
    for path in filter(None, (arguments.weights, arguments.backbone_weights)):
        if not path.is_file():
            parser.error(f"{path}: no such file")

    recipe = demo() if arguments.stage is None else STAGES[arguments.stage - 1]()
    changes = {"iterations": arguments.iterations, "evaluate_every": arguments.evaluate_every}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    num_processes = arguments.num_gpus * arguments.num_machines
    if recipe.batch_size % num_processes:
        parser.error(f"a batch of {recipe.batch_size} pictures cannot be shared evenly by {num_processes} processes")
    output: Path = arguments.output if arguments.stage is None else arguments.output / recipe.name
    resumes = (output / "last.pt").exists()
    if resumes and not arguments.resume:
        parser.error(f"{output / 'last.pt'} is there already: go on from it with --resume, or remove it")
    if arguments.stage is not None and not (resumes or arguments.weights or arguments.backbone_weights):
        previous = arguments.output / f"stage{arguments.stage - 1}" / "detector.pth"
        if not previous.exists():  # random weights behind frozen norms diverge in the first iterations
            parser.error(f"--stage {arguments.stage} needs --backbone-weights or --weights, as there is no {previous}")
        arguments.weights = previous

    training, validation, notes = read_data(
        arguments.data,
        arguments.validation or (),
        arguments.cache or arguments.output / "cache",
        max_bad_pictures=arguments.max_bad_pictures,
    )
    run = partial(
        train,
        training,
        validation,
        recipe,
        output,
        weights=arguments.weights,
        backbone_weights=arguments.backbone_weights,
        resume=arguments.resume,
        seed=arguments.seed,
        amp=arguments.amp,
        notes=notes,
    )
    launch(run, arguments.num_gpus, arguments.num_machines, arguments.machine_rank, arguments.dist_url)
    return 0


def train(
    pictures: Sequence[Picture],
    validation: Sequence[Picture],
    recipe: Recipe,
    output: Path,
    *,
    weights: Path | None = None,
    backbone_weights: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    amp: bool = False,
    notes: Sequence[Mapping[str, Any]] = (),
) -> nn.Module:
    """Returns the trained model. Every process of a distributed run calls this; the main one writes to `output`.

    Raises FloatingPointError when a loss or a gradient is no longer finite, ValueError if what is to be resumed is
    another run or `output` is not the same folder for all processes.
    """
    run = DetectorTrainer(recipe, seed=seed, amp=amp, data=digest(pictures))
    last = output / "last.pt"
    saved_progress = run.load(last) if resume and last.exists() else None
    starts = comm.all_gather(run.iteration)
    if len(set(starts)) > 1:
        raise ValueError(f"{last} differs between processes: they would go on from iterations {starts}")
    start_from = weights or backbone_weights if saved_progress is None else last
    if saved_progress is None and weights is not None:
        load_weights(run.model, load_checkpoint(weights, recipe.model), weights)
    elif saved_progress is None and backbone_weights is not None:
        load_weights(run.model.backbone.bottom_up, load_backbone(backbone_weights), backbone_weights)

    progress = None
    if comm.is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        progress = Progress(output, run.iteration, saved_progress)
        for note in [*notes, {"start_from": None if start_from is None else str(start_from)}]:
            progress.write(run.iteration, note)

    loader = DataLoader(
        Batches(pictures, recipe, seed, rank=comm.get_rank(), num_processes=comm.get_world_size()),
        batch_size=None,
        sampler=range(run.iteration, recipe.iterations),
        num_workers=recipe.num_workers,
    )
    with EventStorage(run.iteration):
        for inputs in loader:
            learning_rate = run.learning_rate
            losses = run.step(inputs)
            is_last = run.iteration == recipe.iterations
            if progress is not None:
                progress.add(run.iteration, losses, learning_rate)
            if not is_last and run.iteration % recipe.evaluate_every == 0:
                metrics = evaluate(run.model, validation, recipe)
                if progress is not None:
                    progress.write(run.iteration, metrics, "validation")
            if progress is not None and (is_last or run.iteration % recipe.checkpoint_every == 0):
                run.save(last, progress.state_dict())
    model = run.model.to(memory_format=torch.contiguous_format)
    if progress is not None:
        recipe.model.save(output / "detector.json")
        save_whole({"model": model.state_dict()}, output / "detector.pth")
    metrics = evaluate(model, validation, recipe)
    if progress is not None:
        progress.write(run.iteration, metrics, "validation")
        progress.close()
    return model


if __name__ == "__main__":
    raise SystemExit(main())
