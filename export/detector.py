"""Export the detector to ONNX.

    python -m export.detector --checkpoint detector.pth --output FILE.onnx --precision fp16
    python -m export.detector --config-file config.yaml --checkpoint model_final.pth --output FILE.onnx
    python -m export.detector --checkpoint model_final.pth --backbone ese_vovnet99b --output FILE.onnx
    python -m export.detector --config demo --random-weights 0 --output FILE.onnx

The checkpoint has its JSON beside it, as `training.detector.train` writes both; or it is of a detectron2 model, a .pth
or a .pkl of the model zoo, whose YAML is --config-file; or it is a whole Faster R-CNN of the vovnet-detectron2 project,
which has the settings of production but for its backbone. With --config-file, the settings are also written to
FILE.json, which `--config-file` of `export.parity` takes, and `export.build` as detector.json.

Any Faster, Mask or Keypoint R-CNN with a ResNet or ResNeXt and a feature pyramid can be exported: boxes, scores and
classes, without masks and keypoints. Settings that the graph cannot compute are refused by name (see
`training.detector.detectron2_config`). `export.graphs.detector.DetectorGraph.forward` describes inputs and outputs;
batch size, height and width stay dynamic. `export.graphs.detector.best_pairs` says how many classes are exact.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.checkpoints import read_detector_config
from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from livematch.cli.commands import run_command
from training.detector.backbone import ARCHITECTURES
from training.detector.config import DEMO, PRODUCTION
from training.detector.weights import ignored_heads

CONFIGS = {"demo": DEMO, "production": PRODUCTION}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.detector", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="needs its JSON, --config-file or --backbone")
    parser.add_argument("--backbone", choices=sorted(ARCHITECTURES), help="of a checkpoint without JSON")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument("--config", choices=sorted(CONFIGS), help="the architecture, with --random-weights")
    architecture.add_argument("--config-file", type=Path, metavar="FILE", help="detectron2's YAML, or our JSON")
    parser.add_argument("--random-weights", type=int, dest="random_seed", metavar="SEED")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="proposals per image; default: the config's")
    parser.add_argument("--max-detections", type=int, metavar="N", help="rows of the outputs; default: the config's")
    options = vars(parser.parse_args(argv))
    return run_command("export.detector", lambda: _export(**options))


def _export(*, config: str | None, config_file: Path | None, output: Path, **options: Any) -> int:
    settings = CONFIGS[config] if config else None
    if config_file is not None:
        settings = read_detector_config(config_file)
    if checkpoint := options["checkpoint"]:
        for prefix in ignored_heads(checkpoint):
            print(f"export.detector: ignored {prefix}*: boxes do not depend on it", file=sys.stderr)
    exported = export_detector(**options, output=output, config=settings)
    if config_file is not None:
        exported.save(output.with_suffix(".json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
