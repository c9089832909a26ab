"""Compare the committed model_repository/ with the generated configs, or regenerate them.

python -m export.triton            # list the stale files; exit code 3 if there are any
python -m export.triton --write    # regenerate them
"""

import argparse
import sys
from collections.abc import Sequence

from export.config import production
from export.triton.model_config import REPOSITORY, stale_files, write_files
from livematch.cli.commands import EXIT_FAILURES, run_command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.triton", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    arguments = parser.parse_args(argv)
    return run_command("export.triton", lambda: _run(must_write=arguments.write))


def _run(*, must_write: bool) -> int:
    if must_write:
        write_files(production(), REPOSITORY)
        return 0
    stale = stale_files(production(), REPOSITORY)
    for path in stale:
        print(f"stale: {REPOSITORY.name}/{path}", file=sys.stderr)
    return EXIT_FAILURES if stale else 0


if __name__ == "__main__":
    sys.exit(main())
