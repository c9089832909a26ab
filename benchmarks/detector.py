"""How much faster ONNX Runtime runs the exported detector than detectron2 runs the same weights, on CPU.

    python -m benchmarks.detector --config production --height 608 --width 1080 --rounds 5

Exports made-up weights (or takes --onnx, made from the same seed), then runs both on one image in turn, so
that a change in the machine's load meets both. Needs detectron2.
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

from benchmarks.harness.results import RESULTS, Record, rounded
from export.detector import CONFIGS
from export.graphs.checkpoints import build_detector_graph
from export.graphs.precision import PRECISIONS
from export.onnx.export import export_detector
from export.signature import PADDING_MULTIPLE
from training.detector.model import build_detector


def interleaved(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Returns the seconds of each call, after one of each to warm up; the order turns round every time."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for turn in range(rounds):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            start_s = time.perf_counter()
            (first, second)[index]()
            times[index].append(time.perf_counter() - start_s)
    return times


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up weights and of the picture")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="made before with the same config and seed")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the export")
    parser.add_argument("--height", type=int, default=608)
    parser.add_argument("--width", type=int, default=1080)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: build/benchmarks/CONFIG_detector.json")
    arguments = parser.parse_args(argv)
    run = Record("detector", arguments, argv)

    config, seed = CONFIGS[arguments.config], arguments.seed
    torch.set_num_threads(arguments.threads)
    model = build_detector(config).eval()
    model.load_state_dict(build_detector_graph(None, config=config, random_seed=seed).state_dict(), strict=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.onnx or Path(folder) / "detector.onnx"
        if arguments.onnx is None:
            export_detector(None, path, config=config, random_seed=seed, precision=arguments.precision)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    height, width = arguments.height, arguments.width
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed)) * 255
    image = functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    padding = (0, -width % PADDING_MULTIPLE, 0, -height % PADDING_MULTIPLE)
    feeds = {
        "pixels": functional.pad(image - model.pixel_mean, padding)[None].numpy(),
        "image_size": np.array([[height, width]], np.float32),
    }

    @torch.inference_mode()
    def run_detectron2() -> object:
        return model.inference([{"image": image}], do_postprocess=False)

    detectron2_s, onnx_s = interleaved(run_detectron2, lambda: session.run(None, feeds), arguments.rounds)
    rounds = [
        {"detectron2_s": rounded(eager), "onnxruntime_s": rounded(engine), "speedup": rounded(eager / engine)}
        for eager, engine in zip(detectron2_s, onnx_s, strict=True)
    ]
    figures = {
        "precision": arguments.precision,
        "weights": f"made up (seed {seed})",
        "image_size": [height, width],
        "threads": arguments.threads,
        "speedup": rounded(statistics.median(turn["speedup"] for turn in rounds)),
        "rounds": rounds,
    }
    run.write(figures, arguments.output or RESULTS / f"{arguments.config}_detector.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
