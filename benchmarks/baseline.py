"""Measure how much faster the pipeline is than the baseline, with the same weights on the same clips.

    python -m benchmarks.baseline --clips 2 --frames 16 --rounds 3

The baseline follows the description of the contest solution: eager PyTorch, one image at a time. The detector writes
its boxes to a JSON file. Then each network reads that file and, for every box, seeks the frame in the video, decodes it
again, crops, embeds and writes JSON; a last step joins the four embeddings. The pipeline is `livematch embed`: each
clip is decoded once, each clip has one request in flight, and features go to Parquet.

The two run alternately on the same clips, so that a change in the machine's load affects both; the server is idle while
the baseline runs. If the machine also does other work, the one with more threads gets more of it. That distorts the
ratio of times, but not that of processor seconds.

The JSON has medians over the rounds: `headline_speedup`; `speedup_unread`, the speed-up if the baseline read its frames
in no time; and `cpu_ratio`, the baseline's processor seconds over the pipeline's. Each of `rounds` has the times of
every step, and under `agreement` how many of the baseline's boxes the pipeline found, and the lowest cosine of their
embeddings.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from benchmarks.harness.eager import DETECTORS, EagerNetworks
from benchmarks.harness.figures import Figures, alternate, median, rounded
from benchmarks.harness.images import link_clips, list_clips, read_clips, seek_frame, spread_frames
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.resources import read_usage
from benchmarks.harness.server import serve
from benchmarks.harness.workload import add_server_arguments, prepare_world, run_workload
from export.config import PipelineConfig
from livematch import Client, Features, LocalServer, read_features
from livematch.errors import InputError
from livematch.pipeline.embed import EmbedOptions, embed_videos
from livematch.types import Pixels

Row = dict[str, Any]
"""One box, with the keys clip, frame, box and embedding."""

MIN_IOU = 0.9
"""Boxes that overlap at least this much count as the same box. The two video decoders round differently."""


def run_baseline(
    networks: EagerNetworks, clips: Sequence[Path], frames: range, folder: Path
) -> tuple[dict[str, float], list[Row]]:
    """Detect and embed all boxes in these frames of all clips, with the JSON files in `folder`.

    Returns the seconds of each step, with the total of reading frames as `reading_s`, and the boxes with embeddings.
    """
    times_s = {"reading_s": 0.0}

    def read(clip: Path, index: int) -> Pixels:
        start_s = time.perf_counter()
        pixels = seek_frame(clip, index)
        times_s["reading_s"] += time.perf_counter() - start_s
        return pixels

    start_s = time.perf_counter()
    detected = []
    for clip in clips:
        for index in frames:
            boxes, _ = networks.detect("frame", read(clip, index))
            detected += [{"clip": str(clip), "frame": index, "box": box.tolist()} for box in boxes]
    (folder / "detections.json").write_text(json.dumps(detected))
    times_s["detect_s"] = time.perf_counter() - start_s
    for model in networks.config.embedder_models:
        start_s = time.perf_counter()
        rows = json.loads((folder / "detections.json").read_text())
        for row in rows:
            crop = crop_to_template(read(Path(row["clip"]), row["frame"]), row["box"], networks.config)
            row["embedding"] = networks.embed(model, crop[None])[0].tolist()
        (folder / f"{model}.json").write_text(json.dumps(rows))
        times_s[f"{model}_s"] = time.perf_counter() - start_s
    start_s = time.perf_counter()
    parts = [json.loads((folder / f"{model}.json").read_text()) for model in networks.config.embedder_models]
    joined = []
    for rows in zip(*parts, strict=True):
        embedding = np.concatenate([row["embedding"] for row in rows])
        joined.append({**rows[0], "embedding": (embedding / np.linalg.norm(embedding)).tolist()})
    (folder / "features.json").write_text(json.dumps(joined))
    times_s["join_s"] = time.perf_counter() - start_s
    return times_s, joined


def crop_to_template(image: Pixels, box: Sequence[float], config: PipelineConfig) -> Pixels:
    """Cut out a box, truncated to pixels, and resize it to the template with the nearest aspect ratio."""
    x0, y0, x1, y1 = map(int, box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    ratio = min(config.templates, key=lambda ratio: abs(ratio - (x1 - x0) / (y1 - y0)))
    crop = cv2.resize(image[y0:y1, x0:x1], config.templates[ratio], interpolation=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def agreement(rows: Sequence[Row], features: Features) -> Figures:
    """Return JSON: how many of the baseline's boxes the pipeline found, and the lowest cosine of their embeddings."""
    cosines = []
    sources = np.array(features.sources)
    for row in rows:
        overlaps = box_iou(torch.tensor([row["box"]]), torch.from_numpy(features.boxes))[0].numpy()
        overlaps *= (sources == Path(row["clip"]).stem) & (features.frame_indices == row["frame"])
        if overlaps.max(initial=0) >= MIN_IOU:
            cosines.append(float(np.dot(features.embeddings[overlaps.argmax()], row["embedding"])))
    return {
        "num_baseline_boxes": len(rows),
        "num_pipeline_boxes": len(features.boxes),
        "num_same_boxes": len(cosines),
        "min_cosine": rounded(min(cosines), 6) if cosines else None,
    }


@dataclass(frozen=True)
class Comparison:
    """The baseline and the pipeline, which run on the same frames of the same clips with the same weights."""

    networks: EagerNetworks
    client: Client
    server_pid: int
    concurrency: int  # of the pipeline

    def run(self, clips: list[Path], frames: range, folder: Path, turn: int) -> dict[str, tuple[float, float, Any]]:
        """Return the results of `_time` for "pipeline", which runs first in even rounds, and for "baseline"."""
        link_clips(clips, folder / "clips")
        output, flow = folder / "features.parquet", EmbedOptions(concurrency=self.concurrency)
        return alternate(
            turn,
            pipeline=partial(self._time, embed_videos, self.client, folder / "clips", output, flow, frames=frames),
            baseline=partial(self._time, run_baseline, self.networks, clips, frames, folder),
        )

    def run_round(self, clips: list[Path], frames: range, folder: Path, turn: int) -> Figures:
        """Run both and return JSON of the round; raise InputError if the baseline found no box to embed."""
        timed = self.run(clips, frames, folder, turn)
        pipeline_s, pipeline_cpu_s, _ = timed["pipeline"]
        baseline_s, baseline_cpu_s, (steps_s, rows) = timed["baseline"]
        if not rows:
            raise InputError(f"the baseline found no box in {len(frames)} frames of {', '.join(map(str, clips))}")
        return {
            "pipeline_s": rounded(pipeline_s),
            "baseline_s": rounded(baseline_s),
            "speedup": rounded(baseline_s / pipeline_s),
            "speedup_unread": rounded((baseline_s - steps_s["reading_s"]) / pipeline_s),
            "pipeline_cpu_s": rounded(pipeline_cpu_s),
            "baseline_cpu_s": rounded(baseline_cpu_s),
            "cpu_ratio": rounded(baseline_cpu_s / pipeline_cpu_s),
            "baseline_steps": {step: rounded(seconds) for step, seconds in steps_s.items()},
            "agreement": agreement(rows, read_features(folder / "features.parquet")),
        }

    def _time(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, float, Any]:
        """Return a call's elapsed seconds, the processor seconds of this process and the server, and its result."""
        start_s, start_cpu_s = time.perf_counter(), self._cpu_s()
        result = call(*arguments, **options)
        return time.perf_counter() - start_s, self._cpu_s() - start_cpu_s, result

    def _cpu_s(self) -> float:
        return time.process_time() + read_usage(self.server_pid).server_cpu_s


def measure(
    options: argparse.Namespace, clips: list[Path], frames: range, server: LocalServer, config: PipelineConfig
) -> Figures:
    """Warm both up, compare them in `options.rounds` rounds, and return the figures."""
    networks = EagerNetworks(config, checkpoints=options.checkpoints, detector=options.detector, device=options.device)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="livematch-baseline-") as folder, Client(server.url) as client:
        comparison = Comparison(networks, client, server.pid, options.concurrency)
        comparison.run(clips[:1], frames[:1], Path(folder) / "warm-up", 0)
        for width, height in config.templates.values():  # the frame may have no boxes
            for model in config.embedder_models:
                networks.embed(model, np.zeros((1, height, width, 3), np.uint8))
        for turn in range(options.rounds):
            rounds.append(comparison.run_round(clips, frames, Path(folder) / str(turn), turn))
            print(f"round {turn + 1}: pipeline {rounds[-1]['speedup']} times as fast", flush=True)
    return {
        "headline_speedup": median(rounds, "speedup"),
        "cpu_ratio": median(rounds, "cpu_ratio"),
        "speedup_unread": median(rounds, "speedup_unread"),
        "num_clips": len(clips),
        "num_frames": len(frames),
        "threads": options.threads,
        "device": options.device,
        "eager_detector": options.detector,
        "num_in_flight": min(options.concurrency, len(clips)),
        "rounds": rounds,
    }


def run(options: argparse.Namespace) -> int:
    frames = spread_frames(options.frames)
    torch.set_num_threads(options.threads)
    clips = list_clips(prepare_world(options.world), options.clips)
    return serve(options, "frame", read_clips(clips, frames), partial(measure, options, clips, frames))


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("baseline", __doc__)
    add_server_arguments(parser)
    add_number(parser, "--clips", 2, "number of clips")
    add_number(parser, "--frames", 16, "frames per clip, at most 16")
    add_number(parser, "--rounds", 3, "number of rounds")
    add_number(parser, "--concurrency", 8, "clips in flight at most")
    parser.add_argument("--detector", choices=DETECTORS, default="graph", help="the baseline's detector")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="the baseline's device")
    add_number(parser, "--threads", len(os.sched_getaffinity(0)), "PyTorch's threads in the baseline")
    return run_workload(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
