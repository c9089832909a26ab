"""Write a file so that readers see either the old content or the complete new content."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Context manager: yield a temporary path to write to; on success, that file replaces `path`.

    The temporary file lies in the same folder, which is created if it is missing. Its content is flushed to disk before
    it replaces `path`. If the body raises, `path` keeps its old content and the temporary file is removed. An existing
    file keeps its permissions; of a symbolic link, the target is replaced.

    >>> with replace_file("score.json") as temporary:
    ...     temporary.write_text("{}")

    Raises:
        OSError: `path` is a folder, a pipe or a device, or cannot be written.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file, so it cannot be replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.unfinished")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that killed processes left behind."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.*.unfinished"):
        pid = leftover.name.split(".")[-3]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            leftover.unlink(missing_ok=True)
