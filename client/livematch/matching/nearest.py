"""Exact nearest neighbours at the speed of a matrix product, in a given amount of memory.

A float32 product of tiles only preselects, float64 decides, and cosines are compared to 12 decimals. So nothing depends
on the BLAS in use, on its threads or on the tiles, and what is equal on paper is equal here: the first row wins.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from livematch.errors import InputError
from livematch.features.table import AnyFeatures, Block

DECIMALS = 12  # float64 is good for 15, the float32 embeddings themselves for 7
DEFAULT_MEMORY_BYTES = 2 << 30

_TILE_QUERIES = 1024  # per matrix product; with _BLOCK_ROWS, 8 MB of products, which stay in the cache
_BLOCK_ROWS = 2048  # of the gallery
_MIN_BLOCK_ROWS = 64
_NUM_BLOCKS_BESIDE = 8  # what reading, scaling and comparing a block of the gallery takes, in blocks of its size
_RESERVED_BYTES = 48 << 20  # for Arrow's reader and its pool, whatever the tiles
_REFINED_PAIRS = 512  # per float64 step, 16 MB for 2048-d embeddings


def nearest(
    queries: AnyFeatures, gallery: AnyFeatures, *, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The nearest gallery row of each query, and the squared distance 2 - 2·cos to it.

    As many queries as fit are held at once, and the gallery goes past them block by block.

    Args:
        memory_bytes: what this may use besides what the process holds already; see `memory_left`.

    Returns:
        hits: intp [n], the first row of those equally near.
        distances: float64 [n], 0..4.

    Raises:
        InputError: `memory_bytes` is too little.
        FeaturesError: a features file is damaged.
    """
    hits = np.zeros(len(queries), np.intp)
    cosines = np.full(len(queries), -np.inf)
    num_held, num_rows = _tiles(memory_bytes, queries.embedding_size)
    scaled = np.empty((min(num_rows, len(gallery)), gallery.embedding_size), np.float32)
    products = np.empty(min(_TILE_QUERIES, len(queries)) * len(scaled), np.float32)
    for held in queries.blocks(num_held):
        largest = np.full(len(held.lengths), -np.inf, np.float32)
        for block in _ahead(gallery.blocks(num_rows, num_buffers=2)):
            inverse_lengths = (1 / block.lengths).astype(np.float32)[:, np.newaxis]
            directions = np.multiply(block.embeddings, inverse_lengths, out=scaled[: len(inverse_lengths)])
            for start in range(0, len(largest), _TILE_QUERIES):
                part = slice(start, start + _TILE_QUERIES)
                tile = Block(held.start + start, held.embeddings[part], held.lengths[part])
                shape = (len(tile.lengths), len(directions))
                product = products[: shape[0] * shape[1]].reshape(shape)
                np.matmul(tile.embeddings, directions.T, out=product)
                near_queries, near_rows = _near(product, largest[part], _margins(tile))
                exact = exact_cosines(tile, block, near_queries, near_rows)
                keep_best(near_queries, near_rows + block.start, exact, hits[tile.rows], cosines[tile.rows])
    return hits, to_distances(cosines)


def _ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks, with the next one being read while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def exact_cosines(
    queries: Block, gallery: Block, query_places: npt.NDArray[np.intp], gallery_places: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Cosines of pairs, given by their places in two blocks, float64 rounded to 12 decimals."""
    cosines = np.empty(len(query_places), np.float64)
    for start in range(0, len(query_places), _REFINED_PAIRS):
        pairs = slice(start, start + _REFINED_PAIRS)
        products = queries.embeddings[query_places[pairs]].astype(np.float64)
        products *= gallery.embeddings[gallery_places[pairs]]
        cosines[pairs] = products.sum(axis=1)
    return np.round(cosines / (queries.lengths[query_places] * gallery.lengths[gallery_places]), DECIMALS)


def keep_best(
    query_places: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
    exact: npt.NDArray[np.float64],
    hits: npt.NDArray[np.intp],
    cosines: npt.NDArray[np.float64],
) -> None:
    """Enter the nearest of new pairs into `hits` and `cosines`, where it is nearer than what they hold.

    The rows of one call must come after those of the calls before.
    """
    order = np.lexsort((rows, -exact, query_places))
    improved, first = np.unique(query_places[order], return_index=True)
    best = order[first]
    is_nearer = exact[best] > cosines[improved]
    hits[improved[is_nearer]] = rows[best[is_nearer]]
    cosines[improved[is_nearer]] = exact[best[is_nearer]]


def relative_margin(embedding_size: int) -> float:
    """How far apart two float32 cosines may be that are equal on paper.

    Each is off by at most (size + 8)·eps/2, whatever order it is summed in.
    """
    return (embedding_size + 8) * float(np.finfo(np.float32).eps)


def to_distances(cosines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Squared distances of unit vectors, 0..4."""
    return np.clip(2 - 2 * cosines, 0, 4).round(DECIMALS)


def _near(
    product: npt.NDArray[np.float32], largest: npt.NDArray[np.float32], margins: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places in a tile that may be nearer than all before; `largest`, each query's largest product, is updated."""
    row_largest = product.max(axis=1)
    np.maximum(largest, row_largest, out=largest)
    lowest = largest - margins
    rows = np.flatnonzero(row_largest >= lowest)
    places, near_rows = np.nonzero(product[rows] >= lowest[rows, np.newaxis])
    return rows[places], near_rows


def _margins(queries: Block) -> npt.NDArray[np.float32]:
    """How far apart two products may be that are equal on paper; queries keep their length, which changes no order."""
    margins: npt.NDArray[np.float32] = (relative_margin(queries.embeddings.shape[1]) * queries.lengths).astype(
        np.float32
    )
    return margins


def _tiles(memory_bytes: int, embedding_size: int) -> tuple[int, int]:
    """How many queries to hold, and how many gallery rows to read at once."""
    row_bytes = 4 * max(embedding_size, 1)
    num_free = (memory_bytes - _RESERVED_BYTES) // row_bytes
    num_rows = min(_BLOCK_ROWS, num_free // (2 * _NUM_BLOCKS_BESIDE))
    if num_rows < _MIN_BLOCK_ROWS:
        needed_bytes = _RESERVED_BYTES + 2 * _NUM_BLOCKS_BESIDE * _MIN_BLOCK_ROWS * row_bytes
        raise InputError(
            f"{memory_bytes >> 20} MiB of memory are too little for matching: it takes {-(-needed_bytes >> 20)} MiB"
        )
    return num_free - _NUM_BLOCKS_BESIDE * num_rows, num_rows


def memory_left(limit_bytes: int) -> int:
    """What is left of a limit for the whole process; all of it where there is no /proc to tell what is in use."""
    status = Path("/proc/self/status")
    if not status.exists():
        return limit_bytes
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return max(0, limit_bytes - (int(line.split()[1]) << 10))
