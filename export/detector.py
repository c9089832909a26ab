"""Export the detector to ONNX.

    python -m export.detector --checkpoint detector.pth --output FILE.onnx --precision fp16
    python -m export.detector --checkpoint model_final.pth --backbone ese_vovnet99b --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

The checkpoint is either one of our training, with its JSON beside it, or a whole Faster R-CNN of the vovnet-detectron2
project; then name its backbone, and its other settings are production's. Inputs and outputs are those of
`export.graphs.detector.DetectorGraph.forward`; batch size, height and width stay dynamic.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from livematch.cli.commands import run_command
from training.detector.backbone import ARCHITECTURES
from training.detector.config import DEMO, PRODUCTION

CONFIGS = {"demo": DEMO, "production": PRODUCTION}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="with its JSON beside it, or with --backbone")
    parser.add_argument("--backbone", choices=sorted(ARCHITECTURES), help="of a checkpoint without JSON")
    parser.add_argument("--config", choices=sorted(CONFIGS), help="architecture, with --random-weights")
    parser.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="proposals for the box head; default: 1000")
    parser.add_argument("--max-detections", type=int, metavar="N", help="rows of the outputs; default: 100")
    arguments = parser.parse_args(argv)
    return run_command("export.detector", lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> int:
    export_detector(
        arguments.checkpoint,
        arguments.output,
        config=CONFIGS[arguments.config] if arguments.config else None,
        random_seed=arguments.random_weights,
        backbone=arguments.backbone,
        max_proposals=arguments.max_proposals,
        max_detections=arguments.max_detections,
        precision=arguments.precision,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
