"""Export an embedder to ONNX: from uint8 crops to unit vectors, with dynamic batch size, height and width.

python -m export.embedder --checkpoint embedder_b6.pth --output model.onnx --precision fp16
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.graphs.precision import PRECISIONS
from export.onnx.export import export_embedder
from livematch.cli.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.embedder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="needs its JSON beside it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    options = vars(parser.parse_args(argv))
    return run_command("export.embedder", lambda: _export(**options))


def _export(**options: Any) -> int:
    export_embedder(**options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
