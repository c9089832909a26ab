"""Read the columns of features files, including files written by other tools, as lists and numpy arrays."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from livematch.errors import FeaturesError, describe_error

COLUMNS = ("source", "name", "frame_index", "box", "score", "label", "embedding")
ITEM_COLUMNS = ("title", "url")
"""Columns that are the same in all rows of an item."""
OPTIONAL_COLUMNS = ("label", *ITEM_COLUMNS)
"""Columns that a file may lack; they are then read as ""."""
IDENTITY_KEY = b"livematch:model_identity"
SELECTION_KEY = b"livematch:selection"
BOUNDED_READING = {"buffer_size": 1 << 20, "pre_buffer": False}
"""Options of pq.ParquetFile: read page by page, because other tools write row groups of a million rows."""

_READ_ROWS = 256  # per step of Arrow; 2 MB of 2048-d embeddings


def features_schema(embedding_size: int) -> pa.Schema:
    """Return the schema of the files that livematch writes; `livematch.features.table` explains the columns."""
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("frame_index", pa.int32(), nullable=False),
            pa.field("box", pa.list_(pa.float32(), 4), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), embedding_size), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
        ]
    )


def read_identity(schema: pa.Schema) -> str | None:
    """Return the name of the models that made a file's embeddings, None if the file does not say."""
    identity: bytes | None = (schema.metadata or {}).get(IDENTITY_KEY)
    return None if identity is None else identity.decode()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager: turn an error of Arrow into a FeaturesError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise FeaturesError(f"{path}: not a readable Parquet file: {describe_error(error)}") from error


@dataclass(frozen=True)
class EmbeddingFiles:
    """Reads embeddings of dimension `size` from one or more features files, whose rows count as one sequence."""

    paths: Sequence[Path]
    size: int

    def chunks(self, num_rows: int, num_buffers: int = 1) -> Iterator[npt.NDArray[np.float32]]:
        """Yield all embeddings in order, float32 [num_rows,size] each, the last one shorter.

        The chunks are read into `num_buffers` arrays, which are reused in rotation: with one buffer, a chunk is
        overwritten when the next one is requested; with two, when the one after the next is requested.

        Raises:
            FeaturesError: a file has become unreadable, or an embedding has another size.
        """
        buffers = cycle([np.empty((num_rows, self.size), np.float32) for _ in range(num_buffers)])
        buffer = next(buffers)
        num_filled = 0
        for path in self.paths:
            for batch in _batches(path, ["embedding"]):
                rest = _vectors(batch["embedding"], self.size, path)
                while len(rest):
                    part, rest = np.split(rest, [num_rows - num_filled])
                    buffer[num_filled : num_filled + len(part)] = part
                    num_filled += len(part)
                    if num_filled == num_rows:
                        yield buffer
                        buffer, num_filled = next(buffers), 0
        if num_filled:
            yield buffer[:num_filled]

    def read(self, num_rows: int) -> npt.NDArray[np.float32]:
        """Return all embeddings, float32 [num_rows,size]; `num_rows` is the number of rows in the files."""
        return next(self.chunks(num_rows), np.empty((0, self.size), np.float32))


def open_file(path: Path) -> dict[str, Any]:
    """Return the keyword arguments of `Features` for a file, with all columns in memory except the embeddings.

    Raises:
        FeaturesError: the file does not exist or is not Parquet; a column is missing or has an unsuitable type.
    """
    if not path.is_file():
        raise FeaturesError(f"{path}: no such features file")
    with reading(path):
        schema = pq.read_schema(path)
    missing = [column for column in COLUMNS if column not in (*OPTIONAL_COLUMNS, *schema.names)]
    if missing:
        raise FeaturesError(f"{path}: has no column {', '.join(missing)}; found {', '.join(schema.names)}")
    sources: list[str] = []
    names: list[str] = []
    optional: dict[str, list[str]] = {column: [] for column in OPTIONAL_COLUMNS}
    frame_indices, boxes, scores = [np.empty(0, np.int32)], [np.empty((0, 4), np.float32)], [np.empty(0, np.float32)]
    found = [column for column in (*COLUMNS, *ITEM_COLUMNS) if column in schema.names]
    for batch in _batches(path, [column for column in found if column != "embedding"]):
        sources += map(sys.intern, _cast(batch["source"], pa.string(), path).to_pylist())
        names += map(sys.intern, _cast(batch["name"], pa.string(), path, null="").to_pylist())
        for column, texts in optional.items():
            values = batch[column] if column in found else pa.nulls(len(batch))
            texts += map(sys.intern, _cast(values, pa.string(), path, null="").to_pylist())
        frame_indices.append(_cast(batch["frame_index"], pa.int32(), path).to_numpy())
        boxes.append(_vectors(batch["box"], 4, path))
        scores.append(_cast(batch["score"], pa.float32(), path).to_numpy())
    return {
        "sources": sources,
        "names": names,
        "labels": optional["label"],
        "titles": optional["title"],
        "urls": optional["url"],
        "frame_indices": np.concatenate(frame_indices),
        "boxes": np.concatenate(boxes),
        "scores": np.concatenate(scores),
        "embeddings": EmbeddingFiles([path], _embedding_size(schema, path)),
        "model_identity": read_identity(schema),
        "selection": (schema.metadata or {}).get(SELECTION_KEY, b"").decode(),
        "origin": str(path),
    }


def _embedding_size(schema: pa.Schema, path: Path) -> int:
    """Return the dimension that the schema gives, else that of the first embedding, 0 in a file without rows."""
    embedding_type = schema.field("embedding").type
    if pa.types.is_fixed_size_list(embedding_type):
        return int(embedding_type.list_size)
    first = next(_batches(path, ["embedding"], num_rows=1), None)
    return 0 if first is None else int(_vectors(first["embedding"], None, path).shape[1])


def _batches(path: Path, columns: Sequence[str], num_rows: int = _READ_ROWS) -> Iterator[pa.RecordBatch]:
    with reading(path), pq.ParquetFile(path, **BOUNDED_READING) as file:
        yield from file.iter_batches(num_rows, columns=list(columns))


def _cast(column: pa.Array, dtype: pa.DataType, path: Path, null: str | None = None) -> pa.Array:
    """Return the column as `dtype` with nulls replaced by `null`; if that is None, a null is an error."""
    if column.null_count and null is None:
        raise FeaturesError(f"{path}: a column of type {column.type} has {column.null_count} nulls")
    try:
        cast = column.cast(dtype)
        return cast if null is None else cast.fill_null(null)
    except pa.ArrowException as error:
        raise FeaturesError(f"{path}: found a column of type {column.type} instead of {dtype}") from error


def _vectors(column: pa.Array, size: int | None, path: Path) -> npt.NDArray[np.float32]:
    """Return a column of lists as float32 [n,size]; with `size` None, the lists may have any one length."""
    is_fixed = pa.types.is_fixed_size_list(column.type)
    if not (is_fixed or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise FeaturesError(f"{path}: found a column of type {column.type} instead of lists of float32")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise FeaturesError(f"{path}: a column of type {column.type} has nulls")
    try:
        numbers: npt.NDArray[np.float32] = values.cast(pa.float32()).to_numpy()
    except pa.ArrowException as error:
        raise FeaturesError(f"{path}: found a column of type {column.type} instead of lists of float32") from error
    lengths = np.unique([column.type.list_size] if is_fixed else np.diff(column.offsets.to_numpy()))
    size = int(lengths[0]) if size is None else size
    if size == 0:
        raise FeaturesError(f"{path}: vectors of length 0")
    if lengths.tolist() != [size]:
        raise FeaturesError(f"{path}: vectors of length {lengths.tolist()} where {size} is expected")
    return numbers.reshape(-1, size)
