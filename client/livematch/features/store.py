"""Write a features file so that a run killed at any moment can be resumed.

During the run, each finished source file (an image or a video) is appended to `<FEATURES>.partial` as one Arrow record
batch that carries the source's key, even if it holds no boxes. A batch that was cut off when the run was killed is
dropped when the next run starts. At the end, the batches become a plain Parquet file, which replaces the old one in
one step.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from livematch.errors import FeaturesError
from livematch.features.parquet import (
    BOUNDED_READING,
    COLUMNS,
    IDENTITY_KEY,
    ITEM_COLUMNS,
    SELECTION_KEY,
    features_schema,
    read_identity,
    reading,
)
from livematch.files import replace_file
from livematch.types import Recognition

WITHOUT_BOXES_KEY = b"livematch:without_boxes"
ROW_GROUP_ROWS = 4096

Key = tuple[str, str]
"""(source, name) of one source file; the name of a video is empty."""

Item = tuple[str, str]
"""(title, url) of an item; each may be empty."""

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of Arrow's IPC stream format


class FeaturesStore:
    """A features file that grows by one source file at a time.

    >>> identity, size = client.model_identity, client.embedding_size
    >>> with FeaturesStore(path, model_identity=identity, embedding_size=size, selection="images") as store:
    ...     store.append(("000013", "0"), [(-1, recognition)])
    ...     store.finish()

    Without `finish`, the appended sources stay in the partial file, where the next store on `path` finds them.

    Args:
        path: the features file. If it exists, sources are added to it.
        model_identity: name of the models that the server has now; None if unknown.
        embedding_size: length of the embeddings.
        selection: description of the frames that are stored of each source file, such as "frames 80:400:20".

    Raises:
        FeaturesError: the existing file is not a features file, was made by other models or holds another selection, or
            another run is writing it.
    """

    def __init__(self, path: str | Path, *, model_identity: str | None, embedding_size: int, selection: str) -> None:
        self.path = Path(path)
        self.partial_path = self.path.with_name(self.path.name + ".partial")
        self._model_identity = model_identity
        self._selection = selection
        metadata = {SELECTION_KEY: selection.encode()}
        if model_identity is not None:
            metadata[IDENTITY_KEY] = model_identity.encode()
        self._final_schema = features_schema(embedding_size).with_metadata(metadata)
        self._schema = pa.schema([self._final_schema.field(column) for column in COLUMNS], metadata)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.partial_path.open("ab")
        try:
            self._lock()
            # Read only after locking: until then, another run may still be finishing the file.
            self._items: dict[str, Item] = {}
            try:
                self._num_rows_of = self._read_final()
            except FeaturesError:
                if not self._file.tell():  # the partial file did not exist before
                    self.partial_path.unlink()
                raise
            self._final_keys = set(self._num_rows_of)
            self._recover_partial()
        except BaseException:
            self._file.close()
            raise
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._has_ended = False

    @property
    def finished(self) -> set[Key]:
        """Keys of all sources stored so far."""
        return set(self._num_rows_of)

    @property
    def num_rows(self) -> int:
        """Number of boxes stored so far."""
        return sum(self._num_rows_of.values())

    def append(self, key: Key, recognitions: Sequence[tuple[int, Recognition]]) -> None:
        """Store one source file: (frame_index, recognition) of each of its frames, frame_index -1 for an image."""
        batch = _to_batch(key, recognitions, self._schema)
        self._writer.write_batch(batch, custom_metadata={"key": json.dumps(key)})
        self._file.flush()
        self._num_rows_of[key] = batch.num_rows

    def finish(self, items: Mapping[str, Item] | None = None) -> None:
        """Write all stored sources to the Parquet file, and remove the partial file.

        Args:
            items: title and url by source, also of sources stored by earlier runs; the other items keep theirs.
        """
        self._end_stream()
        has_changed = any(self._items.get(source, item) != item for source, item in (items or {}).items())
        if has_changed or self._num_rows_of.keys() != self._final_keys or not self.path.exists():
            without_boxes = sorted(key for key, num_rows in self._num_rows_of.items() if num_rows == 0)
            metadata = {WITHOUT_BOXES_KEY: json.dumps(without_boxes).encode()}
            schema = self._final_schema.with_metadata(self._schema.metadata | metadata)
            self._items.update(items or {})
            with (
                replace_file(self.path) as temporary,
                pq.ParquetWriter(
                    temporary, schema, use_dictionary=["source", "name", "label", *ITEM_COLUMNS]
                ) as writer,
            ):
                for table in self._row_groups():
                    writer.write_table(_with_items(table, self._items, schema))
        self.partial_path.unlink()
        self._file.close()

    def close(self) -> None:
        """Stop writing; a second call does nothing."""
        self._end_stream()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read_final(self) -> dict[Key, int]:
        """Return the number of boxes of each source in the finished file, and register its titles and urls."""
        if not self.path.exists():
            return {}
        with reading(self.path), pq.ParquetFile(self.path) as file:
            schema = file.schema_arrow
            self._check_schema(schema, self._final_schema, self.path)
            keys = file.read(columns=["source", "name", *ITEM_COLUMNS]).to_pydict()
        self._items.update(
            zip(keys["source"], zip(*(keys[column] for column in ITEM_COLUMNS), strict=True), strict=True)
        )
        without_boxes = dict.fromkeys(map(tuple, json.loads(schema.metadata[WITHOUT_BOXES_KEY])), 0)
        return without_boxes | Counter(zip(keys["source"], keys["name"], strict=True))

    def _end_stream(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._writer.close()
            self._file.flush()

    def _lock(self) -> None:
        """Lock the partial file for this process until the file is closed or the process ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FeaturesError(f"{self.path}: another run is writing it; give each its own output file") from error
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FeaturesError(f"{self.path}: another run has just finished it; run the same command again")

    def _recover_partial(self) -> None:
        """Register the sources in the partial file, and cut off an incomplete batch at its end."""
        end = 0
        for key, batch, offset in self._partial_batches():
            self._num_rows_of.setdefault(key, batch.num_rows)
            end = offset
        self._file.truncate(end)
        if end:
            self._file.write(_END_OF_STREAM)

    def _partial_batches(self) -> Iterator[tuple[Key, pa.RecordBatch, int]]:
        """Yield each complete batch with its key and the offset of its end; each run has appended one stream."""
        with pa.OSFile(str(self.partial_path)) as file:
            while file.tell() < file.size():
                try:
                    reader = pa.ipc.open_stream(file)
                    self._check_schema(reader.schema, self._schema, self.partial_path)
                    for batch, metadata in reader.iter_batches_with_custom_metadata():
                        source, name = json.loads(metadata["key"])
                        yield (source, name), batch, file.tell()
                except (pa.ArrowException, OSError):
                    return  # a run was killed while it wrote the stream's header or a batch

    def _check_schema(self, schema: pa.Schema, expected: pa.Schema, path: Path) -> None:
        selection = (schema.metadata or {}).get(SELECTION_KEY, b"something else").decode()
        if selection != self._selection:
            raise FeaturesError(f"{path} holds {selection}, not {self._selection}: give another output file")
        identity = read_identity(schema)
        if identity != self._model_identity:
            raise FeaturesError(
                f"{path} was made by {identity or 'unnamed models'}, the server has "
                f"{self._model_identity or 'unnamed models'}: give another output file"
            )
        if not schema.equals(expected):
            columns = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise FeaturesError(
                f"{path} has other columns than a features file of this version and server: {columns}; "
                "give another output file"
            )

    def _row_groups(self) -> Iterator[pa.Table]:
        waiting: list[pa.RecordBatch] = []
        num_rows = 0
        for batch in self._all_batches():
            waiting.append(batch)
            num_rows += batch.num_rows
            if num_rows >= ROW_GROUP_ROWS:
                yield pa.Table.from_batches(waiting)
                waiting, num_rows = [], 0
        if waiting:
            yield pa.Table.from_batches(waiting)

    def _all_batches(self) -> Iterator[pa.RecordBatch]:
        if self.path.exists():
            with pq.ParquetFile(self.path, **BOUNDED_READING) as file:
                for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=list(COLUMNS)):
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=self._schema)
        for key, batch, _ in self._partial_batches():
            # A run killed before it removed the partial file leaves both files.
            if batch.num_rows and key not in self._final_keys:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=self._schema)


def _with_items(table: pa.Table, items: Mapping[str, Item], schema: pa.Schema) -> pa.Table:
    """Append each row's title and url by its source, both "" if it is not in `items`."""
    rows = [items.get(source, ("", "")) for source in table["source"].to_pylist()]
    columns = [pa.array([row[index] for row in rows], pa.string()) for index in range(len(ITEM_COLUMNS))]
    return pa.Table.from_arrays([*table.columns, *columns], schema=schema)


def _to_batch(key: Key, recognitions: Sequence[tuple[int, Recognition]], schema: pa.Schema) -> pa.RecordBatch:
    source, name = key
    counts = [len(recognition) for _, recognition in recognitions]
    num_rows = sum(counts)

    def flat(column: str) -> npt.NDArray[np.float32]:
        arrays = (getattr(recognition, column).ravel() for _, recognition in recognitions)
        return np.concatenate([np.empty(0, np.float32), *arrays])

    columns: list[Any] = [
        pa.array([source] * num_rows, pa.string()),
        pa.array([name] * num_rows, pa.string()),
        pa.array(np.repeat([frame_index for frame_index, _ in recognitions], counts), pa.int32()),
        pa.FixedSizeListArray.from_arrays(flat("boxes"), 4),
        flat("scores"),
        pa.array([label for _, recognition in recognitions for label in recognition.labels.tolist()], pa.string()),
        pa.FixedSizeListArray.from_arrays(flat("embeddings"), schema.field("embedding").type.list_size),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
