"""Check that an ONNX file matches its source numerically, at sizes that were not traced.

python -m export.parity detector --onnx model.onnx --checkpoint detector.pth --images DIR
python -m export.parity embedder --onnx model.onnx --checkpoint embedder_b6.pth
python -m export.parity prepare_frame --onnx model.onnx --pipeline demo
python -m export.parity engines --engine tensorrt --repository DIR --reference FLOAT32_DIR     # all networks

Prints one JSON line with the measurements. The exit code is 3 if a limit is exceeded, and 2 if a file, an engine or its
GPU is missing. The reference is always computed in float32; files with half-precision weights have wider limits.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.checkpoints import read_detector_config, read_onnx_embedder
from export.config import add_pipeline_option, load_pipeline, production
from export.parity.check import check_crop, check_detector, check_embedder, check_onnx_embedder, check_prepare
from export.parity.compare import ParityError, Report
from export.parity.engines import check_engines
from export.parity.inputs import folder_batches
from export.parity.runners import RUNNERS
from livematch.cli.commands import EXIT_FAILURES, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="model", required=True)
    for model in ("detector", "embedder", "prepare_frame", "prepare_image", "crop"):
        command = commands.add_parser(model)
        command.add_argument("--onnx", type=Path, required=True, metavar="FILE")
        if model in ("detector", "embedder"):
            command.add_argument(
                "--checkpoint", type=Path, required=True, metavar="FILE", help="or an embedder's own ONNX file"
            )
        if model == "detector":
            has_detectron2 = importlib.util.find_spec("detectron2") is not None
            command.add_argument("--backbone", help="of a checkpoint without JSON")
            about_config = "detectron2's YAML, or our JSON; default: the JSON beside the checkpoint"
            command.add_argument("--config-file", type=Path, metavar="FILE", help=about_config)
            command.add_argument("--images", type=Path, metavar="DIR", help="default: the photos in export/parity")
            command.add_argument(
                "--reference", choices=("detectron2", "graph"), default="detectron2" if has_detectron2 else "graph"
            )
    command = commands.add_parser("engines", help="compare served networks with float32 ONNX files")
    command.add_argument("--engine", choices=RUNNERS, required=True)
    command.add_argument("--repository", type=Path, required=True, metavar="DIR", help="with the networks to check")
    command.add_argument("--reference", type=Path, required=True, metavar="DIR", help="built with --precision fp32")
    for name in ("detector", "embedder", "prepare_frame", "prepare_image"):
        add_pipeline_option(commands.choices[name], default="production")
    arguments = parser.parse_args(argv)
    return run_command("export.parity", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.model == "engines":
        report = check_engines(arguments.engine, arguments.repository, arguments.reference)
        print(json.dumps(report))
        return 0 if report["is_passed"] else EXIT_FAILURES
    try:
        report = _check(arguments)
    except ParityError as error:
        print(f"export.parity: {error}", file=sys.stderr)
        return EXIT_FAILURES
    print(json.dumps({"model": arguments.model, **report}))
    return 0


def _check(arguments: argparse.Namespace) -> Report:
    path: Path = arguments.onnx
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if arguments.model == "crop":
        return check_crop(path)
    config = production() if arguments.pipeline is None else load_pipeline(arguments.pipeline)
    match arguments.model:
        case "embedder":
            sizes, crop_size = config.crop_sizes, config.only_crop_size
            checkpoint: Path = arguments.checkpoint
            if checkpoint.suffix == ".onnx":
                embedder = read_onnx_embedder(checkpoint, sizes)
                return check_onnx_embedder(path, checkpoint, embedder, sizes=sizes, crop_size=crop_size)
            return check_embedder(path, checkpoint, sizes=sizes, crop_size=crop_size)
        case "detector":
            settings = None if arguments.config_file is None else read_detector_config(arguments.config_file)
            config = config if settings is None else replace(config, detector=settings)
            return check_detector(
                path,
                arguments.checkpoint,
                config=settings,
                backbone=arguments.backbone,
                batches=folder_batches(arguments.images, config) if arguments.images else None,
                reference=arguments.reference,
            )
        case prepare:
            return check_prepare(path, config, prepare.removeprefix("prepare_"))


if __name__ == "__main__":
    sys.exit(main())
