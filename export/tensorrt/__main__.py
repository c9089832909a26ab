"""`python -m export.tensorrt` builds engines; see `export.tensorrt.build`."""

import sys

from export.tensorrt.build import main

if __name__ == "__main__":
    sys.exit(main())
