import sys

from benchmarks.report.page import main

sys.exit(main())
