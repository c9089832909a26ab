"""Is an ONNX file the same function as its PyTorch source? Compared on sizes that were not traced, with fixed limits.

python -m export.parity detector --onnx model.onnx --checkpoint detector.pth --images DIR
python -m export.parity embedder --onnx model.onnx --checkpoint embedder_b6.pth
python -m export.parity prepare_frame --onnx model.onnx --config demo
python -m export.parity engines --engine tensorrt --repository DIR --reference FLOAT32_DIR     # all networks

A half precision file is known by its weights and has limits of its own; the reference is always computed in float32.
Prints one JSON line with what was measured; exit code 1 if a limit is passed, 2 where an engine or its GPU is missing.
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

from export.config import CONFIGS, PipelineConfig
from export.onnx.files import precision_of
from export.parity.check import check_crop, check_detector, check_embedder, check_prepare
from export.parity.compare import DETECTOR_LIMITS, DetectorLimits, Report
from export.parity.engines import run as run_engines
from export.parity.inputs import folder_batches
from export.parity.runners import RUNNERS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="model", required=True)
    for model in ("detector", "embedder", "prepare_frame", "prepare_image", "crop"):
        command = commands.add_parser(model)
        command.add_argument("--onnx", type=Path, required=True, metavar="FILE")
        command.add_argument("--config", choices=sorted(CONFIGS), default="production", help="sizes to compare on")
        if model in ("detector", "embedder"):
            command.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
        if model == "detector":
            has_detectron2 = importlib.util.find_spec("detectron2") is not None
            command.add_argument("--backbone", help="of a checkpoint without JSON")
            command.add_argument("--images", type=Path, metavar="DIR", help="default: pictures of the demo world")
            command.add_argument(
                "--reference", choices=("detectron2", "graph"), default="detectron2" if has_detectron2 else "graph"
            )
            for field in fields(DetectorLimits):
                command.add_argument(f"--{field.name.replace('_', '-')}", type=float, help="instead of the precision's")
    command = commands.add_parser("engines", help="networks as served, against float32 ONNX files")
    command.add_argument("--engine", choices=RUNNERS, required=True)
    command.add_argument("--repository", type=Path, required=True, metavar="DIR", help="with the engines")
    command.add_argument("--reference", type=Path, required=True, metavar="DIR", help="built with --precision fp32")
    command.add_argument("--config", choices=sorted(CONFIGS), default="production")
    arguments = parser.parse_args(argv)
    if arguments.model == "engines":
        return run_engines(arguments.engine, arguments.repository, arguments.reference, CONFIGS[arguments.config]())
    try:
        report = _check(arguments, CONFIGS[arguments.config]())
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"model": arguments.model, **report}))
    return 0


def _check(arguments: argparse.Namespace, config: PipelineConfig) -> Report:
    path: Path = arguments.onnx
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if arguments.model == "crop":
        return check_crop(path)
    if arguments.model.startswith("prepare_"):
        return check_prepare(path, config, arguments.model.removeprefix("prepare_"))
    if arguments.model == "embedder":
        return check_embedder(path, arguments.checkpoint, sizes=config.crop_sizes)
    given = {field.name: getattr(arguments, field.name) for field in fields(DetectorLimits)}
    limits = {name: value for name, value in given.items() if value is not None}
    return check_detector(
        path,
        arguments.checkpoint,
        backbone=arguments.backbone,
        batches=folder_batches(arguments.images, config) if arguments.images else None,
        reference=arguments.reference,
        limits=replace(DETECTOR_LIMITS[precision_of(path)], **limits),
    )


if __name__ == "__main__":
    sys.exit(main())
