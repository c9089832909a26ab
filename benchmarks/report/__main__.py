"""`python -m benchmarks.report` writes the report; see `benchmarks.report.page`."""

import sys

from benchmarks.report.page import main

sys.exit(main())
