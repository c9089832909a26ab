"""An embedder as ONNX: uint8 crops → unit vectors, with batch, height and width left open.

python -m export.embedder --checkpoint embedder_b6.pth --output model.onnx --precision fp16
"""

import argparse
import sys
from pathlib import Path

from export.onnx.export import export_embedder
from export.onnx.precision import PRECISIONS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    arguments = parser.parse_args(argv)
    try:
        export_embedder(arguments.checkpoint, arguments.output, precision=arguments.precision)
    except (ValueError, FileNotFoundError) as error:
        print(f"export.embedder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
