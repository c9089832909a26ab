"""Measure throughput with NVIDIA's perf_analyzer and with our own closed loop, to check that they agree.

    python -m benchmarks.perf_analyzer --concurrency 4

On the ensemble, runs of the two alternate and send the same images. Each other model is measured with perf_analyzer
only, on the tensors it gets for these images. Its windows end after a number of requests, as ours do, because windows
of fixed time would depend on which images fall into them: slow networks answer only a few requests per window.

The program is part of tritonclient's wheels up to 2.60; 2.51.0 is used because later ones need glibc 2.38. `pip
download` fetches it once into --cache (put the wheel there to work offline). It needs two libraries of nvidia-pytriton.

The JSON has the `median_ratio` of perf_analyzer's throughput over ours, the figures of every round on the ensemble, and
under `models` perf_analyzer's figures for each model with one request in flight.
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

import numpy as np

from benchmarks.harness.engines import Engines
from benchmarks.harness.figures import Figures, median, rounded
from benchmarks.harness.load import NUM_STABLE_WINDOWS, PERCENTILES
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import RESULTS
from benchmarks.harness.server import ServerUnderTest, measure_closed_loop, run_on_server
from benchmarks.harness.workload import add_workload_arguments, pipeline_of, run_workload
from export.parity.compare import Arrays
from livematch.errors import LivematchError

PACKAGE = "tritonclient==2.51.0"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
STABLE_WITHIN_PERCENT, ANY_PERCENT = "10", "999"
MAX_INPUTS = 16  # per model; perf_analyzer sends them one after another, again and again


def install_perf_analyzer(cache: Path) -> tuple[Path, dict[str, str]]:
    """Return the program, downloaded unless it is in the cache, and the environment variables to run it with.

    Raises LivematchError if it cannot be downloaded or nvidia-pytriton is not installed.
    """
    program = cache / "perf_analyzer"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if not list(cache.glob("tritonclient-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            answer = subprocess.run([*command, "--dest", str(cache), PACKAGE], capture_output=True, text=True)
            if answer.returncode != 0:
                raise LivematchError(f"pip download {PACKAGE} failed: {answer.stderr.strip().splitlines()[-1]}")
        wheel = next(cache.glob("tritonclient-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/bin/perf_analyzer")]
            program.write_bytes(archive.read(member))
        program.chmod(0o755)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LivematchError("perf_analyzer needs the libraries of nvidia-pytriton: pip install 'livematch[server]'")
    bundled = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    libraries = cache / "libraries"
    libraries.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        (libraries / name).unlink(missing_ok=True)
        (libraries / name).symlink_to(next(bundled.glob(pattern)))
    return program.resolve(), {**os.environ, "LD_LIBRARY_PATH": f"{libraries.resolve()}:{bundled}"}


def run_perf_analyzer(
    cache: Path, url: str, model: str, inputs: Sequence[Arrays], concurrency: int, num_requests: int
) -> Figures:
    """Measure one model of a server in windows of at least `num_requests` requests, and return JSON of the figures.

    Raises LivematchError if the program fails, with its last line of output, or cannot be installed in `cache`.
    """
    program, environment = install_perf_analyzer(cache)
    with tempfile.TemporaryDirectory(prefix="livematch-perf-analyzer-") as folder:
        data, table = Path(folder) / "inputs.json", Path(folder) / "figures.csv"
        data.write_text(json.dumps({"data": [_encode(feeds, is_batched=model != "crop") for feeds in inputs]}))
        command = [
            *(str(program), "-m", model, "-u", url, "-i", "grpc", "--input-data", str(data)),
            *("--concurrency-range", str(concurrency), "-f", str(table), "--max-trials", "8"),
            *("--measurement-mode", "count_windows", "--measurement-request-count", str(num_requests)),
            "--stability-percentage",
        ]
        for percent in (STABLE_WITHIN_PERCENT, ANY_PERCENT):  # it writes the table only if the windows are stable
            answer = subprocess.run([*command, percent], env=environment, capture_output=True, text=True)
            if table.exists():
                break
        else:
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            raise LivematchError(f"perf_analyzer on {model}: {lines[-1] if lines else 'no output'}")
        (row,) = csv.DictReader(table.read_text().splitlines())
    return {
        "concurrency": concurrency,
        "requests_per_window": num_requests,
        "is_stable": percent == STABLE_WITHIN_PERCENT,
        "inferences_per_s": rounded(float(row["Inferences/Second"])),
        **{f"p{rank}_ms": rounded(float(row[f"p{rank} latency"]) / 1e3) for rank in PERCENTILES},
    }


def model_inputs(engines: Engines, server: ServerUnderTest) -> dict[str, list[tuple[Arrays, float]]]:
    """Return, by model, inputs that it gets for the server's images, each with the seconds it takes in the engine.

    Inputs of batched models are single rows, since perf_analyzer makes the batches.
    """
    inputs: dict[str, list[tuple[Arrays, float]]] = {}
    for pixels in server.images:
        for call in engines.recognize(server.kind, pixels):
            requests = [call.feeds]
            if call.model != "crop":
                rows = range(len(next(iter(call.feeds.values()))))
                requests = [{name: array[row : row + 1] for name, array in call.feeds.items()} for row in rows]
            elapsed_s = call.elapsed_s / len(requests)
            inputs.setdefault(call.model, []).extend((request, elapsed_s) for request in requests)
    return {model: requests[:MAX_INPUTS] for model, requests in inputs.items()}


def compare_on_ensemble(server: ServerUnderTest, options: argparse.Namespace) -> list[Figures]:
    """Measure the ensemble with our loop and with perf_analyzer in each round, and return JSON of the rounds."""
    ensemble, concurrency = f"recognize_{options.kind}", options.concurrency
    images = [{"image": pixels[None]} for pixels in server.images]
    rounds = []
    for seed in range(options.seed, options.seed + options.rounds):
        ours = measure_closed_loop(server, concurrency, options.window_s, seed)
        num_requests = -(-ours["latency"]["num_answered"] // NUM_STABLE_WINDOWS)
        theirs = run_perf_analyzer(options.cache, server.url, ensemble, images, concurrency, num_requests)
        rounds.append(
            {
                "ours_per_s": ours["pictures_per_s"],
                "ours_is_stable": ours["is_stable"],
                "perf_analyzer": theirs,
                "ratio": rounded(theirs["inferences_per_s"] / ours["pictures_per_s"]),
            }
        )
        print(f"{ensemble}: ours {ours['pictures_per_s']}, perf_analyzer {theirs}", flush=True)
    return rounds


def measure(server: ServerUnderTest, options: argparse.Namespace) -> Figures:
    inputs = model_inputs(Engines(options.repository, pipeline_of(options), num_threads=0), server)
    rounds = compare_on_ensemble(server, options)
    models = {}
    for model, requests in inputs.items():
        feeds, elapsed_s = zip(*requests, strict=True)
        num_requests = max(len(feeds), round(options.window_s / statistics.mean(elapsed_s)))
        models[model] = run_perf_analyzer(options.cache, server.url, model, feeds, 1, num_requests)
        print(f"{model}: {models[model]}", flush=True)
    return {
        "package": PACKAGE,
        "window_s": options.window_s,
        "median_ratio": median(rounds, "ratio"),
        "rounds": rounds,
        "models": models,
    }


def _encode(feeds: Arrays, *, is_batched: bool) -> Figures:
    """Return one request in perf_analyzer's JSON format; for batched models its shapes omit the batch."""
    return {
        name: {
            "content": {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()},
            "shape": list(array.shape[1:] if is_batched else array.shape),
        }
        for name, array in feeds.items()
    }


def run(options: argparse.Namespace) -> int:
    install_perf_analyzer(options.cache)  # before minutes of preparation, since it may fail
    return run_on_server(options, measure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("perf_analyzer", __doc__)
    add_workload_arguments(parser)
    add_path(parser, "--cache", RESULTS / "perf_analyzer", "folder to keep the program in")
    add_number(parser, "--concurrency", 4, "requests in flight for the ensemble")
    add_number(parser, "--rounds", 3, "number of rounds for the ensemble")
    add_number(parser, "--window-s", 4.0, "minimum duration of a window")
    return run_workload(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
