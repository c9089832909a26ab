"""`python -m livematch` is the command `livematch`."""

import sys

from livematch.cli import main

if __name__ == "__main__":
    sys.exit(main())
