"""Compare the speed of matching with that of a plain matrix product of the same size, and measure its memory.

    python -m benchmarks.search --queries 4000 --gallery 50000

Writes features files of random unit vectors. Each round multiplies matrices of the same size in memory (all queries by
2,048 gallery rows at a time), then matches the files from disk.

The JSON, also printed as one line, has both rates in GFLOP/s (medians over the rounds), the `ratio` of matching to the
matrix product in each round and in the median, and the peak memory of a process that only matches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.figures import Figures, rounded, seconds
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import RESULTS, Record, run_benchmark
from livematch import open_features
from livematch.features.store import FeaturesStore
from livematch.matching.nearest import nearest
from livematch.types import Recognition

EMBEDDING_SIZE = 2048  # as production's
GEMM_ROWS = 2048
NUM_ROUNDS = 3
BOXES = np.array([(0, 0, 2, 2), (1, 0, 2, 2)], np.float32)

# The peak is read from /proc: getrusage would include this process's memory, which a child has until it calls exec.
_MATCH_ALONE = """
import sys
from pathlib import Path
from livematch import open_features
from livematch.matching.nearest import memory_left, nearest
nearest(*(open_features([path]) for path in sys.argv[1:3]), memory_bytes=memory_left(int(sys.argv[3])))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def write_features(path: Path, num_rows: int, seed: int) -> None:
    """Write a features file of `num_rows` random unit vectors, two boxes per image."""
    rng = np.random.default_rng(seed)
    with FeaturesStore(path, model_identity=None, embedding_size=EMBEDDING_SIZE, selection="images") as store:
        for image, start in enumerate(range(0, num_rows, 2)):
            num_boxes = min(2, num_rows - start)
            embeddings = rng.standard_normal((num_boxes, EMBEDDING_SIZE), np.float32)
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            labels = np.array(["garment"] * num_boxes)
            found = Recognition(BOXES[:num_boxes], rng.random(num_boxes, np.float32), labels, embeddings)
            store.append((f"{image // 4:06}", str(image % 4)), [(-1, found)])
        store.finish()


def measure(num_queries: int, num_rows: int, memory_bytes: int) -> Figures:
    """Match and multiply in NUM_ROUNDS interleaved rounds, and return the JSON figures."""
    num_flop = 2 * num_queries * num_rows * EMBEDDING_SIZE
    with tempfile.TemporaryDirectory(prefix="livematch-matching-") as folder:
        paths = [Path(folder) / name for name in ("queries.parquet", "gallery.parquet")]
        for seed, (path, num) in enumerate(zip(paths, (num_queries, num_rows), strict=True)):
            write_features(path, num, seed)
        match_s, gemm_s = [], []
        for _ in range(NUM_ROUNDS):
            gemm_s.append(_gemm_s(num_queries, num_rows))
            match_s.append(seconds(lambda: nearest(*map(open_features, paths), memory_bytes=memory_bytes)))
        command = [sys.executable, "-c", _MATCH_ALONE, *map(str, paths), str(memory_bytes)]
        peak_kib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ratios = [rounded(gemm / match, 3) for gemm, match in zip(gemm_s, match_s, strict=True)]
    gemm, match = (num_flop / statistics.median(times) / 1e9 for times in (gemm_s, match_s))
    return {
        "num_queries": num_queries,
        "num_gallery": num_rows,
        "match_s": round(statistics.median(match_s), 2),
        "match_gflops": round(match, 1),
        "gemm_gflops": round(gemm, 1),
        "ratio": rounded(statistics.median(ratios), 3),
        "ratios": ratios,
        "memory_mib": memory_bytes >> 20,
        "peak_memory_mib": peak_kib >> 10,
    }


def _gemm_s(num_queries: int, num_rows: int) -> float:
    """Time the product of all queries with `num_rows` gallery rows, GEMM_ROWS of them at a time."""
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((num_queries, EMBEDDING_SIZE), np.float32)
    rows = rng.standard_normal((GEMM_ROWS, EMBEDDING_SIZE), np.float32)
    products = np.empty((num_queries, GEMM_ROWS), np.float32)
    start_s = time.perf_counter()
    for start in range(0, num_rows, GEMM_ROWS):
        num = min(GEMM_ROWS, num_rows - start)
        np.matmul(queries, rows[:num].T, out=products[:, :num])
    return time.perf_counter() - start_s


def run(options: argparse.Namespace) -> int:
    record = Record(options)
    figures = measure(options.queries, options.gallery, options.memory_mib << 20)
    record.write(figures)
    print(json.dumps(figures))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("search", __doc__)
    add_number(parser, "--queries", 4000, "number of query boxes")
    add_number(parser, "--gallery", 50000, "number of gallery boxes")
    add_number(parser, "--memory-mib", 1024, "memory limit for matching")
    add_path(parser, "--output", RESULTS / "search.json", "results file")
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
