"""`python -m export.tensorrt` builds engines; see `export.tensorrt.build`."""

import sys

from export.tensorrt.build import main

sys.exit(main())
