"""Export the detector to ONNX.

    python -m export.detector --checkpoint detector.pth --output FILE.onnx --precision fp16
    python -m export.detector --checkpoint model_final.pth --backbone ese_vovnet99b --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

The checkpoint either has its JSON beside it, as `training.detector.train` writes both, or is a whole Faster R-CNN of
the vovnet-detectron2 project. In the latter case, name its backbone; its other settings are those of production.
`export.graphs.detector.DetectorGraph.forward` describes inputs and outputs; batch size, height and width stay dynamic.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from livematch.cli.commands import run_command
from training.detector.backbone import ARCHITECTURES
from training.detector.config import DEMO, PRODUCTION

CONFIGS = {"demo": DEMO, "production": PRODUCTION}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.detector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="needs its JSON beside it, or --backbone")
    parser.add_argument("--backbone", choices=sorted(ARCHITECTURES), help="of a checkpoint without JSON")
    parser.add_argument("--config", choices=sorted(CONFIGS), help="the architecture, with --random-weights")
    parser.add_argument("--random-weights", type=int, dest="random_seed", metavar="SEED")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="proposals per image; default: the config's")
    parser.add_argument("--max-detections", type=int, metavar="N", help="rows of the outputs; default: the config's")
    options = vars(parser.parse_args(argv))
    return run_command("export.detector", lambda: _export(**options))


def _export(*, config: str | None, **options: Any) -> int:
    export_detector(**options, config=CONFIGS[config] if config else None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
