"""Train one embedder on parts of the Watch and Buy data set or on demo worlds.

    python -m training.embedder.train --config b5a --data PART [PART …] -o DIR [--pretrained FILE] [--resume]
    torchrun --nproc-per-node 4 -m training.embedder.train …

Several processes split each batch: the batch size of the recipe is that of all processes together, and the loss is
that of the whole batch, so a recipe means the same on one GPU and on eight.

Writes DIR/embedder_<name>.pth and .json and, after each epoch, DIR/<name>.resume.pth, from which --resume continues
with the same schedule and the same crops. Without --resume an existing run is not overwritten.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from livematch.cli.commands import run_command
from livematch.errors import InputError
from training.embedder import distributed
from training.embedder.crops import prepare_crops
from training.embedder.model import save_embedder
from training.embedder.recipe import RECIPES
from training.embedder.trainer import EmbedderTrainer
from training.wab.dataset import add_max_bad_images_option


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", choices=sorted(RECIPES), required=True, metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="PART", help="parts of the data set")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for frames and crops (default: OUTPUT/cache)")
    parser.add_argument(
        "--pretrained", metavar="FILE", help="backbone weights with timm's tensor names, or 'timm' to download them"
    )
    parser.add_argument("--resume", action="store_true", help="continue from OUTPUT/<name>.resume.pth if it exists")
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
    name = arguments.config.removeprefix("demo-")
    resume = arguments.output / f"{name}.resume.pth"
    if resume.exists() and not arguments.resume:
        raise InputError(f"{resume} exists: continue that run with --resume, or remove the file")
    if arguments.pretrained not in (None, "timm") and not Path(arguments.pretrained).is_file():
        raise InputError(f"{arguments.pretrained}: no such file")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    device = distributed.start()
    try:
        train(arguments, resume, arguments.output / f"embedder_{name}.pth", device)
    finally:
        distributed.stop()
    return 0


def train(arguments: argparse.Namespace, resume: Path, checkpoint: Path, device: torch.device) -> None:
    """Train from the beginning, or from `resume` if it exists; every process calls this, the main one writes."""
    recipe = RECIPES[arguments.config]
    cache = arguments.cache or arguments.output / "cache"
    rank, num_processes = distributed.rank_and_size()
    distributed.batch_slice(recipe.batch_size, rank, num_processes)  # raises before an hour of cutting crops
    with distributed.main_process_first():  # the main process fills the cache
        crops = prepare_crops(
            arguments.data, cache, max_side_px=recipe.max_crop_side_px, max_bad_images=arguments.max_bad_images
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
            run.save(resume)
    if rank == 0:
        save_embedder(run.model.float().cpu(), checkpoint)


if __name__ == "__main__":
    raise SystemExit(main())
