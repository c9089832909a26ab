"""Exit codes and error handling that all commands share: `livematch` and every `python -m` of this project."""

import sys
from collections.abc import Callable

from livematch.errors import LivematchError

EXIT_ERROR = 2
"""The command failed; one line on stderr says why."""

EXIT_FAILURES = 3
"""Done, but some sources failed, or a check found something."""

EXIT_NOTHING = 4
"""Done, but nothing was found: no garment in any file, or no match."""

EXIT_INTERRUPTED = 130


def run_command(
    name: str, command: Callable[[], int], errors: tuple[type[Exception], ...] = (LivematchError, ValueError, OSError)
) -> int:
    """Run `command` and return its exit code; a user's mistake becomes one line on stderr.

    Args:
        name: printed before the message, such as "livematch" or "export.build".
        command: returns its exit code, and raises one of `errors` for what the user can fix, such as a wrong argument,
            a missing file or a full disk.
        errors: what becomes one line; any other exception is a defect of the program and keeps its traceback.
    """
    try:
        return command()
    except errors as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
