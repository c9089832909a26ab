"""A gallery in Milvus, embedded in a file or on a cluster, for video features that outgrow one machine.

Milvus searches with a FLAT index, which compares every row, and only preselects: what is as near as float32 can tell is
fetched and decided in float64 as `livematch.matching.nearest` does. Rows are numbered in the order in which they were
loaded, so ties go the same way as with the features files. Matches are the same to the last byte.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from livematch.errors import FeaturesError, InputError, LivematchError, UnavailableError
from livematch.features.table import AnyFeatures, Block, Origin, Rows, StoredFeatures, check_comparable
from livematch.matching.nearest import exact_cosines, keep_best, relative_margin, to_distances
from livematch.matching.vote import Match, MatchOptions, vote

PREFIX = "milvus:"
COLLECTION = "livematch_gallery"

# A message may have 64 MB by default, and a request 16384 rows.
_INSERTED_ROWS = 1000
_DESCRIBED_ROWS = 8192
_FETCHED_ROWS = 500
_SEARCHED_QUERIES = 256
_DELETED_SOURCES = 500
_FIRST_CANDIDATES = 16
_MAX_CANDIDATES = 16384

_DESCRIPTION = ["row", "source", "frame_index", "box", "score", "model_identity"]


class MilvusGallery:
    """Features of videos in a Milvus collection.

    >>> with MilvusGallery("milvus:gallery.db") as gallery:
    ...     gallery.load(open_features([path]))
    ...     matches = gallery.match(queries)

    Args:
        address: "milvus:" and a file whose name ends in .db, or the URI of a cluster.
        must_exist: refuse a file that is not there, which would be made.

    Raises:
        LivematchError: pymilvus is not installed.
        InputError: `address` is none.
        FeaturesError: the file has to be there, and is not.
        UnavailableError: the cluster does not answer; also raised by every method.
    """

    def __init__(self, address: str, *, must_exist: bool = False) -> None:
        uri = address.removeprefix(PREFIX)
        if "://" not in uri and not uri.endswith(".db"):
            raise InputError(f"expected {PREFIX}FILE.db or {PREFIX}URI, got {address}")
        try:
            import pymilvus
        except ImportError as error:
            raise LivematchError(f"{address} needs pymilvus: pip install 'livematch[milvus]'") from error
        # The server inside of Milvus Lite logs a traceback for each call of pymilvus that it does not know.
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
        self.origin = address
        if must_exist and "://" not in uri and not Path(uri).exists():
            raise self._no_gallery()
        self._pymilvus = pymilvus
        with self._translated():
            self._client = pymilvus.MilvusClient(uri)

    def load(self, features: StoredFeatures) -> None:
        """Add the rows of features files at the end; rows of the same sources that are there already are replaced.

        A load that was interrupted is made good by the same load again.

        Raises:
            FeaturesError: `features` are of other models or another dimension than the gallery's.
        """
        with self._translated():
            if self._client.has_collection(COLLECTION):
                self._client.load_collection(COLLECTION)  # opened by another process, it is released
                if (first := self._first_row()) is not None:
                    check_comparable(features, Origin(self.origin, first["model_identity"] or None, self._size()))
            else:
                self._create(features.embedding_size)
        self.delete(list(dict.fromkeys(features.sources)))
        with self._translated():
            offset = self._end()
            for block in features.blocks(_INSERTED_ROWS):
                rows = range(block.start, block.start + len(block.lengths))
                self._client.insert(
                    COLLECTION,
                    [
                        {
                            "row": offset + row,
                            "source": features.sources[row],
                            "frame_index": int(features.frame_indices[row]),
                            "box": features.boxes[row].tolist(),
                            "score": float(features.scores[row]),
                            "model_identity": features.model_identity or "",
                            "embedding": embedding,
                        }
                        for row, embedding in zip(rows, block.embeddings, strict=True)
                    ],
                )
            self._client.flush(COLLECTION)

    def delete(self, sources: Sequence[str]) -> None:
        """Remove all rows of these sources; unknown ones are left out.

        Raises:
            FeaturesError: the gallery is not there.
        """
        with self._translated():
            if not self._client.has_collection(COLLECTION):
                raise self._no_gallery()
            for start in range(0, len(sources), _DELETED_SOURCES):
                some = json.dumps(sources[start : start + _DELETED_SOURCES], ensure_ascii=False)
                self._client.delete(COLLECTION, filter=f"source in {some}")

    def match(self, queries: AnyFeatures, rule: MatchOptions | None = None) -> list[Match]:
        """The matches of `livematch.match` with this gallery.

        Raises:
            FeaturesError: `queries` are of other models or dimension, the gallery is not there, or it holds rows of
                several models.
        """
        row_ids, rows = self._describe()
        if not len(queries) or not len(rows):
            return []
        with self._translated():
            check_comparable(queries, Origin(self.origin, rows.model_identity, self._size()))
            hits, distances = self._nearest(queries, row_ids)
        return vote(queries, rows, hits, distances, rule or MatchOptions())

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _create(self, embedding_size: int) -> None:
        types = self._pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("source", types.VARCHAR, max_length=1024)
        schema.add_field("frame_index", types.INT32)
        schema.add_field("box", types.ARRAY, element_type=types.FLOAT, max_capacity=4)
        schema.add_field("score", types.FLOAT)
        schema.add_field("model_identity", types.VARCHAR, max_length=1024)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=embedding_size)
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(COLLECTION, schema=schema, index_params=index, consistency_level="Strong")

    def _size(self) -> int:
        fields = self._client.describe_collection(COLLECTION)["fields"]
        return next(int(field["params"]["dim"]) for field in fields if field["name"] == "embedding")

    def _first_row(self, start: int = 0) -> dict[str, Any] | None:
        """Some row from number `start` on."""
        found = self._client.query(COLLECTION, filter=f"row >= {start}", limit=1, output_fields=_DESCRIPTION)
        return dict(found[0]) if found else None

    def _end(self) -> int:
        """One more than the largest row number."""
        low, high = 0, 1
        while self._first_row(high) is not None:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            if self._first_row(middle) is None:
                high = middle
            else:
                low = middle + 1
        return low

    def _describe(self) -> tuple[npt.NDArray[np.int64], Rows]:
        """The numbers of all rows, int64 [n] increasing, and all of them but the embeddings."""
        found: list[dict[str, Any]] = []
        with self._translated():
            if not self._client.has_collection(COLLECTION):
                raise self._no_gallery()
            self._client.load_collection(COLLECTION)
            for start in range(0, self._end(), _DESCRIBED_ROWS):
                range_filter = f"row >= {start} and row < {start + _DESCRIBED_ROWS}"
                part = self._client.query(COLLECTION, filter=range_filter, output_fields=_DESCRIPTION)
                found += sorted(part, key=lambda row: row["row"])
        identities = {row["model_identity"] for row in found}
        if len(identities) > 1:
            raise FeaturesError(f"{self.origin}: holds rows of several models: {', '.join(sorted(identities))}")
        rows = Rows(
            sources=[row["source"] for row in found],
            names=[""] * len(found),
            frame_indices=np.array([row["frame_index"] for row in found], np.int32),
            boxes=np.array([row["box"] for row in found], np.float32).reshape(-1, 4),
            scores=np.array([row["score"] for row in found], np.float32),
            model_identity=next(iter(identities), None) or None,
            origin=self.origin,
        )
        return np.array([row["row"] for row in found], np.int64), rows

    def _nearest(
        self, queries: AnyFeatures, row_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """As `livematch.matching.nearest.nearest`; hits are places in `row_ids`."""
        hits = np.zeros(len(queries), np.intp)
        cosines = np.full(len(queries), -np.inf)
        for block in queries.blocks(_SEARCHED_QUERIES):
            near = self._near(block, np.arange(len(block.lengths)), _FIRST_CANDIDATES, len(row_ids))
            near_queries, near_ids = (np.array(column, np.int64) for column in zip(*near, strict=True))
            ids, positions = np.unique(near_ids, return_inverse=True)
            exact = exact_cosines(block, self._fetch(ids), near_queries, positions)
            places = np.searchsorted(row_ids, near_ids)
            keep_best(near_queries, places, exact, hits[block.rows], cosines[block.rows])
        return hits, to_distances(cosines)

    def _near(
        self, block: Block, places: npt.NDArray[np.intp], num_candidates: int, num_rows: int
    ) -> list[tuple[int, int]]:
        """(place in the block, row number) of what float32 cannot tell from the nearest, for queries at `places`."""
        answers = self._client.search(
            COLLECTION, data=list(block.embeddings[places]), anns_field="embedding", limit=min(num_candidates, num_rows)
        )
        margin = relative_margin(block.embeddings.shape[1])
        near: list[tuple[int, int]] = []
        undecided = []
        for place, answer in zip(places.tolist(), answers, strict=True):
            close = [hit["row"] for hit in answer if hit["distance"] >= answer[0]["distance"] - margin]
            if len(close) == len(answer) < num_rows:
                undecided.append(place)
            else:
                near += [(place, row) for row in close]
        if undecided:
            if num_candidates == _MAX_CANDIDATES:
                raise FeaturesError(f"{self.origin}: more than {_MAX_CANDIDATES} rows are equally near to a query")
            more = min(8 * num_candidates, _MAX_CANDIDATES)
            for place in undecided:  # one at a time: an answer of this size is a large message
                near += self._near(block, np.array([place]), more, num_rows)
        return near

    def _fetch(self, ids: npt.NDArray[np.int64]) -> Block:
        embeddings: dict[int, Any] = {}
        for start in range(0, len(ids), _FETCHED_ROWS):
            some = ids[start : start + _FETCHED_ROWS].tolist()
            for row in self._client.query(COLLECTION, ids=some, output_fields=["row", "embedding"]):
                embeddings[row["row"]] = row["embedding"]
        values = np.array([embeddings[row] for row in ids.tolist()], np.float32)
        return Block(0, values, np.linalg.norm(values.astype(np.float64), axis=1))

    def _no_gallery(self) -> FeaturesError:
        return FeaturesError(f"{self.origin}: holds no gallery; make one with `livematch load`")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns pymilvus's errors into one that names the gallery."""
        try:
            yield
        except self._pymilvus.MilvusException as error:
            raise UnavailableError(f"{self.origin}: {' '.join(str(error.message).split())}") from error
