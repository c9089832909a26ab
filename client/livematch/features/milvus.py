"""Keep the features of videos in Milvus, in a file or on a cluster, when they outgrow one machine.

Milvus compares a query with every row (a FLAT index), but in float32, so it only selects candidates; `livematch.match`
decides between them as between the rows of a features file. Rows are numbered in the order in which they were loaded,
so that ties go to the first row here as well.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from livematch.errors import FeaturesError, InputError, LivematchError, UnavailableError, describe_error
from livematch.features.table import Features, check_comparable, require_selection, without_label

PREFIX = "milvus:"
COLLECTION = "livematch_gallery"

# A message may have 64 MB by default, and a request 16384 rows.
_INSERTED_ROWS = 1000
_READ_ROWS = 500
_SEARCHED_QUERIES = 256
_DELETED_SOURCES = 500

_NUM_CANDIDATES = 64
_TOLERANCE = 1e-5  # between float32 cosines; far above their rounding errors

_COLUMNS = ["row", "source", "frame_index", "box", "score", "label", "model_identity", "embedding"]


class MilvusGallery:
    """Keeps the features of videos in a Milvus collection.

    >>> with MilvusGallery("milvus:gallery.db") as gallery:
    ...     gallery.load(open_features(["videos.parquet"]))
    ...     matches = match(queries, gallery)

    Args:
        address: "milvus:" followed by a file name that ends in .db, or by the URI of a cluster.
        must_exist: raise an error if the file does not exist, instead of creating it.

    Raises:
        LivematchError: pymilvus is not installed.
        InputError: `address` is malformed.
        FeaturesError: `must_exist` is set, and the file does not exist.
        UnavailableError: the cluster does not respond; every method may raise this.
    """

    def __init__(self, address: str, *, must_exist: bool = False) -> None:
        uri = address.removeprefix(PREFIX)
        if "://" not in uri and not uri.endswith(".db"):
            raise InputError(f"expected {PREFIX}FILE.db or {PREFIX}URI, got {address}")
        try:
            import pymilvus
        except ImportError as error:
            raise LivematchError(f"{address} needs pymilvus: pip install 'livematch[milvus]'") from error
        # The server inside Milvus Lite logs a traceback for each call of pymilvus that it does not know.
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
        self.origin = address
        if must_exist and "://" not in uri and not Path(uri).exists():
            raise self._no_gallery()
        self._pymilvus = pymilvus
        with self._translated():
            self._client = pymilvus.MilvusClient(uri)

    def load(self, features: Features) -> None:
        """Append all rows of `features`; rows of the same sources that are in the gallery are deleted first.

        If a load was interrupted, repeat it.

        Raises:
            FeaturesError: `features` hold images, or have embeddings of another model or size than the gallery's.
        """
        require_selection(features, "frames", "a gallery (clips)")
        with self._translated():
            if self._client.has_collection(COLLECTION):
                self._check_comparable(features)
            else:
                self._create(features.embedding_size)
            self.delete(list(dict.fromkeys(features.sources)))
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
                            "label": features.labels[row],
                            "model_identity": features.model_identity or "",
                            "embedding": embedding,
                        }
                        for row, embedding in zip(rows, block.embeddings, strict=True)
                    ],
                )
            self._client.flush(COLLECTION)

    def delete(self, sources: Sequence[str]) -> None:
        """Delete all rows of these sources; sources that are not in the gallery are ignored.

        Raises:
            FeaturesError: the gallery does not exist.
        """
        with self._translated():
            if not self._client.has_collection(COLLECTION):
                raise self._no_gallery()
            for start in range(0, len(sources), _DELETED_SOURCES):
                some = json.dumps(sources[start : start + _DELETED_SOURCES], ensure_ascii=False)
                self._client.delete(COLLECTION, filter=f"source in {some}")

    def candidates(self, queries: Features, *, same_label: bool = False) -> Features:
        """Return the rows that may be nearest to one of `queries`, in the order in which they were loaded.

        With `same_label`, a query is compared only with rows of the same label.

        For each query, these are the nearest row and the rows that float32 cannot tell from it, at most 64 in all.
        Their embeddings are in memory; unless many rows are equally near, there are no more of them than queries.

        Raises:
            FeaturesError: `queries` have embeddings of another model or size than the gallery's, the gallery does not
                exist, or `same_label` is set and a row has no label.
        """
        with self._translated():
            if not self._client.has_collection(COLLECTION):
                raise self._no_gallery()
            self._check_comparable(queries)
            if same_label:
                self._require_labels()
            rows: set[int] = set()
            for embeddings, condition in _searches(queries, same_label=same_label):
                for hits in self._client.search(
                    COLLECTION, data=embeddings, anns_field="embedding", limit=_NUM_CANDIDATES, filter=condition
                ):
                    rows.update(hit["row"] for hit in hits if hit["distance"] >= hits[0]["distance"] - _TOLERANCE)
            return self._read(sorted(rows))

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _create(self, embedding_size: int) -> None:
        types = self._pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("source", types.VARCHAR, max_length=1024)
        schema.add_field("frame_index", types.INT32)
        schema.add_field("box", types.ARRAY, element_type=types.FLOAT, max_capacity=4)
        schema.add_field("score", types.FLOAT)
        schema.add_field("label", types.VARCHAR, max_length=1024)
        schema.add_field("model_identity", types.VARCHAR, max_length=1024)
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=embedding_size)
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(COLLECTION, schema=schema, index_params=index, consistency_level="Strong")

    def _check_comparable(self, features: Features) -> None:
        fields = {field["name"] for field in self._client.describe_collection(COLLECTION)["fields"]}
        if not fields.issuperset(_COLUMNS):
            raise FeaturesError(f"{self.origin}: was made by an older version; load the features into a new gallery")
        self._client.load_collection(COLLECTION)  # a collection that another process has opened is not loaded
        if (first := self._first_row()) is not None:
            check_comparable(features, self.origin, first["model_identity"] or None, self._embedding_size())

    def _require_labels(self) -> None:
        found = self._client.query(COLLECTION, filter='label == ""', limit=1, output_fields=["source"])
        if found:
            raise without_label(self.origin, found[0]["source"])

    def _embedding_size(self) -> int:
        fields = self._client.describe_collection(COLLECTION)["fields"]
        return next(int(field["params"]["dim"]) for field in fields if field["name"] == "embedding")

    def _first_row(self, start: int = 0) -> dict[str, Any] | None:
        """Return some row whose number is at least `start`, None if there is none."""
        found = self._client.query(
            COLLECTION, filter=f"row >= {start}", limit=1, output_fields=["row", "model_identity"]
        )
        return dict(found[0]) if found else None

    def _end(self) -> int:
        """Return the largest row number plus one."""
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

    def _read(self, row_numbers: list[int]) -> Features:
        """Return rows with their embeddings, in the order given."""
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(row_numbers), _READ_ROWS):
            ids = row_numbers[start : start + _READ_ROWS]
            for row in self._client.query(COLLECTION, ids=ids, output_fields=_COLUMNS):
                row["embedding"] = np.array(row["embedding"], np.float32)  # Python's floats take eight times as much
                found[row["row"]] = row
        rows = [found[number] for number in row_numbers]
        identities = sorted({row["model_identity"] for row in rows})
        if len(identities) > 1:
            raise FeaturesError(f"{self.origin}: holds rows of several models: {', '.join(identities)}")
        return Features(
            sources=[row["source"] for row in rows],
            names=[""] * len(rows),
            frame_indices=[row["frame_index"] for row in rows],
            boxes=np.reshape([row["box"] for row in rows], (-1, 4)),
            scores=[row["score"] for row in rows],
            labels=[row["label"] for row in rows],
            embeddings=np.reshape([row["embedding"] for row in rows], (-1, self._embedding_size())),
            model_identity=next(iter(identities), None) or None,
            origin=self.origin,
        )

    def _no_gallery(self) -> FeaturesError:
        return FeaturesError(f"{self.origin}: holds no gallery; make one with `livematch load`")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Context manager: turn errors of pymilvus into UnavailableError with the gallery's address."""
        try:
            yield
        except self._pymilvus.MilvusException as error:
            raise UnavailableError(f"{self.origin}: {describe_error(error.message)}") from error


def _searches(queries: Features, *, same_label: bool) -> Iterator[tuple[list[npt.NDArray[np.float32]], str]]:
    """Yield embeddings to search for together, and the condition that the rows found must meet."""
    for block in queries.blocks(_SEARCHED_QUERIES):
        if not same_label:
            yield list(block.embeddings), ""
            continue
        labels = queries.labels[block.start : block.start + len(block.embeddings)]
        for label in dict.fromkeys(labels):
            some = [embedding for embedding, other in zip(block.embeddings, labels, strict=True) if other == label]
            yield some, f"label == {json.dumps(label, ensure_ascii=False)}"
