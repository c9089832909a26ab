"""The files of a run: `DIR/<item_id>/<k>.jpg` and `DIR/<video_id>.mp4`, whatever their format."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from livematch.errors import InputError
from livematch.types import Failure

_NOT_UTF8 = "the name is not UTF-8"


@dataclass(frozen=True)
class Source:
    """One image or video file. `source` is the item or video id, `name` the image's name, empty for a video."""

    kind: Literal["image", "video"]
    source: str
    name: str
    path: Path

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.name


def list_images(directory: Path) -> tuple[list[Source], list[Failure]]:
    """All files in the item folders of `directory`, numbers in numeric order; hidden files are left out.

    What the extension says does not matter: a file that is no image fails when it is decoded. A folder that is empty or
    cannot be read, a file whose name without extension occurs twice in its folder, and a name that is not UTF-8 are
    failures already here.

    Raises:
        InputError: `directory` is no folder.
    """
    sources: list[Source] = []
    failures: list[Failure] = []
    for folder in _visible(directory):
        try:
            if not folder.is_dir():
                continue
            paths = list(_visible(folder))
        except OSError as error:
            failures.append(Failure("image", folder.name, "", "list", f"{folder}: {error.strerror}"))
            continue
        if not _is_utf8(folder.name):
            failures.append(Failure("image", folder.name, "", "list", f"{folder}: {_NOT_UTF8}"))
            continue
        names: set[str] = set()
        for path in paths:
            if _is_folder(path):
                continue
            if reason := _unusable(path.stem, names):
                failures.append(Failure("image", folder.name, path.stem, "list", f"{path}: {reason}"))
            else:
                sources.append(Source("image", folder.name, path.stem, path))
            names.add(path.stem)
        if not names:
            failures.append(Failure("image", folder.name, "", "list", f"{folder}: the item has no images"))
    return sources, failures


def list_videos(directory: Path) -> tuple[list[Source], list[Failure]]:
    """All files in `directory`, like `list_images`."""
    sources: list[Source] = []
    failures: list[Failure] = []
    names: set[str] = set()
    for path in _visible(directory):
        if _is_folder(path):
            continue
        if reason := _unusable(path.stem, names):
            failures.append(Failure("video", path.stem, "", "list", f"{path}: {reason}"))
        else:
            sources.append(Source("video", path.stem, "", path))
        names.add(path.stem)
    return sources, failures


def take_shard(sources: list[Source], shard: tuple[int, int]) -> list[Source]:
    """Part `index` of `num_shards`, counted from 0: neighbouring sources, and all images of an item in one part.

    The parts one after another are all sources in order, so that their features files match as one file would.

    Raises:
        InputError: no 0 <= index < num_shards.
    """
    index, num_shards = shard
    if not 0 <= index < num_shards:
        raise InputError(f"shard must be I/N with 0 <= I < N, got {index}/{num_shards}")
    ids = list(dict.fromkeys(source.source for source in sources))
    taken = set(ids[len(ids) * index // num_shards : len(ids) * (index + 1) // num_shards])
    return [source for source in sources if source.source in taken]


def _unusable(name: str, others: set[str]) -> str | None:
    """Why a file of this name cannot be a source beside those of `others`."""
    if not _is_utf8(name):
        return _NOT_UTF8
    return "another file has the same name" if name in others else None


def _is_utf8(name: str) -> bool:
    """False if Python had to put surrogates for some of its bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_folder(path: Path) -> bool:
    """False also for what cannot be looked at, which fails when it is decoded."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _visible(directory: Path) -> Iterator[Path]:
    if not directory.is_dir():
        raise InputError(f"no such folder: {directory}")
    paths = (path for path in directory.iterdir() if not path.name.startswith("."))
    yield from sorted(paths, key=lambda path: (len(path.stem) if path.stem.isdecimal() else 0, path.name))
