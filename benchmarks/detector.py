"""Measure how much faster ONNX Runtime runs the exported detector than detectron2 runs the same weights, on the CPU.

    python -m benchmarks.detector --config production --height 608 --width 1080 --rounds 5

Exports a detector with random weights and runs both on one random image, interleaved, so that a change in the machine's
load affects both. Needs detectron2.

The JSON has the median `speedup` and, under `rounds`, the seconds of both and their ratio.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from benchmarks.harness.eager import build_detectron2
from benchmarks.harness.figures import rounded
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import RESULTS, Record
from export.detector import CONFIGS
from export.graphs.checkpoints import build_detector_graph
from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from export.signature import PADDING_MULTIPLE
from livematch.cli.commands import run_command


def interleaved(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Call both once per round, after one call each as warm-up, and return the seconds of the calls.

    The order is reversed in every other round.
    """
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            start_s = time.perf_counter()
            (first, second)[index]()
            times[index].append(time.perf_counter() - start_s)
    return times


def open_engine(options: argparse.Namespace) -> onnxruntime.InferenceSession:
    """Export the detector with random weights, and open it with --threads threads."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        config = CONFIGS[options.config]
        export_detector(None, path, config=config, random_seed=options.seed, precision=options.precision)
        return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def run(options: argparse.Namespace, argv: Sequence[str] | None) -> int:
    record = Record("detector", options, argv)
    config, seed = CONFIGS[options.config], options.seed
    torch.set_num_threads(options.threads)
    model = build_detectron2(build_detector_graph(None, config=config, random_seed=seed))
    session = open_engine(options)

    height, width = options.height, options.width
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed)) * 255
    image = functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    padding = (0, -width % PADDING_MULTIPLE, 0, -height % PADDING_MULTIPLE)
    feeds = {
        "pixels": functional.pad(image - model.pixel_mean, padding)[None].numpy(),
        "image_size": np.array([[height, width]], np.float32),
    }

    def run_detectron2() -> object:
        with torch.inference_mode():
            return model.inference([{"image": image}], do_postprocess=False)

    detectron2_s, onnx_s = interleaved(run_detectron2, lambda: session.run(None, feeds), options.rounds)
    rounds = [
        {"detectron2_s": rounded(eager), "onnxruntime_s": rounded(engine), "speedup": rounded(eager / engine)}
        for eager, engine in zip(detectron2_s, onnx_s, strict=True)
    ]
    figures = {
        "precision": options.precision,
        "weights": f"random (seed {seed})",
        "image_size": [height, width],
        "threads": options.threads,
        "speedup": rounded(statistics.median(turn["speedup"] for turn in rounds)),
        "rounds": rounds,
    }
    record.write(figures, options.output or RESULTS / f"{options.config}_detector.json")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production", help="which detector")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and the random image")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the export")
    add_number(parser, "--height", 608, "image height in pixels")
    add_number(parser, "--width", 1080, "image width in pixels")
    add_number(parser, "--rounds", 5, "number of rounds")
    add_number(parser, "--threads", len(os.sched_getaffinity(0)), "threads for each of the two")
    add_path(parser, "--output", None, "results file; default: build/benchmarks/CONFIG_detector.json")
    options = parser.parse_args(argv)
    return run_command("benchmarks.detector", lambda: run(options, argv))


if __name__ == "__main__":
    raise SystemExit(main())
