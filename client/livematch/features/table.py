"""Hold features: a table with one row per box, in memory or in a Parquet file that any tool can read or write.

| column | type | meaning |
| --- | --- | --- |
| source | string | item id (the name of its folder) or video id (the name of its file without extension) |
| name | string | image name without extension; empty for frames |
| frame_index | int32 | index of the frame in the video; -1 for images |
| box | 4 x float32 | x0 y0 x1 y1 in pixels of the image or frame |
| score | float32 | confidence of the detector, 0..1 |
| label | string | name of the box's class; empty if unknown; a file may lack this column |
| embedding | D x float32 | unit length |
| title, url | string | of the item, the same in all its rows; empty if unknown; a file may lack these columns |

The file's metadata names the models that made the embeddings. `livematch.features.store` writes these files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from livematch.errors import FeaturesError, InputError
from livematch.features.parquet import EmbeddingFiles, open_file


@dataclass(frozen=True)
class Block:
    """Holds the embeddings of n consecutive rows, float32 [n,size], and their lengths, float64 [n]."""

    start: int
    embeddings: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.float64]


class Features:
    """A table with one row for each of n boxes; where matching has to break a tie, the first row wins.

    >>> features = read_features("images.parquet")
    >>> features.sources[0], features.names[0], features.boxes[0].tolist()
    ('000013', '0', [12.5, 30.0, 410.25, 622.0])
    >>> features.embeddings.shape
    (12, 2048)

    Args:
        sources: n item or video ids.
        names: n image names, empty for frames.
        labels: n names of the boxes' classes, empty where unknown.
        titles, urls: n titles and addresses of the items, empty where unknown.
        frame_indices: int32 [n], -1 for images.
        boxes: float32 [n,4], x0 y0 x1 y1 in pixels.
        scores: float32 [n].
        embeddings: float32 [n,size] of any length but zero (matching uses their direction only), or files to read
            them from.
        model_identity: name of the models that made the embeddings; None if unknown.
        selection: what the table holds of each source, such as "images" or "frames 80:400:20"; "" if unknown.
        origin: name of the table in error messages.

    Raises:
        FeaturesError: lengths or shapes disagree, a value is not finite, an embedding is zero, or a row occurs twice
            (with the same source, name, frame, box and score).
    """

    def __init__(
        self,
        *,
        sources: Sequence[str],
        names: Sequence[str],
        labels: Sequence[str] | None = None,
        titles: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        frame_indices: npt.ArrayLike,
        boxes: npt.ArrayLike,
        scores: npt.ArrayLike,
        embeddings: npt.ArrayLike | EmbeddingFiles,
        model_identity: str | None = None,
        selection: str = "",
        origin: str = "features",
    ) -> None:
        self.model_identity = model_identity
        self.selection = selection
        self.origin = origin
        self.sources = list(sources)
        self.names = list(names)
        self.labels, self.titles, self.urls = (
            [""] * len(self) if texts is None else list(texts) for texts in (labels, titles, urls)
        )
        for name in ("names", "labels", "titles", "urls"):
            if len(texts := getattr(self, name)) != len(self):
                raise FeaturesError(f"{origin}: {len(self)} sources, {len(texts)} {name}")
        self.frame_indices: npt.NDArray[np.int32] = self._column("frame_indices", frame_indices, np.int32)
        self.boxes: npt.NDArray[np.float32] = self._column("boxes", boxes, np.float32, 4)
        self.scores: npt.NDArray[np.float32] = self._column("scores", scores, np.float32)
        self._refuse(~np.isfinite(self.boxes).all(axis=1), "box", "has NaN or infinity")
        self._refuse(~np.isfinite(self.scores), "score", "has NaN or infinity")
        self._refuse_repeats()
        self._embeddings: npt.NDArray[np.float32] | EmbeddingFiles
        if isinstance(embeddings, EmbeddingFiles):
            self.embedding_size = embeddings.size
            self._embeddings = embeddings
        else:
            self.embedding_size = np.shape(embeddings)[-1]
            self._embeddings = self._column("embeddings", embeddings, np.float32, self.embedding_size)
            self._lengths(0, self._embeddings)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """All embeddings, float32 [n,size]; read from disk at each access if they are in files."""
        if isinstance(self._embeddings, EmbeddingFiles):
            return self._embeddings.read(len(self))
        return self._embeddings

    def blocks(self, num_rows: int, num_buffers: int = 1) -> Iterator[Block]:
        """Yield all embeddings, `num_rows` rows at a time.

        Embeddings in files are read into `num_buffers` arrays, which are reused: see `EmbeddingFiles.chunks`.

        Raises:
            FeaturesError: a file has become unreadable, or an embedding is not finite, zero or of another size.
        """
        num_rows = min(num_rows, max(len(self), 1))
        if isinstance(self._embeddings, EmbeddingFiles):
            chunks = self._embeddings.chunks(num_rows, num_buffers)
        else:
            array = self._embeddings
            chunks = (array[start : start + num_rows] for start in range(0, len(self), num_rows))
        start = 0
        for embeddings in chunks:
            yield Block(start, embeddings, self._lengths(start, embeddings))
            start += len(embeddings)

    def _describe_row(self, row: int) -> str:
        """Return the row's number, source, and image or frame, as in "row 3 (000013, frame 80)"."""
        return f"row {row} ({self.sources[row]}, {self.names[row] or f'frame {self.frame_indices[row]}'})"

    def _column(self, name: str, values: npt.ArrayLike, dtype: type[Any], *width: int) -> npt.NDArray[Any]:
        column = np.ascontiguousarray(values, dtype)
        if column.shape != (len(self), *width):
            raise FeaturesError(f"{self.origin}: {len(self)} sources, but {name} {list(column.shape)}")
        return column

    def _lengths(self, start: int, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the lengths of embeddings from row `start` on; raise FeaturesError if one has no direction."""
        squares: npt.NDArray[np.float64] = np.einsum(
            "ij,ij->i", embeddings, embeddings, dtype=np.float64, casting="unsafe"
        )
        self._refuse(~np.isfinite(squares), "embedding", "has NaN or infinity", start)
        self._refuse(squares == 0, "embedding", "is zero", start)
        lengths: npt.NDArray[np.float64] = np.sqrt(squares)
        return lengths

    def _refuse(self, is_bad: npt.NDArray[np.bool_] | np.bool_, column: str, reason: str, start: int = 0) -> None:
        """Raise FeaturesError for the first bad row; the rows are counted from `start`."""
        if is_bad.any():
            row = self._describe_row(start + int(is_bad.argmax()))
            raise FeaturesError(f"{self.origin}: {column} of {row} {reason}")

    def _refuse_repeats(self) -> None:
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
            raise FeaturesError(f"{self.origin}: {self._describe_row(int(order[last + 1]))} repeats row {order[last]}")


def open_features(paths: str | Path | Sequence[str | Path]) -> Features:
    """Read features files, but leave their embeddings on disk; a row then takes about 100 bytes of memory.

    Several files, such as those of several `--shard`s, count as one table. The files may come from another tool: lists
    may have fixed or variable length; strings may be plain, large or dictionary-encoded, or numbers; numbers may have
    any width and row groups any size; additional columns are ignored. A null in `name` or in an optional column is
    read as empty.

    Raises:
        InputError: no path is given.
        FeaturesError: a file does not exist or is not Parquet, a column is missing or has an unsuitable type, the
            files were made by different models, or their content is refused by `Features`.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    if not paths:
        raise InputError("no features file given")
    tables = [Features(**open_file(Path(path))) for path in paths]
    first = tables[0]
    for table in tables[1:]:
        check_comparable(first, table.origin, table.model_identity, table.embedding_size)
    if len(tables) == 1:
        return first
    return Features(
        sources=[source for table in tables for source in table.sources],
        names=[name for table in tables for name in table.names],
        labels=[label for table in tables for label in table.labels],
        titles=[title for table in tables for title in table.titles],
        urls=[url for table in tables for url in table.urls],
        frame_indices=np.concatenate([table.frame_indices for table in tables]),
        boxes=np.concatenate([table.boxes for table in tables]),
        scores=np.concatenate([table.scores for table in tables]),
        embeddings=EmbeddingFiles([Path(path) for path in paths], first.embedding_size),
        model_identity=next((table.model_identity for table in tables if table.model_identity), None),
        selection=next((table.selection for table in tables if table.selection), ""),
        origin=", ".join(table.origin for table in tables),
    )


def read_features(path: str | Path) -> Features:
    """Read one features file with its embeddings into memory.

    Raises:
        FeaturesError: as `open_features`, or an embedding is not finite, zero or of another size than the first.
    """
    columns = open_file(Path(path))
    columns["embeddings"] = columns["embeddings"].read(len(columns["sources"]))
    return Features(**columns)


def check_comparable(features: Features, origin: str, model_identity: str | None, embedding_size: int) -> None:
    """Raise FeaturesError if the embeddings of `features` cannot be compared with others; accept an unknown model.

    The message names both sides; `origin` is the name of the others, such as their file.
    """
    identities = {features.model_identity, model_identity} - {None}
    if len(identities) > 1 or features.embedding_size != embedding_size:
        first = f"{features.origin} by {features.model_identity or 'an unnamed model'} ({features.embedding_size}-d)"
        second = f"{origin} by {model_identity or 'an unnamed model'} ({embedding_size}-d)"
        raise FeaturesError(f"features of different models cannot be compared: {first}, {second}")


def require_selection(features: Features, kind: Literal["images", "frames"], role: str) -> None:
    """Raise FeaturesError if `features` are known to hold the other kind than `role` must, such as "the gallery"."""
    if features.selection and not features.selection.startswith(kind):
        raise FeaturesError(f"{features.origin} holds {features.selection}, but {role} must hold {kind}")


def without_label(origin: str, source: str) -> FeaturesError:
    """Return the error for a box without a label, where the labels are to be compared."""
    return FeaturesError(f"{origin}: a box of {source} has no label to compare; embed again, or allow any label")


def factorize(ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return a number for each id: 0 for the id that appears first, 1 for the next new one, and so on.

    >>> factorize(["b", "a", "b"])
    array([0, 1, 0])
    """
    number_of = {unique: number for number, unique in enumerate(dict.fromkeys(ids))}
    return np.array([number_of[row_id] for row_id in ids], np.intp)
