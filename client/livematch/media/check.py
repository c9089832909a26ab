"""Check that a media file can be opened at all."""

from pathlib import Path

from livematch.errors import DecodeError


def check_file(path: Path) -> None:
    """Raise DecodeError if the file is missing, empty or cannot be accessed."""
    try:
        if not path.is_file():
            raise DecodeError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DecodeError(f"{path}: the file is empty")
    except OSError as error:  # for example, no permission to search the folder
        raise DecodeError(f"{path}: {error.strerror}") from error
