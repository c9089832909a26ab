import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livematch import Features, FeaturesError, InputError, open_features
from livematch.matching import nearest as nearest_module
from livematch.matching.nearest import nearest


def features(embeddings) -> Features:
    num_rows = len(embeddings)
    return Features(
        sources=["s"] * num_rows,
        names=[str(k) for k in range(num_rows)],
        frame_indices=np.arange(num_rows),
        boxes=np.zeros((num_rows, 4)),
        scores=np.ones(num_rows),
        embeddings=np.asarray(embeddings),
        model_identity="m",
    )


def write(path, embeddings, **options):
    rows = features(embeddings)
    content = {
        "source": rows.sources,
        "name": rows.names,
        "frame_index": pa.array(rows.frame_indices, pa.int32()),
        "box": pa.FixedSizeListArray.from_arrays(pa.array(rows.boxes.ravel()), 4),
        "score": pa.array(rows.scores),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.embeddings.ravel()), rows.embeddings.shape[1]),
    }
    pq.write_table(pa.table(content), path, **options)


@pytest.mark.parametrize("tile", [{}, {"_TILE_QUERIES": 1}, {"_TILE_QUERIES": 5, "_BLOCK_ROWS": 64}])
def test_hits_depend_neither_on_the_tiles_nor_on_the_file(tmp_path, monkeypatch, tile):
    """Many rows are exact repeats, so rounding in the matrix product would decide ties; the gallery is in two files."""
    few = np.random.default_rng(5).normal(size=(12, 64)).astype(np.float32)
    gallery, queries = few[np.arange(301) % 12] * 3, few[np.arange(77) % 12]
    write(tmp_path / "g0", gallery[:100], row_group_size=30)
    write(tmp_path / "g1", gallery[100:])
    write(tmp_path / "q", queries)
    for name, value in (tile | {"_REFINED_PAIRS": 7}).items():
        monkeypatch.setattr(nearest_module, name, value)
    with pytest.raises(FeaturesError, match=r"row 100 .* repeats row 0"):
        open_features([tmp_path / "g0", tmp_path / "g0"])
    table = pq.read_table(tmp_path / "g1")
    pq.write_table(table.set_column(0, "source", pa.array(["t"] * 201)), tmp_path / "g1")
    for some_queries in (features(queries), open_features([tmp_path / "q"])):
        for some_gallery in (features(gallery), open_features([tmp_path / "g0", tmp_path / "g1"])):
            hits, distances = nearest(some_queries, some_gallery)
            assert hits.tolist() == [[k % 12] for k in range(77)]
            assert np.abs(distances).max() < 1e-12


def test_rows_of_the_same_direction_tie_whatever_their_length():
    rng = np.random.default_rng(8)
    directions = rng.integers(-9, 10, (40, 64))
    gallery = (directions[:, np.newaxis] * np.array([7, 1, 3, 5, 11])[:, np.newaxis]).reshape(200, 64)
    hits, _ = nearest(features(directions + rng.integers(-1, 2, (40, 64))), features(gallery))
    assert hits[:, 0].tolist() == list(range(0, 200, 5))


def test_hits_are_those_of_float64():
    rng = np.random.default_rng(6)
    queries, gallery = rng.normal(size=(50, 40)), rng.normal(size=(3000, 40))
    hits, distances = nearest(features(queries), features(gallery))
    units = [(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (queries, gallery)]
    expected = 2 - 2 * units[0] @ units[1].T
    assert hits[:, 0].tolist() == expected.argmin(axis=1).tolist()
    assert distances[:, 0] == pytest.approx(expected.min(axis=1), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_sources", [1, 2, 5])
def test_the_nearest_row_of_each_of_the_nearest_sources(monkeypatch, seed, num_sources):
    """Compared with a loop over all pairs; small integers make many distances equal, small tiles many merges."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(nearest_module, "_TILE_QUERIES", int(rng.integers(1, 9)))
    monkeypatch.setattr(nearest_module, "_BLOCK_ROWS", int(rng.integers(3, 30)))
    monkeypatch.setattr(nearest_module, "_MIN_BLOCK_ROWS", 1)
    embeddings = rng.integers(-1, 2, size=(60, 5)).astype(np.float32)
    embeddings[~embeddings.any(axis=1)] = 1
    queries, gallery = features(embeddings[:20]), features(embeddings[20:])
    gallery.sources = [f"s{k}" for k in rng.integers(0, 4, len(gallery))]
    queries.labels, gallery.labels = ([str(k) for k in rng.integers(0, 3, n)] for n in (20, 40))
    same_label = seed % 2 == 0
    hits, distances = nearest(queries, gallery, num_sources=num_sources, same_label=same_label)
    for query, (label, q) in enumerate(zip(queries.labels, queries.embeddings.astype(float), strict=True)):
        best: dict[str, tuple[float, int]] = {}
        for row, g in enumerate(gallery.embeddings.astype(float)):
            pair = round(2 - 2 * (q @ g) / np.sqrt((q @ q) * (g @ g)), 12), row
            if not same_label or gallery.labels[row] == label:
                best[gallery.sources[row]] = min(best.get(gallery.sources[row], pair), pair)
        expected = sorted(best.values())[:num_sources]
        found = list(zip(distances[query].tolist(), hits[query].tolist(), strict=True))
        assert found[: len(expected)] == [(pytest.approx(d, abs=1e-11), row) for d, row in expected]
        assert np.isinf(distances[query, len(expected) :]).all()


def test_a_zero_embedding_in_a_file_is_named(tmp_path):
    embeddings = np.ones((5, 8), np.float32)
    write(tmp_path / "g", embeddings)
    table = pq.read_table(tmp_path / "g")
    embeddings[3] = 0
    zeroed = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), 8)
    pq.write_table(table.set_column(5, "embedding", zeroed), tmp_path / "g")
    with pytest.raises(FeaturesError, match=r"embedding of row 3 \(s, 3\) is zero"):
        nearest(open_features([tmp_path / "g"]), open_features([tmp_path / "g"]))


def test_too_small_a_memory_limit_is_refused():
    some = features(np.ones((1, 2048)))
    with pytest.raises(InputError, match=r"matching needs at least \d+ MiB of memory, got 1 MiB"):
        nearest(some, some, memory_bytes=1 << 20)


@pytest.fixture(scope="module")
def large_and_small(tmp_path_factory) -> tuple[str, str]:
    """Paths of two features files: 131 MB in one row group, and 1 MB."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(7)
    for name, num_rows in (("large", 16_000), ("small", 100)):
        write(folder / name, rng.standard_normal((num_rows, 2048), np.float32), use_dictionary=False)
    return str(folder / "large"), str(folder / "small")


@pytest.mark.parametrize("order", [1, -1])
def test_memory_stays_within_the_limit(large_and_small, order):
    """Python and its imports alone take 120 MB, or 160 if pyarrow finds pandas, so the large file does not fit."""
    code = (
        "import sys; from pathlib import Path;"
        "from livematch import open_features; from livematch.matching import nearest;"
        "q, g = (open_features([path]) for path in sys.argv[1:]);"
        "nearest.nearest(q, g, memory_bytes=nearest.memory_left(240 << 20));"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, *large_and_small[::order]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 240 << 10
