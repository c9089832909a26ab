"""Find exact nearest neighbours at the speed of a matrix product, in a given amount of memory.

A float32 matrix product only selects candidates, whose distances are then computed in float64. So the result depends
neither on the BLAS library and its threads nor on how the rows are divided into tiles.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import psutil

from livematch.errors import InputError
from livematch.features.table import Block, Features, factorize

DECIMALS = 12
"""Distances are rounded to this many decimals, so that mathematically equal ones compare equal.

Without rounding, the last bit of a float64 would decide between rows of the same direction but different lengths.
"""
DEFAULT_MEMORY_BYTES = 2 << 30

_TILE_QUERIES = 1024  # per matrix product; with _BLOCK_ROWS, 8 MB of products, which stay in the cache
_BLOCK_ROWS = 2048  # of the gallery
_MIN_BLOCK_ROWS = 64
_NUM_WORK_BLOCKS = 8  # memory for reading, scaling and comparing a block of the gallery, in multiples of its size
_RESERVED_BYTES = 48 << 20  # for Arrow's reader and its memory pool, whatever the size of the tiles
_REFINED_PAIRS = 512  # per float64 step, 16 MB for 2048-d embeddings

Indices = npt.NDArray[np.intp]
Distances = npt.NDArray[np.float64]


def nearest(
    queries: Features,
    gallery: Features,
    *,
    num_sources: int = 1,
    same_label: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> tuple[Indices, Distances]:
    """Return, for each query, the nearest row of each of the nearest sources of the gallery, and its distance.

    The distance is the squared one of unit vectors, 2 - 2·cos. As many queries as fit into memory are held at once; for
    each such group, the whole gallery is read block by block.

    Args:
        num_sources: k, how many sources (items or clips) to find for each query.
        same_label: compare a query only with gallery rows of the same label.
        memory_bytes: how much memory this call may use in addition to what the process already uses; see
            `memory_left`.

    Returns:
        hits: intp [n,k], numbers of gallery rows, the nearest first; of equally near rows, the first.
        distances: float64 [n,k], 0..4; infinite where fewer than k sources were compared with a query.

    Raises:
        InputError: `memory_bytes` is too small.
        FeaturesError: a features file is damaged.
    """
    found = _Nearest.empty(len(queries), num_sources, factorize(gallery.sources))
    num_held, num_rows = _plan_memory(memory_bytes, queries.embedding_size)
    query_labels, gallery_labels = np.split(factorize([*queries.labels, *gallery.labels]), [len(queries)])
    for held in queries.blocks(num_held):
        for block in _read_ahead(gallery.blocks(num_rows, num_buffers=2)):
            directions = np.divide(block.embeddings, block.lengths[:, np.newaxis].astype(np.float32))
            row_labels = gallery_labels[block.start : block.start + len(directions)]
            for start in range(0, len(held.lengths), _TILE_QUERIES):
                part = slice(start, start + _TILE_QUERIES)
                tile = Block(held.start + start, held.embeddings[part], held.lengths[part])
                rows = slice(tile.start, tile.start + len(tile.lengths))
                products = tile.embeddings @ directions.T
                if same_label:
                    products[query_labels[rows, np.newaxis] != row_labels] = -np.inf
                found.update(tile, block, products)
    return found.hits, found.distances


def memory_left(limit_bytes: int) -> int:
    """Return how many bytes of a memory limit for the whole process are left, 0 if it is exceeded."""
    return max(0, limit_bytes - int(psutil.Process().memory_info().rss))


def _read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the blocks while a thread reads the next one."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, blocks, None)
            yield block


@dataclass(frozen=True)
class _Nearest:
    """What `nearest` has found so far, and the source of each gallery row as a number, intp [rows]."""

    hits: Indices
    distances: Distances
    sources: Indices

    @classmethod
    def empty(cls, num_queries: int, num_sources: int, sources: Indices) -> Self:
        shape = num_queries, num_sources
        return cls(np.zeros(shape, np.intp), np.full(shape, np.inf), sources)

    def update(self, queries: Block, gallery: Block, products: npt.NDArray[np.float32]) -> None:
        """Compare queries with gallery rows.

        Args:
            products: of the queries' embeddings, of any length, and the rows' directions, float32 [queries,rows]; -inf
                for pairs that do not count.
        """
        tile = slice(queries.start, queries.start + len(queries.lengths))
        pairs = list(self._candidates(queries, gallery, products, self.distances[tile, -1]))
        query_indices, gallery_indices = (np.concatenate(part) for part in zip(*pairs, strict=True))
        if not len(query_indices):
            return
        exact = _exact_distances(queries, gallery, query_indices, gallery_indices)
        changed = np.unique(query_indices)
        num_sources = self.hits.shape[1]
        # All that is known of the changed queries, in the order in which it is preferred.
        numbers = np.concatenate([np.repeat(changed, num_sources), query_indices])
        hits = np.concatenate([self.hits[tile][changed].ravel(), gallery.start + gallery_indices])
        distances = np.concatenate([self.distances[tile][changed].ravel(), exact])
        order = np.lexsort((hits, distances, numbers))
        order = order[_is_first(numbers[order], self.sources[hits[order]]) | np.isinf(distances[order])]
        ranks = np.arange(len(order)) - np.searchsorted(numbers[order], numbers[order])
        kept = order[ranks < num_sources]
        self.hits[tile][changed] = hits[kept].reshape(-1, num_sources)
        self.distances[tile][changed] = distances[kept].reshape(-1, num_sources)

    def _candidates(
        self, queries: Block, gallery: Block, products: npt.NDArray[np.float32], farthest: Distances
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield pairs of a query and a gallery row that may be nearer than what was found, for one source at a time.

        `farthest` is the distance of the last source found so far of each query, float64 [queries].
        """
        # A float32 cosine is off by at most (size + 8)·eps/2 in any order of summation, a difference of two by twice
        # that.
        margin = (queries.embeddings.shape[1] + 8) * np.finfo(np.float32).eps
        margins = (margin * queries.lengths).astype(np.float32)
        lowest = ((1 - farthest / 2) * queries.lengths).astype(np.float32) - margins
        sources = self.sources[gallery.start : gallery.start + products.shape[1]]
        considered = np.arange(len(products))
        for number in range(self.hits.shape[1]):
            best = products.argmax(axis=1)
            largest = products[np.arange(len(best)), best]
            is_near = (largest >= lowest[considered]) & (largest > -np.inf)
            considered, products, best, largest = (x[is_near] for x in (considered, products, best, largest))
            positions, rows = np.nonzero(products >= (largest - margins[considered])[:, np.newaxis])
            yield considered[positions], rows
            if number + 1 < self.hits.shape[1]:
                products[sources[best][:, np.newaxis] == sources] = -np.inf


def _is_first(*columns: Indices) -> npt.NDArray[np.bool_]:
    """Return for each row whether it is the first one with its values."""
    order = np.lexsort(columns)  # stable
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    is_first = np.empty(len(order), bool)
    is_first[order] = is_new
    return is_first


def _exact_distances(queries: Block, gallery: Block, query_indices: Indices, gallery_indices: Indices) -> Distances:
    """Return the squared distance 2 - 2·cos of each pair, computed in float64 and rounded to DECIMALS."""
    products = np.empty(len(query_indices))
    for start in range(0, len(query_indices), _REFINED_PAIRS):
        pairs = slice(start, start + _REFINED_PAIRS)
        factors = queries.embeddings[query_indices[pairs]].astype(np.float64)
        factors *= gallery.embeddings[gallery_indices[pairs]]
        products[pairs] = factors.sum(axis=1)
    cosines = products / (queries.lengths[query_indices] * gallery.lengths[gallery_indices])
    return np.clip(2 - 2 * cosines, 0, 4).round(DECIMALS)


def _plan_memory(memory_bytes: int, embedding_size: int) -> tuple[int, int]:
    """Return how many queries to hold, and how many gallery rows to read at once."""
    row_bytes = 4 * max(embedding_size, 1)
    num_free = (memory_bytes - _RESERVED_BYTES) // row_bytes
    num_rows = min(_BLOCK_ROWS, num_free // (2 * _NUM_WORK_BLOCKS))
    if num_rows < _MIN_BLOCK_ROWS:
        needed_bytes = _RESERVED_BYTES + 2 * _NUM_WORK_BLOCKS * _MIN_BLOCK_ROWS * row_bytes
        raise InputError(
            f"matching needs at least {-(-needed_bytes >> 20)} MiB of memory, got {memory_bytes >> 20} MiB"
        )
    return num_free - _NUM_WORK_BLOCKS * num_rows, num_rows
