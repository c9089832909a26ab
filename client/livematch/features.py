"""Features: one row per box, in memory and as a Parquet file that any tool can read or write.

| column | type | meaning |
| --- | --- | --- |
| source | string | item id (its folder's name) or video id (its file's name without extension) |
| name | string | image name without extension; empty for frames |
| frame_index | int32 | frame of the video; -1 for images |
| box | 4 x float32 | x0 y0 x1 y1 in pixels of the picture |
| score | float32 | of the detector |
| embedding | 2048 x float32 | unit length |

The file's metadata names the models that made the embeddings. `livematch.store` writes these files.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from livematch.errors import FeaturesError

COLUMNS = ("source", "name", "frame_index", "box", "score", "embedding")
IDENTITY_KEY = b"livematch:model_identity"


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


@dataclass(frozen=True)
class Features:
    """n boxes with what is known of each; row order is file order, and matching breaks ties by it.

    sources, names: n strings; frame_indices: int32 [n]; boxes: float32 [n,4]; scores: float32 [n];
    embeddings: float32 [n,size], of any length but zero (matching uses their direction);
    model_identity: names the models that made the embeddings, None if unknown;
    origin: where the rows are from, for messages.

    Raises:
        FeaturesError: lengths or shapes disagree, a value is not finite, an embedding is zero, or a row occurs twice
            (the same picture, box and score).
    """

    sources: list[str]
    names: list[str]
    frame_indices: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    model_identity: str | None = None
    origin: str = "features"

    def __post_init__(self) -> None:
        num_rows = len(self.sources)
        for column, dtype, shape in (
            ("frame_indices", np.int32, (num_rows,)),
            ("boxes", np.float32, (num_rows, 4)),
            ("scores", np.float32, (num_rows,)),
            ("embeddings", np.float32, (num_rows, *np.shape(self.embeddings)[1:2])),
        ):
            values = np.ascontiguousarray(getattr(self, column), dtype=dtype)
            if values.shape != shape or len(self.names) != num_rows:
                raise FeaturesError(
                    f"{self.origin}: {num_rows} sources, {len(self.names)} names, but {column} {list(values.shape)}"
                )
            object.__setattr__(self, column, values)
        self._refuse_unusable_values()
        self._refuse_duplicates()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def embedding_size(self) -> int:
        return int(self.embeddings.shape[1])

    @cached_property
    def lengths(self) -> npt.NDArray[np.float64]:
        """Euclidean length of each embedding, float64 [n]."""
        squares: npt.NDArray[np.float64] = np.einsum(
            "ij,ij->i", self.embeddings, self.embeddings, dtype=np.float64, casting="unsafe"
        )
        return np.sqrt(squares)

    def describe_row(self, row: int) -> str:
        picture = self.names[row] or f"frame {self.frame_indices[row]}"
        return f"row {row} ({self.sources[row]}, {picture})"

    def _refuse_unusable_values(self) -> None:
        for column, bad in (
            ("box", ~np.isfinite(self.boxes).all(axis=1)),
            ("score", ~np.isfinite(self.scores)),
            ("embedding", ~np.isfinite(self.lengths)),
        ):
            if bad.any():
                row = self.describe_row(int(bad.argmax()))
                raise FeaturesError(f"{self.origin}: {column} of {row} has NaN or infinity")
        if len(self) and not self.lengths.all():
            row = self.describe_row(int(self.lengths.argmin()))
            raise FeaturesError(f"{self.origin}: embedding of {row} is zero")

    def _refuse_duplicates(self) -> None:
        first_row: dict[tuple[object, ...], int] = {}
        keys = zip(
            self.sources,
            self.names,
            self.frame_indices.tolist(),
            map(bytes, self.boxes),
            self.scores.tolist(),
            strict=True,
        )
        for row, key in enumerate(keys):
            if first_row.setdefault(key, row) != row:
                raise FeaturesError(f"{self.origin}: {self.describe_row(row)} repeats row {first_row[key]}")


def read_features(path: Path) -> Features:
    """Read a features file, also one written by another tool.

    Lists may be of fixed or variable length, strings plain, large or dictionary-encoded, numbers of any width, row
    groups of any size; other columns are ignored. A null in `name` is read as empty.

    Raises:
        FeaturesError: no such file, not Parquet, a column is missing or of another type, or `Features` refuses it.
    """
    path = Path(path)
    if not path.is_file():
        raise FeaturesError(f"{path}: no such features file")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = [column for column in COLUMNS if column not in schema.names]
            if missing:
                raise FeaturesError(f"{path}: has no column {', '.join(missing)}; found {', '.join(schema.names)}")
            table = file.read(columns=list(COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise FeaturesError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    return Features(
        sources=_strings(table["source"], path),
        names=_strings(table["name"].fill_null(""), path),
        frame_indices=_numbers(table["frame_index"], pa.int32(), path),
        boxes=_vectors(table["box"], 4, path),
        scores=_numbers(table["score"], pa.float32(), path),
        embeddings=_vectors(table["embedding"], None, path),
        model_identity=read_identity(schema),
        origin=str(path),
    )


def read_identity(schema: pa.Schema) -> str | None:
    identity: bytes | None = (schema.metadata or {}).get(IDENTITY_KEY)
    return None if identity is None else identity.decode()


def check_comparable(first: Features, second: Features) -> None:
    """Raise FeaturesError if two sets of features are of different models or dimension; both are named."""
    names = [f"{f.origin} by {f.model_identity or 'an unnamed model'} ({f.embedding_size}-d)" for f in (first, second)]
    identities = {first.model_identity, second.model_identity} - {None}
    if len(identities) > 1 or first.embedding_size != second.embedding_size:
        raise FeaturesError(f"features of different models cannot be compared: {names[0]}, {names[1]}")


def _strings(column: pa.ChunkedArray, path: Path) -> list[str]:
    values: list[Any] = _cast(column, pa.string(), path).to_pylist()
    return values


def _numbers(column: pa.ChunkedArray, dtype: pa.DataType, path: Path) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = _cast(column, dtype, path).to_numpy()
    return values


def _cast(column: pa.ChunkedArray, dtype: pa.DataType, path: Path) -> pa.ChunkedArray:
    if column.null_count:
        raise FeaturesError(f"{path}: a column of type {column.type} has {column.null_count} nulls")
    try:
        return column.cast(dtype)
    except pa.ArrowException as error:
        raise FeaturesError(f"{path}: found a column of type {column.type} instead of {dtype}") from error


def _vectors(column: pa.ChunkedArray, size: int | None, path: Path) -> npt.NDArray[np.float32]:
    """A list column as float32 [n,size]; without `size`, that of the first row counts."""
    chunks = [_flat_and_lengths(chunk, path) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty((0, size or int(getattr(column.type, "list_size", 0))), np.float32)
    size = size or int(chunks[0][1][0])
    vectors = np.empty((len(column), size), np.float32)
    row = 0
    for values, lengths in chunks:
        if (lengths != size).any():
            raise FeaturesError(f"{path}: vectors of length {sorted(set(lengths.tolist()))} where {size} is expected")
        vectors[row : row + len(lengths)] = values.reshape(-1, size)
        row += len(lengths)
    return vectors


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
