"""Features: one row per box, in memory and as a Parquet file that any tool can read or write.

| column | type | meaning |
| --- | --- | --- |
| source | string | item id (its folder's name) or video id (its file's name without extension) |
| name | string | image name without extension; empty for frames |
| frame_index | int32 | frame of the video; -1 for images |
| box | 4 x float32 | x0 y0 x1 y1 in pixels of the picture |
| score | float32 | of the detector |
| embedding | 2048 x float32 | unit length |

The file's metadata names the models that made the embeddings. `livematch.features.store` writes these files.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from livematch.errors import FeaturesError

COLUMNS = ("source", "name", "frame_index", "box", "score", "embedding")
IDENTITY_KEY = b"livematch:model_identity"

_DESCRIPTION = tuple(column for column in COLUMNS if column != "embedding")
_READ_ROWS = 256  # per step of Arrow; 2 MB of 2048-d embeddings
BOUNDED_READING = {"buffer_size": 1 << 20, "pre_buffer": False}
"""By page instead of by row group, because other tools write row groups of a million rows."""


def features_schema(embedding_size: int = 2048) -> pa.Schema:
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("frame_index", pa.int32(), nullable=False),
            pa.field("box", pa.list_(pa.float32(), 4), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), embedding_size), nullable=False),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """n boxes with what is known of each but its embedding; row order is file order, and matching breaks ties by it.

    sources, names: n strings; frame_indices: int32 [n]; boxes: float32 [n,4]; scores: float32 [n];
    model_identity: names the models that made the embeddings, None if unknown;
    origin: where the rows are from, for messages.

    Raises:
        FeaturesError: lengths or shapes disagree, a value is not finite, or a row occurs twice (the same picture, box
            and score).
    """

    sources: list[str]
    names: list[str]
    frame_indices: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    model_identity: str | None = None
    origin: str = "features"

    def __post_init__(self) -> None:
        num_rows = len(self.sources)
        for column, dtype, shape in (
            ("frame_indices", np.int32, (num_rows,)),
            ("boxes", np.float32, (num_rows, 4)),
            ("scores", np.float32, (num_rows,)),
        ):
            values = np.ascontiguousarray(getattr(self, column), dtype=dtype)
            if values.shape != shape or len(self.names) != num_rows:
                raise FeaturesError(
                    f"{self.origin}: {num_rows} sources, {len(self.names)} names, but {column} {list(values.shape)}"
                )
            object.__setattr__(self, column, values)
        for column, bad in (("box", ~np.isfinite(self.boxes).all(axis=1)), ("score", ~np.isfinite(self.scores))):
            if bad.any():
                row = self.describe_row(int(bad.argmax()))
                raise FeaturesError(f"{self.origin}: {column} of {row} has NaN or infinity")
        self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self.sources)

    def describe_row(self, row: int) -> str:
        picture = self.names[row] or f"frame {self.frame_indices[row]}"
        return f"row {row} ({self.sources[row]}, {picture})"

    def _check_lengths(self, block: "Block") -> None:
        """Raise FeaturesError if an embedding has no direction."""
        for bad, reason in ((~np.isfinite(block.lengths), "has NaN or infinity"), (block.lengths == 0, "is zero")):
            if bad.any():
                row = self.describe_row(block.start + int(bad.argmax()))
                raise FeaturesError(f"{self.origin}: embedding of {row} {reason}")

    def _refuse_duplicates(self) -> None:
        columns: list[npt.NDArray[np.signedinteger]] = [factorize(self.sources), factorize(self.names)]
        columns += [self.frame_indices, *self.boxes.view(np.int32).T, self.scores.view(np.int32)]
        order = np.lexsort(columns)  # stable, so equal rows stay in file order
        is_repeat = np.ones(max(len(self) - 1, 0), bool)
        for column in columns:
            ordered = column[order]
            is_repeat &= ordered[1:] == ordered[:-1]
        if is_repeat.any():
            repeats = np.flatnonzero(is_repeat)
            last = repeats[order[repeats + 1].argmin()]
            raise FeaturesError(f"{self.origin}: {self.describe_row(int(order[last + 1]))} repeats row {order[last]}")


@dataclass(frozen=True)
class Block:
    """Embeddings of consecutive rows, float32 [n,size], from row `start` on, and their lengths, float64 [n]."""

    start: int
    embeddings: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.float64]

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.lengths))


@dataclass(frozen=True, kw_only=True)
class Features(Rows):
    """Rows with their embeddings in memory.

    embeddings: float32 [n,size], of any length but zero (matching uses their direction).

    Raises:
        FeaturesError: also if an embedding is not finite, or zero.
    """

    embeddings: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        super().__post_init__()
        embeddings = np.ascontiguousarray(self.embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(self):
            raise FeaturesError(f"{self.origin}: {len(self)} sources, but embeddings {list(embeddings.shape)}")
        object.__setattr__(self, "embeddings", embeddings)
        self._check_lengths(Block(0, self.embeddings, self.lengths))

    @property
    def embedding_size(self) -> int:
        return int(self.embeddings.shape[1])

    @cached_property
    def lengths(self) -> npt.NDArray[np.float64]:
        """Euclidean length of each embedding, float64 [n]."""
        return _lengths(self.embeddings)

    def blocks(self, num_rows: int, num_buffers: int = 1) -> Iterator[Block]:
        """All embeddings, `num_rows` rows at a time; views of `embeddings`, for which no buffer is needed."""
        for start in range(0, len(self), num_rows):
            rows = slice(start, start + num_rows)
            yield Block(start, self.embeddings[rows], self.lengths[rows])


@dataclass(frozen=True, kw_only=True)
class StoredFeatures(Rows):
    """Rows in memory, about 50 bytes each, whose embeddings stay in their features files; see `open_features`."""

    paths: Sequence[Path]
    embedding_size: int

    def blocks(self, num_rows: int, num_buffers: int = 1) -> Iterator[Block]:
        """All embeddings, read `num_rows` rows at a time into buffers that take turns.

        With one buffer a block is valid until the next one is asked for, with two until the next but one.

        Raises:
            FeaturesError: a file cannot be read any more, or an embedding is not finite, zero or of another size.
        """
        for block in self._read(num_rows, num_buffers):
            self._check_lengths(block)
            yield block

    def _read(self, num_rows: int, num_buffers: int) -> Iterator[Block]:
        buffers = np.empty((num_buffers, min(num_rows, len(self)), self.embedding_size), np.float32)
        turns = cycle(buffers)
        buffer = next(turns)
        start = num_filled = 0
        for path in self.paths:
            for batch in _batches(path, ("embedding",)):
                embeddings = _vectors(batch["embedding"], self.embedding_size, path)
                position = 0
                while position < len(embeddings):
                    part = embeddings[position : position + len(buffer) - num_filled]
                    buffer[num_filled : num_filled + len(part)] = part
                    num_filled += len(part)
                    position += len(part)
                    if num_filled == len(buffer):
                        yield Block(start, buffer, _lengths(buffer))
                        start, num_filled = start + num_filled, 0
                        buffer = next(turns)
        if num_filled:
            rest = buffer[:num_filled]
            yield Block(start, rest, _lengths(rest))


AnyFeatures = Features | StoredFeatures


def open_features(paths: Sequence[Path]) -> StoredFeatures:
    """Read all of features files but the embeddings; several files, as of `--shard`, count as one.

    Files may be written by another tool: lists may be of fixed or variable length, strings plain, large or
    dictionary-encoded, or numbers instead, numbers of any width, row groups of any size; other columns are ignored. A
    null in `name` is read as empty.

    Raises:
        FeaturesError: no such file, not Parquet, a column is missing or of another type, files of different models, or
            `Rows` refuses what is in them.
    """
    files = [_open_file(Path(path)) for path in paths]
    for file in files[1:]:
        check_comparable(files[0], file)
    if len(files) == 1:
        return files[0]
    return StoredFeatures(
        sources=[source for file in files for source in file.sources],
        names=[name for file in files for name in file.names],
        frame_indices=np.concatenate([file.frame_indices for file in files]),
        boxes=np.concatenate([file.boxes for file in files]),
        scores=np.concatenate([file.scores for file in files]),
        model_identity=next((file.model_identity for file in files if file.model_identity), None),
        origin=", ".join(file.origin for file in files),
        paths=[path for file in files for path in file.paths],
        embedding_size=max(file.embedding_size for file in files),
    )


def read_features(path: Path) -> Features:
    """Read a features file with its embeddings; see `open_features`.

    Raises:
        FeaturesError: as `open_features`, or an embedding is not finite, zero or of another size than the first.
    """
    stored = open_features([path])
    blocks = [block.embeddings for block in stored.blocks(max(len(stored), 1))]
    return Features(
        **{field: getattr(stored, field) for field in Rows.__dataclass_fields__},
        embeddings=blocks[0] if blocks else np.empty((0, stored.embedding_size), np.float32),
    )


def _open_file(path: Path) -> StoredFeatures:
    if not path.is_file():
        raise FeaturesError(f"{path}: no such features file")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise FeaturesError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    missing = [column for column in COLUMNS if column not in schema.names]
    if missing:
        raise FeaturesError(f"{path}: has no column {', '.join(missing)}; found {', '.join(schema.names)}")
    sources: list[str] = []
    names: list[str] = []
    numbers: tuple[list[npt.NDArray[Any]], ...] = ([], [], [])
    for batch in _batches(path, _DESCRIPTION):
        sources += map(sys.intern, _strings(batch["source"], path))
        names += map(sys.intern, _strings(batch["name"], path, null=""))
        numbers[0].append(_numbers(batch["frame_index"], pa.int32(), path))
        numbers[1].append(_vectors(batch["box"], 4, path))
        numbers[2].append(_numbers(batch["score"], pa.float32(), path))
    return StoredFeatures(
        sources=sources,
        names=names,
        frame_indices=np.concatenate([np.empty(0, np.int32), *numbers[0]]),
        boxes=np.concatenate([np.empty((0, 4), np.float32), *numbers[1]]),
        scores=np.concatenate([np.empty(0, np.float32), *numbers[2]]),
        model_identity=read_identity(schema),
        origin=str(path),
        paths=[path],
        embedding_size=_embedding_size(schema, path),
    )


def _embedding_size(schema: pa.Schema, path: Path) -> int:
    embedding_type = schema.field("embedding").type
    if pa.types.is_fixed_size_list(embedding_type):
        return int(embedding_type.list_size)
    first = next(_batches(path, ("embedding",), num_rows=1), None)
    return 0 if first is None else int(_vectors(first["embedding"], None, path).shape[1])


def _batches(path: Path, columns: Sequence[str], num_rows: int = _READ_ROWS) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path, **BOUNDED_READING) as file:
            for batch in file.iter_batches(num_rows, columns=list(columns)):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise FeaturesError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error


def _lengths(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64, casting="unsafe")
    return np.sqrt(squares)


def read_identity(schema: pa.Schema) -> str | None:
    identity: bytes | None = (schema.metadata or {}).get(IDENTITY_KEY)
    return None if identity is None else identity.decode()


def factorize(ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Each row's id as a number, 0 for the id that appears first."""
    number_of = {unique: number for number, unique in enumerate(dict.fromkeys(ids))}
    return np.array([number_of[row_id] for row_id in ids], np.intp)


@dataclass(frozen=True)
class Origin:
    """Where embeddings are from, by which models, and their size."""

    origin: str
    model_identity: str | None
    embedding_size: int


def check_comparable(first: AnyFeatures | Origin, second: AnyFeatures | Origin) -> None:
    """Raise FeaturesError if two sets of features are of different models or dimension; both are named."""
    names = [f"{f.origin} by {f.model_identity or 'an unnamed model'} ({f.embedding_size}-d)" for f in (first, second)]
    identities = {first.model_identity, second.model_identity} - {None}
    if len(identities) > 1 or first.embedding_size != second.embedding_size:
        raise FeaturesError(f"features of different models cannot be compared: {names[0]}, {names[1]}")


def _strings(column: pa.ChunkedArray, path: Path, null: str | None = None) -> list[str]:
    """A column of what can be written as strings, with `null` for nulls; without it there must be none."""
    values: list[Any] = _cast(column, pa.string(), path, null).to_pylist()
    return values


def _numbers(column: pa.ChunkedArray, dtype: pa.DataType, path: Path) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = _cast(column, dtype, path).to_numpy()
    return values


def _cast(column: pa.ChunkedArray, dtype: pa.DataType, path: Path, null: str | None = None) -> pa.ChunkedArray:
    if column.null_count and null is None:
        raise FeaturesError(f"{path}: a column of type {column.type} has {column.null_count} nulls")
    try:
        cast = column.cast(dtype)
        return cast if null is None else cast.fill_null(null)
    except pa.ArrowException as error:
        raise FeaturesError(f"{path}: found a column of type {column.type} instead of {dtype}") from error


def _vectors(column: pa.ChunkedArray, size: int | None, path: Path) -> npt.NDArray[np.float32]:
    """A list column as float32 [n,size]; without `size`, that of the first row counts."""
    chunks = [_flat_and_lengths(chunk, path) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty((0, size or int(getattr(column.type, "list_size", 0))), np.float32)
    size = size or int(chunks[0][1][0])
    if size == 0:
        raise FeaturesError(f"{path}: vectors of length 0")
    for _, lengths in chunks:
        if (lengths != size).any():
            raise FeaturesError(f"{path}: vectors of length {sorted(set(lengths.tolist()))} where {size} is expected")
    vectors = [values.reshape(-1, size) for values, _ in chunks]
    return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def _flat_and_lengths(chunk: pa.Array, path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The values of all lists in a row, and the length of each list."""
    is_fixed = pa.types.is_fixed_size_list(chunk.type)
    if not (is_fixed or pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)):
        raise FeaturesError(f"{path}: found a column of type {chunk.type} instead of lists of float32")
    values = chunk.flatten()
    if chunk.null_count or values.null_count:
        raise FeaturesError(f"{path}: a column of type {chunk.type} has nulls")
    try:
        numbers: npt.NDArray[np.float32] = values.cast(pa.float32()).to_numpy()
    except pa.ArrowException as error:
        raise FeaturesError(f"{path}: found a column of type {chunk.type} instead of lists of float32") from error
    if is_fixed:
        return numbers, np.full(len(chunk), chunk.type.list_size, np.int64)
    return numbers, np.diff(chunk.offsets.to_numpy()).astype(np.int64, copy=False)
