"""Find exact nearest neighbours at the speed of a matrix product, in a given amount of memory.

A float32 matrix product only selects candidates, whose distances are then computed in float64. So the result depends
neither on the BLAS library and its threads nor on how the rows are divided into tiles.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
    queries: Features, gallery: Features, *, same_label: bool = False, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> tuple[Indices, Distances]:
    """Return the nearest gallery row of each query, and the squared distance 2 - 2·cos to it.

    As many queries as fit into memory are held at once; for each such group, the whole gallery is read block by block.

    Args:
        same_label: compare a query only with gallery rows of the same label.
        memory_bytes: how much memory this call may use in addition to what the process already uses; see
            `memory_left`.

    Returns:
        hits: intp [n], numbers of gallery rows; of equally near rows, the first.
        distances: float64 [n], 0..4; infinite for a query that was compared with no row.

    Raises:
        InputError: `memory_bytes` is too small.
        FeaturesError: a features file is damaged.
    """
    hits = np.zeros(len(queries), np.intp)
    distances = np.full(len(queries), np.inf)
    num_held, num_rows = _plan_memory(memory_bytes, queries.embedding_size)
    query_labels, gallery_labels = np.split(factorize([*queries.labels, *gallery.labels]), [len(queries)])
    for held in queries.blocks(num_held):
        largest = np.full(len(held.lengths), -np.inf, np.float32)
        for block in _read_ahead(gallery.blocks(num_rows, num_buffers=2)):
            directions = np.divide(block.embeddings, block.lengths[:, np.newaxis].astype(np.float32))
            row_labels = gallery_labels[block.start : block.start + len(directions)]
            for start in range(0, len(largest), _TILE_QUERIES):
                part = slice(start, start + _TILE_QUERIES)
                tile = Block(held.start + start, held.embeddings[part], held.lengths[part])
                rows = slice(tile.start, tile.start + len(tile.lengths))
                is_excluded = query_labels[rows, np.newaxis] != row_labels if same_label else None
                pairs = _candidates(tile, directions, largest[part], is_excluded)
                _keep_nearest(tile, block, *pairs, hits[rows], distances[rows])
    return hits, distances


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


def _candidates(
    queries: Block,
    directions: npt.NDArray[np.float32],
    largest: npt.NDArray[np.float32],
    is_excluded: npt.NDArray[np.bool_] | None,
) -> tuple[Indices, Indices]:
    """Return the pairs of a query and a gallery row that may be nearer than all rows before.

    Args:
        queries: need not have unit length, because their length does not change the order of the products.
        directions: the gallery's embeddings scaled to unit length.
        largest: each query's largest product so far, which is updated.
        is_excluded: bool [queries,rows], pairs that do not count.

    Returns:
        Indices of the queries, ascending, and of the rows.
    """
    products = queries.embeddings @ directions.T
    if is_excluded is not None:
        products[is_excluded] = -np.inf
    row_largest = products.max(axis=1)
    np.maximum(largest, row_largest, out=largest)
    # A float32 cosine is off by at most (size + 8)·eps/2 in any order of summation, a difference of two by twice that.
    margin = (directions.shape[1] + 8) * np.finfo(np.float32).eps
    lowest = largest - (margin * queries.lengths).astype(np.float32)
    near_queries = np.flatnonzero((row_largest >= lowest) & (row_largest > -np.inf))
    positions, rows = np.nonzero(products[near_queries] >= lowest[near_queries, np.newaxis])
    return near_queries[positions], rows


def _keep_nearest(
    queries: Block,
    gallery: Block,
    query_indices: Indices,
    gallery_indices: Indices,
    hits: Indices,
    distances: Distances,
) -> None:
    """Update `hits` and `distances` of the queries that have a pair nearer than all rows before.

    Args:
        query_indices, gallery_indices: the pairs, in order of query, then row.
        hits, distances: of all `queries`. Rows of earlier blocks win ties.
    """
    exact = _exact_distances(queries, gallery, query_indices, gallery_indices)
    order = np.lexsort((exact, query_indices))  # stable, so the first of equally near rows stays in front
    candidates, first = np.unique(query_indices[order], return_index=True)
    best = order[first]
    is_nearer = exact[best] < distances[candidates]
    hits[candidates[is_nearer]] = gallery.start + gallery_indices[best[is_nearer]]
    distances[candidates[is_nearer]] = exact[best[is_nearer]]


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
