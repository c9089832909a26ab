"""`python -m livematch.cli` runs the command."""

import sys

from livematch.cli import main

sys.exit(main())
