"""Train the detector on COCO JSON or on parts of the Watch and Buy data set.

    python -m training.detector.train --config-file FILE.yaml --weights FILE.pkl --data FILE.json:IMAGES -o DIR
    python -m training.detector.train --stage 1 --data PART [PART …] -o DIR --backbone-weights FILE
    python -m training.detector.train --config demo --data DATA [DATA …] -o DIR

The classes are the categories of the JSON; parts of the Watch and Buy data set have one class. --config-file is for
detectron2's Faster R-CNN with a ResNet and a feature pyramid: its architecture and image sizes are used, but not its
SOLVER.

Writes to DIR `detector.pth` and `detector.json` for the export, `last.pt` to resume from, `log.jsonl` and
`tensorboard/`; stages 1 and 2 write to DIR/stage1 and DIR/stage2. The last line printed is a JSON object with the
metrics on the validation images.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessExitedException

from livematch.cli.commands import run_command
from livematch.errors import InputError, LivematchError
from training.datasets.images import add_max_bad_images_option
from training.datasets.sources import BOXES_HELP
from training.detector.config import DetectorConfig
from training.detector.detectron2_config import read_config, read_image_sizes
from training.detector.recipe import STAGES, Recipe, demo, finetune
from training.detector.splits import read_splits
from training.options import add_override, overrides

COMMAND = "training.detector.train"
INSTALLATION = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {COMMAND}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipes = parser.add_mutually_exclusive_group(required=True)
    recipes.add_argument("--stage", type=int, choices=range(1, len(STAGES) + 1), help="stage of the production recipe")
    recipes.add_argument("--config", choices=["demo"], help="the recipe of the demo")
    recipes.add_argument(
        "--config-file", type=Path, metavar="FILE", help="fine-tune the model of a detectron2 config or a detector.json"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DATA", help=BOXES_HELP)
    parser.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        default=(),
        metavar="DATA",
        help="what to evaluate on (default: hold out the last 5 %% of the items, in COCO of the images, of --data)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for extracted frames (default: OUTPUT/cache)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a detector to start from, .pth or .pkl (default for stages 2 and 3: that of the previous stage)",
    )
    weights.add_argument("--backbone-weights", type=Path, metavar="FILE", help="a backbone to start from")
    parser.add_argument("--resume", action="store_true", help="continue from last.pt if it exists")
    add_override(parser, "iterations")
    add_override(parser, "batch_size")
    add_override(parser, "learning_rate", float)
    add_override(parser, "evaluate_every")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU")
    add_max_bad_images_option(parser)
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 on")
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, partial(_run, build_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if find_spec("detectron2") is None:
        raise InputError(f"detectron2 is not installed: see {INSTALLATION}")
    recipe = recipe_of(arguments)
    _check_processes(arguments, recipe)
    output = output_of(arguments)
    weights = _initial_weights(arguments, recipe, output)
    splits = read_splits(
        arguments.data,
        arguments.validation,
        arguments.cache or arguments.output / "cache",
        max_bad_images=arguments.max_bad_images,
    )
    recipe = replace(recipe, model=_with_classes(recipe.model, splits.class_names))

    from detectron2.engine import launch  # here, so that --help works without detectron2

    from training.detector.trainer import train

    job = partial(
        train,
        splits.training,
        splits.validation,
        recipe,
        output,
        weights=weights,
        backbone_weights=arguments.backbone_weights,
        resume=arguments.resume,
        seed=arguments.seed,
        amp=arguments.amp,
        notes=splits.notes,
    )
    if arguments.num_gpus * arguments.num_machines == 1:
        job()
        return 0
    launched = arguments.num_gpus, arguments.num_machines, arguments.machine_rank, arguments.dist_url
    try:
        launch(partial(_exit_on_error, job), *launched)
    except ProcessExitedException as error:  # for other exceptions launch raises one with the process's traceback
        if error.signal_name:
            raise LivematchError(str(error)) from error
        return error.exit_code
    return 0


def _exit_on_error(job: Callable[[], object]) -> None:
    """Run `job` in a spawned process; for a user's mistake print one line and exit with the code for the command."""

    def run() -> int:
        job()
        return 0

    if code := run_command(COMMAND, run):
        raise SystemExit(code)


def output_of(arguments: argparse.Namespace) -> Path:
    """Return the folder to write to: the last stage, like other trainings, writes to the one that is given."""
    output: Path = arguments.output
    return output if arguments.stage in (None, len(STAGES)) else output / f"stage{arguments.stage}"


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the options choose, with the fields that they override."""
    if arguments.config_file is not None:
        recipe = finetune(read_config(arguments.config_file), read_image_sizes(arguments.config_file))
    else:
        recipe = demo() if arguments.stage is None else STAGES[arguments.stage - 1]()
    changes = overrides(arguments, "iterations", "batch_size", "learning_rate", "evaluate_every")
    if "iterations" in changes:
        changes["warmup_iterations"] = min(recipe.warmup_iterations, max(1, changes["iterations"] // 10))
    return replace(recipe, **changes)


def _with_classes(model: DetectorConfig, names: tuple[str, ...]) -> DetectorConfig:
    """Return the config for the classes of the data; without names there is one class."""
    return replace(model, num_classes=max(1, len(names)), class_names=names)


def _check_processes(arguments: argparse.Namespace, recipe: Recipe) -> None:
    if arguments.num_gpus < 1 or arguments.num_machines < 1:
        raise InputError(f"--num-gpus {arguments.num_gpus} --num-machines {arguments.num_machines}: at least 1 each")
    if arguments.num_machines > 1 and arguments.dist_url == "auto":
        raise InputError("--num-machines needs --dist-url")
    if torch.cuda.is_available() and arguments.num_gpus > torch.cuda.device_count():
        raise InputError(f"--num-gpus is {arguments.num_gpus}, this machine has {torch.cuda.device_count()}")
    num_processes = arguments.num_gpus * arguments.num_machines
    if recipe.batch_size % num_processes:
        raise InputError(f"a batch of {recipe.batch_size} images cannot be split evenly over {num_processes} processes")


def _initial_weights(arguments: argparse.Namespace, recipe: Recipe, output: Path) -> Path | None:
    """Return the detector to start from, or None. Raises InputError if it is missing, or if a run would be overwritten.

    With random weights and frozen batch norms a training diverges in the first iterations, so it is refused.
    """
    for path in filter(None, (arguments.weights, arguments.backbone_weights)):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    last = output / "last.pt"
    if last.exists() and not arguments.resume:
        raise InputError(f"{last} exists: continue that run with --resume, or remove the file")
    weights: Path | None = arguments.weights
    if recipe.model.norm == "FrozenBN" and not (last.exists() or weights or arguments.backbone_weights):
        if arguments.stage is None:
            raise InputError("--config-file has frozen batch norms, so it needs --weights or --backbone-weights")
        weights = arguments.output / f"stage{arguments.stage - 1}" / "detector.pth"
        if not weights.is_file():
            raise InputError(f"--stage {arguments.stage} needs --backbone-weights or --weights: there is no {weights}")
    return weights


if __name__ == "__main__":
    raise SystemExit(main())
