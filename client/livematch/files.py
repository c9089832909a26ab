"""Write a file so that readers see either the old content or the complete new content."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Context manager: yield a temporary path to write to; on success, that file replaces `path`.

    The temporary file lies in the same folder, which is created if it is missing. Its content is flushed to disk before
    it replaces `path`. If the body raises, `path` keeps its old content and the temporary file is removed.

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
