"""NVIDIA's perf_analyzer beside our own closed loop: on the ensemble in turns, and on each model by itself.

    python -m benchmarks.perf_analyzer --concurrency 4

The program lies in tritonclient's wheels up to 2.60; 2.51.0 is taken because later ones need glibc 2.38. It is fetched
once with `pip download` into --cache (put the wheel there to work offline), and runs with two libraries that
nvidia-pytriton carries. It is given the same pictures, and for each model the tensors that model got for them. Its
windows count requests, as ours do: by time alone, which pictures fell into a window of slow networks would decide.
"""

import argparse
import base64
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.bench import Bench, measure, run_on_bench
from benchmarks.harness.engines import Arrays, Engines
from benchmarks.harness.load import NUM_STABLE_WINDOWS
from benchmarks.harness.results import RESULTS, rounded
from benchmarks.harness.workload import add_workload_arguments
from export.config import CONFIGS

PACKAGE = "tritonclient==2.51.0"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
STABLE_WITHIN_PERCENT, ANY_PERCENT = "10", "999"
MAX_INPUTS = 16  # per model; perf_analyzer sends them one after another, over and over


def fetch_perf_analyzer(cache: Path) -> tuple[Path, dict[str, str]]:
    """The program and the environment it runs in.

    Raises:
        RuntimeError: it is not in the cache and cannot be downloaded, or nvidia-pytriton is not installed.
    """
    program = cache / "perf_analyzer"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if not list(cache.glob("tritonclient-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            answer = subprocess.run([*command, "--dest", str(cache), PACKAGE], capture_output=True, text=True)
            if answer.returncode != 0:
                raise RuntimeError(f"pip download {PACKAGE} failed: {answer.stderr.strip().splitlines()[-1]}")
        wheel = next(cache.glob("tritonclient-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/bin/perf_analyzer")]
            program.write_bytes(archive.read(member))
        program.chmod(0o755)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise RuntimeError("perf_analyzer needs the libraries of nvidia-pytriton: pip install 'livematch[server]'")
    carried = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    libraries = cache / "libraries"
    libraries.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        (libraries / name).unlink(missing_ok=True)
        (libraries / name).symlink_to(next(carried.glob(pattern)))
    return program.resolve(), {**os.environ, "LD_LIBRARY_PATH": f"{libraries.resolve()}:{carried}"}


class PerfAnalyzer:
    """Runs the program against one server; `folder` is for its inputs and its answers."""

    def __init__(self, cache: Path, url: str, folder: Path) -> None:
        self._program, self._environment = fetch_perf_analyzer(cache)
        self._url = url
        self._folder = folder

    def run(
        self, model: str, inputs: Sequence[Arrays], *, concurrency: int, num_requests: int, is_batched: bool
    ) -> dict[str, Any]:
        """Its figures for one model and concurrency, with windows of at least so many requests.

        Raises:
            RuntimeError: it failed; with its last line.
        """
        data = self._folder / f"{model}.json"
        data.write_text(json.dumps({"data": [_encode(feeds, is_batched) for feeds in inputs]}))
        table = self._folder / f"{model}.csv"
        table.unlink(missing_ok=True)
        command = [
            *(str(self._program), "-m", model, "-u", self._url, "-i", "grpc", "--input-data", str(data)),
            *("--concurrency-range", str(concurrency), "-f", str(table), "--max-trials", "8"),
            *("--measurement-mode", "count_windows", "--measurement-request-count", str(num_requests)),
            "--stability-percentage",
        ]
        for within in (STABLE_WITHIN_PERCENT, ANY_PERCENT):  # without stability it keeps what it measured to itself
            answer = subprocess.run([*command, within], env=self._environment, capture_output=True, text=True)
            if table.exists():
                break
        else:
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            raise RuntimeError(f"perf_analyzer on {model}: {lines[-1] if lines else 'no output'}")
        (row,) = csv.DictReader(table.read_text().splitlines())
        return {
            "concurrency": concurrency,
            "requests_per_window": num_requests,
            "is_stable": within == STABLE_WITHIN_PERCENT,
            "inferences_per_s": rounded(float(row["Inferences/Second"])),
            **{f"p{percent}_ms": rounded(float(row[f"p{percent} latency"]) / 1e3) for percent in (50, 90, 95, 99)},
        }


def model_inputs(engines: Engines, bench: Bench) -> dict[str, list[tuple[Arrays, float]]]:
    """What each model is fed for the bench's pictures, and the seconds it takes.

    Of those with a batch, single rows, as perf_analyzer batches.
    """
    inputs: dict[str, list[tuple[Arrays, float]]] = {}
    for picture in bench.pictures:
        for call in engines.recognize(picture.kind, picture.pixels):
            if call.model != "crop":
                rows = len(next(iter(call.feeds.values())))
                feeds = [{name: array[row : row + 1] for name, array in call.feeds.items()} for row in range(rows)]
            else:
                feeds = [call.feeds]
            inputs.setdefault(call.model, []).extend((request, call.elapsed_s / len(feeds)) for request in feeds)
    return {model: found[:MAX_INPUTS] for model, found in inputs.items()}


def _encode(feeds: Arrays, is_batched: bool) -> dict[str, Any]:
    """One request in perf_analyzer's own JSON; a batched model's shapes are without the batch."""
    return {
        name: {
            "content": {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()},
            "shape": list(array.shape[1:] if is_batched else array.shape),
        }
        for name, array in feeds.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload_arguments(parser, "perf_analyzer")
    parser.add_argument("--cache", type=Path, default=RESULTS / "perf_analyzer", metavar="DIR")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of the ensemble, default: %(default)s")
    parser.add_argument("--window-s", type=float, default=4.0, metavar="S", help="default: %(default)s")
    options = parser.parse_args(argv)

    def compare(bench: Bench) -> dict[str, Any]:
        inputs = model_inputs(Engines(bench.repository, CONFIGS[options.config](), num_threads=0), bench)
        ensemble = f"recognize_{options.kind}"
        pictures = [{"image": picture.pixels[None]} for picture in bench.pictures]
        rounds = []
        with tempfile.TemporaryDirectory(prefix="livematch-perf-analyzer-") as folder:
            analyzer = PerfAnalyzer(options.cache, bench.url, Path(folder))
            for turn in range(options.rounds):
                ours, _ = measure(
                    bench, options.concurrency, window_s=options.window_s, max_windows=8, seed=options.seed + turn
                )
                theirs = analyzer.run(
                    ensemble,
                    pictures,
                    concurrency=options.concurrency,
                    num_requests=-(-ours["latency"]["num_answered"] // NUM_STABLE_WINDOWS),
                    is_batched=True,
                )
                ratio = rounded(theirs["inferences_per_s"] / ours["pictures_per_s"])
                figures = {"ours_per_s": ours["pictures_per_s"], "ours_is_stable": ours["is_stable"]}
                rounds.append({**figures, "perf_analyzer": theirs, "ratio": ratio})
                print(f"{ensemble}: ours {ours['pictures_per_s']}, perf_analyzer {theirs}", flush=True)
            models = {}
            for model, requests in inputs.items():
                feeds, elapsed_s = zip(*requests, strict=True)
                models[model] = analyzer.run(
                    model,
                    feeds,
                    concurrency=1,
                    num_requests=max(len(feeds), round(options.window_s / statistics.mean(elapsed_s))),
                    is_batched=model != "crop",
                )
                print(f"{model}: {models[model]}", flush=True)
        return {
            "package": PACKAGE,
            "window_s": options.window_s,
            "median_ratio": rounded(statistics.median(turn["ratio"] for turn in rounds)),
            "rounds": rounds,
            "models": models,
        }

    try:
        fetch_perf_analyzer(options.cache)
    except RuntimeError as error:
        print(f"benchmarks.perf_analyzer: {error}", file=sys.stderr)
        return 1
    return run_on_bench(options, argv, compare)


if __name__ == "__main__":
    raise SystemExit(main())
