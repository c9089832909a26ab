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
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from benchmarks.harness.baseline_pipeline import Row, run_baseline
from benchmarks.harness.eager import DETECTORS, EagerNetworks
from benchmarks.harness.figures import median, rounded
from benchmarks.harness.images import link_clips, list_clips, read_clips, spread_frames
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.resources import read_usage
from benchmarks.harness.results import Record, digest_models
from benchmarks.harness.workload import (
    add_server_arguments,
    checkpoints_of,
    default_output,
    describe_networks,
    prepare_repository,
    prepare_world,
    repository_path,
)
from export.signature import EMBEDDERS
from livematch import Client, Features, LocalServer, read_features
from livematch.cli.commands import run_command
from livematch.errors import InputError
from livematch.pipeline.embed import EmbedOptions, embed_videos

MIN_IOU = 0.9
"""Boxes that overlap at least this much count as the same box. The two video decoders round differently."""


def agreement(rows: Sequence[Row], features: Features) -> dict[str, Any]:
    """Return JSON: how many of the baseline's boxes the pipeline found, and the lowest cosine of their embeddings."""
    cosines = []
    sources = np.array(features.sources)
    for row in rows:
        candidates = np.flatnonzero((sources == Path(row["clip"]).stem) & (features.frame_indices == row["frame"]))
        if not len(candidates):
            continue
        overlaps = box_iou(torch.tensor([row["box"]]), torch.from_numpy(features.boxes[candidates]))[0].numpy()
        if overlaps.max() >= MIN_IOU:
            cosines.append(float(np.dot(features.embeddings[candidates[overlaps.argmax()]], row["embedding"])))
    return {
        "num_baseline_boxes": len(rows),
        "num_pipeline_boxes": len(features.boxes),
        "num_same_boxes": len(cosines),
        "min_cosine": rounded(min(cosines), 6) if cosines else None,
    }


@dataclass(frozen=True)
class Comparison:
    """The baseline and the pipeline, which run on the same frames of the same clips."""

    networks: EagerNetworks
    client: Client
    server_pid: int
    clips: list[Path]
    frames: range
    concurrency: int

    def warm_up(self, folder: Path) -> None:
        """Run both on one frame; it may have no boxes, so also run the eager embedders on a crop of each size."""
        link_clips(self.clips[:1], folder / "clips")
        run_baseline(self.networks, self.clips[:1], self.frames[:1], folder)
        embed_videos(self.client, folder / "clips", folder / "features.parquet", frames=self.frames[:1])
        for width, height in self.networks.config.templates.values():
            for model in EMBEDDERS:
                self.networks.embed(model, np.zeros((1, height, width, 3), np.uint8))

    def run_round(self, folder: Path, turn: int) -> dict[str, Any]:
        """Run both and return JSON of the round; the pipeline runs first in even rounds, the baseline in odd ones.

        Raises:
            InputError: the baseline found no box, so there was nothing to embed.
        """
        link_clips(self.clips, folder / "clips")
        times_s, cpu_s = {}, {}
        steps_s: dict[str, float] = {}
        rows: list[Row] = []
        for name in ("pipeline", "baseline") if turn % 2 == 0 else ("baseline", "pipeline"):
            start_s, start_cpu_s = time.perf_counter(), self._cpu_s()
            if name == "pipeline":
                flow = EmbedOptions(concurrency=self.concurrency)
                embed_videos(self.client, folder / "clips", folder / "features.parquet", flow, frames=self.frames)
            else:
                steps_s, rows = run_baseline(self.networks, self.clips, self.frames, folder)
            times_s[name], cpu_s[name] = time.perf_counter() - start_s, self._cpu_s() - start_cpu_s
        if not rows:
            clips = ", ".join(map(str, self.clips))
            raise InputError(f"the baseline found no box in {len(self.frames)} frames of {clips}")
        return {
            "pipeline_s": rounded(times_s["pipeline"]),
            "baseline_s": rounded(times_s["baseline"]),
            "speedup": rounded(times_s["baseline"] / times_s["pipeline"]),
            "speedup_unread": rounded((times_s["baseline"] - steps_s["reading_s"]) / times_s["pipeline"]),
            "pipeline_cpu_s": rounded(cpu_s["pipeline"]),
            "baseline_cpu_s": rounded(cpu_s["baseline"]),
            "cpu_ratio": rounded(cpu_s["baseline"] / cpu_s["pipeline"]),
            "baseline_steps": {step: rounded(seconds) for step, seconds in steps_s.items()},
            "agreement": agreement(rows, read_features(folder / "features.parquet")),
        }

    def _cpu_s(self) -> float:
        """Return the processor time of this process and of the server."""
        return time.process_time() + read_usage(self.server_pid).server_cpu_s


def run(options: argparse.Namespace, argv: Sequence[str] | None) -> int:
    frames = spread_frames(options.frames)
    torch.set_num_threads(options.threads)
    clips = list_clips(prepare_world(options.world), options.clips)
    config = prepare_repository(options, "frame", read_clips(clips, frames))
    repository = repository_path(options)
    record = Record("baseline", options, argv)
    networks = EagerNetworks(
        config, checkpoints=checkpoints_of(options), detector=options.detector, device=options.device
    )
    rounds = []
    with (
        tempfile.TemporaryDirectory(prefix="livematch-baseline-") as folder,
        LocalServer(repository) as server,
        Client(server.url) as client,
    ):
        comparison = Comparison(networks, client, server.pid, clips, frames, options.concurrency)
        comparison.warm_up(Path(folder) / "warm-up")
        for turn in range(options.rounds):
            rounds.append(comparison.run_round(Path(folder) / str(turn), turn))
            print(f"round {turn + 1}: pipeline {rounds[-1]['speedup']} times as fast", flush=True)
    figures = {
        "headline_speedup": median(rounds, "speedup"),
        "cpu_ratio": median(rounds, "cpu_ratio"),
        "speedup_unread": median(rounds, "speedup_unread"),
        "num_clips": len(clips),
        "num_frames": len(frames),
        "threads": options.threads,
        "device": options.device,
        "eager_detector": options.detector,
        "num_in_flight": min(options.concurrency, len(clips)),
        **describe_networks(options),
        "rounds": rounds,
    }
    record.write(figures, default_output(options), models=digest_models(repository))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_server_arguments(parser, "baseline")
    add_number(parser, "--clips", 2, "number of clips")
    add_number(parser, "--frames", 16, "frames per clip, at most 16")
    add_number(parser, "--rounds", 3, "number of rounds")
    add_number(parser, "--concurrency", 8, "clips in flight at most")
    parser.add_argument("--detector", choices=DETECTORS, default="graph", help="the baseline's detector")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="the baseline's device")
    add_number(parser, "--threads", len(os.sched_getaffinity(0)), "PyTorch's threads in the baseline")
    options = parser.parse_args(argv)
    return run_command("benchmarks.baseline", lambda: run(options, argv))


if __name__ == "__main__":
    raise SystemExit(main())
