"""Run the `livematch` command with `python -m livematch.cli`."""

import sys

from livematch.cli import main

sys.exit(main())
