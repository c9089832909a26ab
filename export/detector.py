"""Exports the detector to ONNX.

    python -m export.detector --checkpoint detector.pth --output FILE.onnx --precision fp16
    python -m export.detector --checkpoint model_final.pth --backbone ese_vovnet99b --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

A checkpoint is of our training, with its JSON beside it, or a whole Faster R-CNN of the vovnet-detectron2 project,
whose backbone has to be named; its other settings are then production's. Inputs and outputs are those of
`export.graphs.detector.DetectorGraph.forward`; batch, height and width are free.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.onnx.export import export_detector
from export.onnx.precision import PRECISIONS
from training.detector.backbone import ARCHITECTURES
from training.detector.config import DEMO, PRODUCTION

CONFIGS = {"demo": DEMO, "production": PRODUCTION}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="its JSON beside it, or --backbone")
    parser.add_argument("--backbone", choices=sorted(ARCHITECTURES), help="of a checkpoint without JSON")
    parser.add_argument("--config", choices=sorted(CONFIGS), help="with --random-weights")
    parser.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="that reach the box head; default 1000")
    parser.add_argument("--max-detections", type=int, metavar="N", help="rows of the outputs; default 100")
    arguments = parser.parse_args(argv)
    try:
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
    except (ValueError, FileNotFoundError) as error:
        print(f"export.detector: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
