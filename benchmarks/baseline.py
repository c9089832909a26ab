"""How much faster the pipeline is than the way a contest solution works, with the same weights on the same clips.

    python -m benchmarks.baseline --clips 2 --frames 16 --rounds 3

The baseline is the way of the reference solution, by its description: eager PyTorch, one picture at a
time; the detector writes its boxes to a JSON file; then each network reads that file and, for every box, seeks
the frame in the video and decodes it again, crops, embeds and writes JSON; a last step joins the four. The pipeline is
`livematch embed`: each clip decoded once, one request in flight for every clip under way (as many as there are clips,
`--concurrency` at most), features to Parquet.

Both are timed in turns in one run, on the same clips in every round, the server idle while the baseline works, so that
a change in the machine's load meets both. The ratio of each round is reported, with the median as the headline, the
ratio if the baseline read its frames in no time, and how far the answers agree. Where other work runs, whoever has more
threads gets more of the machine; the ratio of processor seconds says what is left.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.harness.eager import DETECTORS, EagerNetworks, Pixels
from benchmarks.harness.resources import read_usage
from benchmarks.harness.results import Record, digest_models, rounded
from benchmarks.harness.workload import (
    add_server_arguments,
    checkpoints_of,
    default_output,
    describe_networks,
    list_clips,
    prepare_repository,
    prepare_world,
    read_clips,
    spread_frames,
)
from export.config import PipelineConfig
from export.signature import EMBEDDERS
from livematch import Client, Features, LocalServer, read_features
from livematch.evaluation.scores import iou
from livematch.pipeline.embed import EmbedOptions, embed_videos

MIN_IOU = 0.9  # of a box of the baseline and the same box of the pipeline, which decodes with other rounding


def run_baseline(networks: EagerNetworks, clips: Sequence[Path], frames: range, folder: Path) -> dict[str, Any]:
    """Detects and embeds, with the files in between in `folder`.

    Returns:
        The seconds of each step, and of reading frames in all steps; the rows: clip, frame, box, joined embedding.
    """
    times_s = {"reading_s": 0.0}

    def read(clip: Path, index: int) -> Pixels:
        start_s = time.perf_counter()
        pixels = read_frame(clip, index)
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
    for model in EMBEDDERS:
        start_s = time.perf_counter()
        rows = json.loads((folder / "detections.json").read_text())
        for row in rows:
            crop = cut(read(Path(row["clip"]), row["frame"]), row["box"], networks.config)
            row["embedding"] = networks.embed(model, crop[None])[0].tolist()
        (folder / f"{model}.json").write_text(json.dumps(rows))
        times_s[f"{model}_s"] = time.perf_counter() - start_s
    start_s = time.perf_counter()
    parts = [json.loads((folder / f"{model}.json").read_text()) for model in EMBEDDERS]
    joined = []
    for rows in zip(*parts, strict=True):
        embedding = np.concatenate([row["embedding"] for row in rows])
        joined.append({**rows[0], "embedding": (embedding / np.linalg.norm(embedding)).tolist()})
    (folder / "features.json").write_text(json.dumps(joined))
    times_s["join_s"] = time.perf_counter() - start_s
    return {"times_s": times_s, "rows": joined}


def read_frame(clip: Path, index: int) -> Pixels:
    """RGB; the video is opened, the frame sought and decoded, as is done for every use of it."""
    video = cv2.VideoCapture(str(clip))
    try:
        video.set(cv2.CAP_PROP_POS_FRAMES, index)
        is_read, bgr = video.read()
    finally:
        video.release()
    if not is_read:
        raise ValueError(f"{clip} has no frame {index}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def cut(image: Pixels, box: Sequence[float], config: PipelineConfig) -> Pixels:
    """The box, truncated to pixels, resized to the template whose aspect ratio is nearest."""
    x0, y0, x1, y1 = map(int, box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    ratio = min(config.templates, key=lambda ratio: abs(ratio - (x1 - x0) / (y1 - y0)))
    return cv2.resize(image[y0:y1, x0:x1], config.templates[ratio], interpolation=cv2.INTER_LINEAR)


def agreement(rows: Sequence[dict[str, Any]], features: Features) -> dict[str, Any]:
    """How many of the baseline's boxes the pipeline has too, and how alike their embeddings are."""
    cosines = []
    sources = np.array(features.sources)
    for row in rows:
        candidates = np.flatnonzero((sources == Path(row["clip"]).stem) & (features.frame_indices == row["frame"]))
        overlaps = [iou(row["box"], box) for box in features.boxes[candidates].tolist()]
        if overlaps and max(overlaps) >= MIN_IOU:
            cosines.append(float(np.dot(features.embeddings[candidates[np.argmax(overlaps)]], row["embedding"])))
    return {
        "num_baseline_boxes": len(rows),
        "num_pipeline_boxes": len(features.boxes),
        "num_same_boxes": len(cosines),
        "min_cosine": rounded(min(cosines), 6) if cosines else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_arguments(parser, "baseline")
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="in each round, default: %(default)s")
    parser.add_argument(
        "--frames", type=int, default=16, metavar="N", help="of each clip, 16 at most, default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="clips under way, at most")
    parser.add_argument("--detector", choices=DETECTORS, default="graph", help="of the baseline, default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the baseline")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch in the baseline")
    options = parser.parse_args(argv)
    frames = spread_frames(options.frames)
    torch.set_num_threads(options.threads)
    clips = list_clips(prepare_world(options.world), options.clips)
    repository, config = prepare_repository(options, read_clips(clips, frames))
    run = Record("baseline", options, argv)
    networks = EagerNetworks(
        config, checkpoints=checkpoints_of(options), detector=options.detector, device=options.device
    )
    rounds = []
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="livematch-baseline-")))
        server = resources.enter_context(LocalServer(repository))
        client = resources.enter_context(Client(server.url))
        warm_up(networks, client, clips[0], frames[:1], folder / "warm-up")
        for turn in range(options.rounds):
            where = folder / str(turn)
            rounds.append(run_round(networks, client, server.pid, clips, frames, options.concurrency, where, turn))
            print(f"round {turn + 1}: pipeline {rounds[-1]['speedup']} times as fast", flush=True)
    figures = {
        "headline_speedup": rounded(statistics.median(turn["speedup"] for turn in rounds)),
        **{name: rounded(statistics.median(turn[name] for turn in rounds)) for name in ("cpu_ratio", "speedup_unread")},
        "num_clips": len(clips),
        "num_frames": len(frames),
        "threads": options.threads,
        "device": options.device,
        "eager_detector": options.detector,
        "num_in_flight": min(options.concurrency, len(clips)),
        **describe_networks(options),
        "rounds": rounds,
    }
    run.write(figures, default_output(options), models=digest_models(repository))
    return 0


def warm_up(networks: EagerNetworks, client: Client, clip: Path, frames: range, folder: Path) -> None:
    """One frame both ways; a frame without boxes leaves the embedders cold, so they get a crop besides."""
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / clip.name).symlink_to(clip.resolve())
    run_baseline(networks, [clip], frames, folder)
    embed_videos(client, folder / "clips", folder / "features.parquet", frames=frames)
    for width, height in networks.config.templates.values():
        for model in EMBEDDERS:
            networks.embed(model, np.zeros((1, height, width, 3), np.uint8))


def run_round(
    networks: EagerNetworks,
    client: Client,
    server_pid: int,
    clips: list[Path],
    frames: range,
    concurrency: int,
    folder: Path,
    turn: int,
) -> dict[str, Any]:
    """Both ways on the same clips; the first turn begins with the pipeline, the next with the baseline, and so on.

    Raises ValueError if the baseline finds no box: nothing would be embedded.
    """
    (folder / "clips").mkdir(parents=True)
    for clip in clips:
        (folder / "clips" / clip.name).symlink_to(clip.resolve())
    times_s, cpu_s = {}, {}
    baseline: dict[str, Any] = {}
    for way in ("pipeline", "baseline") if turn % 2 == 0 else ("baseline", "pipeline"):
        start_s, start_cpu_s = time.perf_counter(), _cpu_s(server_pid)
        if way == "pipeline":
            flow = EmbedOptions(concurrency=concurrency)
            embed_videos(client, folder / "clips", folder / "features.parquet", flow, frames=frames)
        else:
            baseline = run_baseline(networks, clips, frames, folder)
        times_s[way], cpu_s[way] = time.perf_counter() - start_s, _cpu_s(server_pid) - start_cpu_s
    if not baseline["rows"]:
        raise ValueError(f"no box in {len(frames)} frames of {', '.join(map(str, clips))}: nothing was embedded")
    return {
        "pipeline_s": rounded(times_s["pipeline"]),
        "baseline_s": rounded(times_s["baseline"]),
        "speedup": rounded(times_s["baseline"] / times_s["pipeline"]),
        "speedup_unread": rounded((times_s["baseline"] - baseline["times_s"]["reading_s"]) / times_s["pipeline"]),
        "pipeline_cpu_s": rounded(cpu_s["pipeline"]),
        "baseline_cpu_s": rounded(cpu_s["baseline"]),
        "cpu_ratio": rounded(cpu_s["baseline"] / cpu_s["pipeline"]),
        "baseline_steps": {step: rounded(seconds) for step, seconds in baseline["times_s"].items()},
        "agreement": agreement(baseline["rows"], read_features(folder / "features.parquet")),
    }


def _cpu_s(server_pid: int) -> float:
    """Processor time of this process and of the server's."""
    return time.process_time() + read_usage(server_pid).server_cpu_s


if __name__ == "__main__":
    raise SystemExit(main())
