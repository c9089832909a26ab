"""Write a file so that a reader sees the old content or the new one, never a part of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Context manager: yield a temporary path beside `path` to write to, which replaces `path` in the end.

    Missing parent folders are made. The new content is on the disk before it replaces the old one. If the body raises,
    `path` stays as it was and the temporary file is removed.

    >>> with replace_file("score.json") as temporary:
    ...     temporary.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
