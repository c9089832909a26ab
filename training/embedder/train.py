"""Train one embedder on images of known identity.

    python -m training.embedder.train --backbone resnet50 --pretrained timm --data DATA [DATA …] -o DIR
    python -m training.embedder.train --config b5a --data DATA [DATA …] -o DIR [--pretrained FILE] [--resume]
    torchrun --nproc-per-node 4 -m training.embedder.train …

DATA is a folder that holds a folder of images per identity, a CSV file (training/datasets/identities.py describes it;
rows of split "test" are left out), or a part of the Watch and Buy data set. Equal names of identities in two DATA mean
two identities.

Several processes split each batch: the batch size of the recipe is that of all processes together, and the loss is
that of the whole batch, so a recipe means the same on one GPU and on eight.

Writes after each epoch DIR/embedder_NAME.pth and .json, for the evaluation and the export, and DIR/NAME.resume.pth,
from which --resume continues with the same schedule and the same crops. Without --resume an existing run is not
overwritten.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from livematch.cli.commands import run_command
from livematch.errors import InputError
from training.datasets.images import add_max_bad_images_option
from training.datasets.sources import IDENTITIES_HELP
from training.embedder import distributed
from training.embedder.crops import prepare_crops
from training.embedder.model import save_embedder
from training.embedder.recipe import RECIPES, Recipe, with_backbone, with_crop_size
from training.embedder.trainer import EmbedderTrainer
from training.options import add_override, overrides

DEFAULT = "b5a"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        choices=sorted(RECIPES),
        metavar="RECIPE",
        help=f"{', '.join(RECIPES)} (default with --backbone: {DEFAULT})",
    )
    parser.add_argument("--backbone", metavar="MODEL", help="any timm model, instead of the recipe's")
    parser.add_argument(
        "--image-size",
        metavar="SIZE",
        help="of the crops, WIDTHxHEIGHT, or a set of sizes by aspect ratio: XS, S, SM, M",
    )
    add_override(parser, "model.embedding_size", help="length of an embedding (default: 512)")
    add_override(parser, "num_epochs", help="override the recipe, without restarts of the learning rate")
    add_override(parser, "batch_size")
    add_override(parser, "learning_rate", float)
    parser.add_argument("--name", help="for the file names (default: after the backbone, else the recipe)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DATA", help=IDENTITIES_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for frames and crops (default: OUTPUT/cache)")
    parser.add_argument(
        "--pretrained", metavar="FILE", help="backbone weights with timm's tensor names, or 'timm' to download them"
    )
    parser.add_argument("--resume", action="store_true", help="continue from OUTPUT/NAME.resume.pth if it exists")
    add_max_bad_images_option(parser)
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes per training process that read and augment crops (default: on a GPU, the machine's CPUs split "
        "evenly; otherwise 0)",
    )
    parser.add_argument("--num-threads", type=int, metavar="N", help="CPU threads of PyTorch")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command("training.embedder.train", partial(_run, build_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    recipe, name = recipe_of(arguments), _name(arguments)
    resume = arguments.output / f"{name}.resume.pth"
    if resume.exists() and not arguments.resume:
        raise InputError(f"{resume} exists: continue that run with --resume, or remove the file")
    if arguments.pretrained not in (None, "timm") and not Path(arguments.pretrained).is_file():
        raise InputError(f"{arguments.pretrained}: no such file")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    device = distributed.start()
    try:
        train(recipe, arguments, resume, arguments.output / f"embedder_{name}.pth", device)
    finally:
        distributed.stop()
    return 0


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    if arguments.config is None and arguments.backbone is None:
        raise InputError(f"--backbone MODEL or --config RECIPE is needed; recipes are {', '.join(RECIPES)}")
    recipe = RECIPES[arguments.config or DEFAULT]
    if arguments.backbone is not None:
        recipe = with_backbone(recipe, arguments.backbone)
    if arguments.image_size is not None:
        recipe = with_crop_size(recipe, arguments.image_size)
    recipe = replace(recipe, model=replace(recipe.model, **overrides(arguments, "model.embedding_size")))
    if arguments.num_epochs is not None:
        recipe = replace(recipe, num_restarts=0)
    return replace(recipe, **overrides(arguments, "num_epochs", "batch_size", "learning_rate"))


def _name(arguments: argparse.Namespace) -> str:
    """Return the embedder's name; the export puts it into the name of a folder."""
    name: str | None = arguments.name
    if name is None:
        return re.sub(r"\W", "_", arguments.backbone or arguments.config.removeprefix("demo-"))
    if not re.fullmatch(r"\w+", name):
        raise InputError(f"--name is {name!r}; it may have letters, digits and _ only")
    return name


def train(recipe: Recipe, arguments: argparse.Namespace, resume: Path, checkpoint: Path, device: torch.device) -> None:
    """Train from the beginning, or from `resume` if it exists; every process calls this, the main one writes."""
    cache = arguments.cache or arguments.output / "cache"
    rank, num_processes = distributed.rank_and_size()
    distributed.batch_slice(recipe.batch_size, rank, num_processes)  # raises before an hour of cutting crops
    with distributed.main_process_first():  # the main process fills the cache
        crops = prepare_crops(
            arguments.data,
            cache,
            max_side_px=recipe.max_crop_side_px,
            max_bad_images=arguments.max_bad_images,
            split="train",
        )
    pretrained = arguments.pretrained == "timm" or (Path(arguments.pretrained) if arguments.pretrained else False)
    run = EmbedderTrainer(recipe, crops, pretrained=pretrained, device=device)
    if resume.exists():
        run.load(resume)
    distributed.check_agreement(run.epoch, f"the last epoch in {resume}")
    num_workers = arguments.num_workers
    if num_workers is None:
        num_workers = distributed.cpus_per_process() if device.type == "cuda" else 0
    if rank == 0:
        print(json.dumps({"crops": len(crops), "identities": run.dataset.num_identities, "batches": len(run.batches)}))
    while run.epoch < recipe.total_epochs:
        metrics = run.train_epoch(num_workers)
        if rank == 0:
            print(json.dumps(metrics), flush=True)
            save_embedder(run.model, checkpoint)  # before the state: a resumed run would not write it again
            run.save(resume)


if __name__ == "__main__":
    raise SystemExit(main())
