"""Measure how much faster ONNX Runtime runs the exported detector than detectron2 runs the same weights, on the CPU.

    python -m benchmarks.detector --config production --height 608 --width 1080 --rounds 5

Exports a detector with random weights and runs both on one random image, interleaved, so that a change in the machine's
load affects both. Needs detectron2.

The JSON has the median `speedup` and, under `rounds`, the seconds of both and their ratio.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.harness.eager import build_detectron2
from benchmarks.harness.engines import open_session
from benchmarks.harness.figures import alternate, median, rounded, seconds
from benchmarks.harness.options import add_number, add_path, new_parser
from benchmarks.harness.results import RESULTS, Record, run_benchmark
from export.detector import CONFIGS
from export.graphs.checkpoints import build_detector_graph
from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from export.signature import PADDING_MULTIPLE


def run(options: argparse.Namespace) -> int:
    options.output = options.output or RESULTS / f"{options.config}_detector.json"
    record = Record(options)
    torch.set_num_threads(options.threads)
    weights: dict[str, Any] = {"config": CONFIGS[options.config], "random_seed": options.seed}
    model = build_detectron2(build_detector_graph(None, **weights))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        export_detector(None, path, **weights, precision=options.precision)
        session = open_session(path, options.threads)

    height, width = options.height, options.width
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(options.seed)) * 255
    image = functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    padding = (0, -width % PADDING_MULTIPLE, 0, -height % PADDING_MULTIPLE)
    feeds = {
        "pixels": functional.pad(image - model.pixel_mean, padding)[None].numpy(),
        "image_size": np.array([[height, width]], np.float32),
    }

    @torch.inference_mode()
    def run_detectron2() -> None:
        model.inference([{"image": image}], do_postprocess=False)

    calls = {"detectron2_s": run_detectron2, "onnxruntime_s": lambda: session.run(None, feeds)}
    timers = {name: partial(seconds, call) for name, call in calls.items()}
    alternate(0, **timers)  # warm-up
    rounds = []
    for turn in range(options.rounds):
        times_s = alternate(turn, **timers)
        speedup = rounded(times_s["detectron2_s"] / times_s["onnxruntime_s"])
        rounds.append({**{name: rounded(seconds) for name, seconds in times_s.items()}, "speedup": speedup})
    record.write(
        {
            "precision": options.precision,
            "weights": f"random (seed {options.seed})",
            "image_size": [height, width],
            "threads": options.threads,
            "speedup": median(rounds, "speedup"),
            "rounds": rounds,
        }
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("detector", __doc__)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production", help="which detector")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and the random image")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the export")
    add_number(parser, "--height", 608, "image height in pixels")
    add_number(parser, "--width", 1080, "image width in pixels")
    add_number(parser, "--rounds", 5, "number of rounds")
    add_number(parser, "--threads", len(os.sched_getaffinity(0)), "threads for each of the two")
    add_path(parser, "--output", None, "results file; default: build/benchmarks/CONFIG_detector.json")
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
