"""List and check the image and video files: `DIR/<item_id>/<photo>` and `DIR/<video_id>.mp4`, in any format.

Images may also be listed in a CSV file, a manifest: item_id,path[,title,url].
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from livematch.errors import DecodeError, InputError
from livematch.types import Failure

_NOT_UTF8 = "the name is not UTF-8"
_MANIFEST = "item_id,path[,title,url]"


@dataclass(frozen=True)
class Source:
    """Names one image or video file.

    source: the item or video id.
    name: the path of the image below the item's folder, without extension, such as "front/1"; empty for a video.
    title, url: of the item, from the manifest; empty if it gives none.
    """

    kind: Literal["image", "video"]
    source: str
    name: str
    path: Path
    title: str = ""
    url: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.name

    def fail(self, stage: Literal["list", "decode", "recognize"], reason: str) -> Failure:
        return Failure(self.kind, self.source, self.name, stage, reason)


Listing = tuple[list[Source], list[Failure]]


def list_images(images: str | Path) -> Listing:
    """List the files in the item folders of `images` and in all folders below them, except hidden ones.

    Names are sorted; names that are numbers come last, in numeric order. File name extensions are ignored: a file that
    is not an image fails later, when it is decoded.

    If `images` is a file, it is read as a manifest: CSV in UTF-8 with a header that names at least the columns item_id
    and path. Paths are absolute or relative to the manifest's folder. The name of an image is its path as written,
    without extension and without a leading "<item_id>/", so that it is the same as in a folder of item folders. A title
    or url need not be repeated in each row of an item. A file that does not exist fails later, when it is decoded.

    Returns:
        The sources, and the failures that are known without decoding: an item folder that is empty or cannot be read,
        a file whose name differs from another one only in the extension, and a name that is not UTF-8.

    Raises:
        InputError: `images` does not exist or is a folder without folders, where the message says what it holds; or the
            manifest has a mistake, where the message gives the line.
    """
    directory = Path(images)
    if directory.is_file():
        return _read_manifest(directory), []
    if not directory.exists():
        raise InputError(f"no such folder or CSV file: {directory}")
    sources: list[Source] = []
    failures: list[Failure] = []
    for folder in _list_visible(directory):
        try:
            if not folder.is_dir():
                continue
            paths = list(_list_tree(folder))
            reason = None if paths else f"{folder}: the item has no images"
            if not _is_utf8(folder.name):
                reason = f"{folder}: {_NOT_UTF8}"
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
        if reason:
            failures.append(Failure("image", folder.name, "", "list", reason))
        else:
            found = (Source("image", folder.name, _image_name(path.relative_to(folder)), path) for path in paths)
            sources += _check_names(found, failures)
    if not sources and not failures:
        raise _wrong_layout(directory, "item folders", f"<item_id>/<photo>, or a CSV manifest {_MANIFEST}")
    return sources, failures


def list_videos(directory: str | Path) -> Listing:
    """List the files in `directory` itself; see `list_images`."""
    directory = Path(directory)
    failures: list[Failure] = []
    videos = (Source("video", path.stem, "", path) for path in _list_files(directory))
    sources = list(_check_names(videos, failures))
    if not sources and not failures:
        raise _wrong_layout(directory, "files", "<video_id>.mp4")
    return sources, failures


def take_shard(sources: list[Source], shard: tuple[int, int]) -> list[Source]:
    """Return shard `index` of `num_shards`, where `shard` is (index, num_shards) and the index starts at 0.

    A shard is a run of consecutive sources and never splits an item. All shards in order are all sources in order, so
    their features files match just as one file would.

    Raises:
        InputError: not 0 <= index < num_shards.
    """
    index, num_shards = shard
    if not 0 <= index < num_shards:
        raise InputError(f"shard must be I/N with 0 <= I < N, got {index}/{num_shards}")
    ids = list(dict.fromkeys(source.source for source in sources))
    taken = set(ids[len(ids) * index // num_shards : len(ids) * (index + 1) // num_shards])
    return [source for source in sources if source.source in taken]


def check_file(path: Path) -> None:
    """Raise DecodeError if the file is missing, empty or cannot be accessed."""
    try:
        if not path.is_file():
            raise DecodeError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise DecodeError(f"{path}: the file is empty")
    except OSError as error:  # for example, no permission to search the folder
        raise DecodeError(f"{path}: {error.strerror}") from error


def _read_manifest(manifest: Path) -> list[Source]:
    """Return the images in a manifest, the items in the order of their first rows; see `list_images`."""
    sources: list[Source] = []
    first_lines: dict[tuple[str, str], int] = {}
    values: dict[tuple[str, str], tuple[str, int]] = {}  # the title and url of each item, and the first lines with them
    for line, row in _read_rows(manifest):
        item_id, path = row["item_id"], Path(row["path"])
        name = _image_name(path).removeprefix(f"{item_id}/")
        source = Source("image", item_id, name, manifest.parent / path)
        if (first := first_lines.setdefault(source.key, line)) != line:
            raise InputError(f"{manifest}:{line}: item {item_id} already has an image {name}, in line {first}")
        sources.append(source)
        for column in ("title", "url"):
            if value := row.get(column):
                known, first = values.setdefault((item_id, column), (value, line))
                if value != known:
                    reason = f"item {item_id} has the {column} {value!r}, but {known!r} in line {first}"
                    raise InputError(f"{manifest}:{line}: {reason}")
    if not sources:
        raise InputError(f"{manifest}: no images below the header")
    numbers = {item_id: number for number, item_id in enumerate(dict.fromkeys(source.source for source in sources))}

    def value_of(item_id: str, column: str) -> str:
        return values.get((item_id, column), ("", 0))[0]

    return [
        replace(source, title=value_of(source.source, "title"), url=value_of(source.source, "url"))
        for source in sorted(sources, key=lambda source: numbers[source.source])
    ]


def _read_rows(manifest: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the values of each row, by column; raise InputError with the line of a mistake."""
    try:
        text = manifest.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{manifest}:{line}: not UTF-8; save the manifest as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        if missing := [column for column in ("item_id", "path") if column not in header]:
            found = ",".join(header) or "nothing"
            raise InputError(
                f"{manifest}:1: no column {', '.join(missing)}: expected a header {_MANIFEST}, got {found}"
            )
        if repeated := [column for column in ("item_id", "path", "title", "url") if header.count(column) > 1]:
            raise InputError(f"{manifest}:1: repeats the column {', '.join(repeated)}; keep one of each")
        for values in reader:
            if not any(map(str.strip, values)):
                continue  # spreadsheets write empty rows
            where = f"{manifest}:{reader.line_num}"
            if len(values) != len(header):
                reason = "a value with a comma must be in double quotes"
                raise InputError(f"{where}: {len(values)} values for {len(header)} columns; {reason}")
            row = dict(zip(header, map(str.strip, values), strict=True))
            for column in ("item_id", "path"):
                if not row[column]:
                    raise InputError(f"{where}: {column} is empty")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{manifest}:{reader.line_num}: not CSV: {error}") from error


def _check_names(sources: Iterable[Source], failures: list[Failure]) -> Iterator[Source]:
    """Yield the sources whose file names can be used, and add the others to `failures`."""
    seen: set[str] = set()
    for source in sources:
        name = source.name or source.source
        if not _is_utf8(name):
            failures.append(source.fail("list", f"{source.path}: {_NOT_UTF8}"))
        elif name in seen:
            failures.append(source.fail("list", f"{source.path}: another file has the same name"))
        else:
            yield source
        seen.add(name)


def _image_name(path: Path) -> str:
    return (path.parent / path.stem).as_posix()


def _is_utf8(name: str) -> bool:
    """Return False if Python had to decode some bytes of the name to surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _wrong_layout(directory: Path, missing: str, layout: str) -> InputError:
    """Return the error for a folder without item folders, or without video files, which says what it holds instead."""
    paths, files = _list_visible(directory), _list_files(directory)
    num_found, kind = (len(files), "file") if files else (len(paths), "folder")
    found = f"{num_found} {kind}{'' if num_found == 1 else 's'}, but no {missing}" if paths else "nothing"
    return InputError(f"{directory} holds {found}: expected {directory}/{layout}")


def _list_tree(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files in `folder` and in all folders below it, except behind a link to one of the folders `above`."""
    above |= {folder.resolve()}
    for path in _list_visible(folder):
        if not os.path.isdir(path):  # noqa: PTH112, Path.is_dir may raise
            yield path
        elif path.resolve() not in above:
            yield from _list_tree(path, above)


def _list_files(directory: Path) -> list[Path]:
    """List all but folders. A path that cannot be accessed counts as a file: decoding it will fail with the reason."""
    return [path for path in _list_visible(directory) if not os.path.isdir(path)]  # noqa: PTH112, Path.is_dir may raise


def _list_visible(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(f"no such folder: {directory}")
    paths = (path for path in directory.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: (len(path.stem) if path.stem.isdecimal() else 0, path.name))
