"""Measure what `livematch embed` gains from decoding each clip in one pass and from several clips in flight.

    python -m benchmarks.concurrency --clips 6 --rounds 3

Each round makes two comparisons. Decoding: all sixteen frames of a clip in one pass, or seeking and decoding each frame
separately. Embedding: one clip at a time, or `--concurrency` clips at once. At least `--concurrency` clips are needed,
because a clip's frames are sent one after another.

The JSON has the medians `decoding_speedup` and `speedup`, and under `rounds` each round's seconds, frames per second
and use of the machine. `computing` is the average number of requests the server computes at a time: the compute time
of the ensemble's steps, from Triton's statistics, divided by the elapsed time. With one clip in flight it is the
fraction of time in which the server is busy; with several it may exceed 1.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tritonclient.grpc as triton

from benchmarks.harness.figures import Figures, alternate, median, rounded, seconds
from benchmarks.harness.images import link_clips, list_clips, read_clips, seek_frame, spread_frames
from benchmarks.harness.options import add_number, new_parser
from benchmarks.harness.resources import describe_usage, read_usage
from benchmarks.harness.server import serve
from benchmarks.harness.stage_times import computing_ms, read_stages, subtract_stages
from benchmarks.harness.workload import add_server_arguments, prepare_world, run_workload
from export.config import PipelineConfig
from livematch import Client, LocalServer, read_frames
from livematch.errors import InputError
from livematch.media.videos import DEFAULT_FRAMES
from livematch.pipeline.embed import EmbedOptions, embed_videos


def compare_decoding(clips: Sequence[Path]) -> dict[str, float]:
    """Time both ways of decoding the frames of all clips, and return JSON with their ratio."""
    one_pass_s = seconds(lambda: [pixels.shape for clip in clips for _, pixels in read_frames(clip)])
    seeking_s = seconds(lambda: [seek_frame(clip, index).shape for clip in clips for index in DEFAULT_FRAMES])
    return {
        "one_pass_s": rounded(one_pass_s),
        "sought_s": rounded(seeking_s),
        "speedup": rounded(seeking_s / one_pass_s),
    }


def embed(server: LocalServer, clips: Path, frames: range, concurrency: int, output: Path) -> Figures:
    """Embed these frames of all clips in a folder, and return JSON of the run."""
    with Client(server.url) as client, triton.InferenceServerClient(server.url) as statistics_client:
        stages_before, usage_before = read_stages(statistics_client), read_usage(server.pid)
        start_s = time.perf_counter()
        embedded = embed_videos(client, clips, output, EmbedOptions(concurrency=concurrency), frames=frames)
        elapsed_s = time.perf_counter() - start_s
        stages = subtract_stages(read_stages(statistics_client), stages_before)
    num_frames = embedded.num_stored * len(frames)
    return {
        "frames_per_s": rounded(num_frames / elapsed_s),
        "computing": rounded(computing_ms(stages, "frame") / 1e3 / elapsed_s),
        "usage": describe_usage(usage_before, read_usage(server.pid), elapsed_s, num_frames),
    }


def measure(
    options: argparse.Namespace, clips: list[Path], frames: range, server: LocalServer, _: PipelineConfig
) -> Figures:
    """Run both comparisons `options.rounds` times, alternating which embedding comes first, and return the figures."""
    rounds = []
    with tempfile.TemporaryDirectory(prefix="livematch-embedding-") as name:
        folder = Path(name)
        link_clips(clips, folder / "clips")
        embed_clips = partial(embed, server, folder / "clips", frames)
        embed_clips(options.concurrency, folder / "warm-up.parquet")
        for turn in range(options.rounds):
            runs = alternate(
                turn,
                serial=partial(embed_clips, 1, folder / f"serial{turn}.parquet"),
                overlapped=partial(embed_clips, options.concurrency, folder / f"overlapped{turn}.parquet"),
            )
            decoding = compare_decoding(clips)
            speedup = rounded(runs["overlapped"]["frames_per_s"] / runs["serial"]["frames_per_s"])
            rounds.append({"decoding": decoding, **runs, "speedup": speedup})
            print(
                f"round {turn + 1}: one pass {decoding['speedup']} times as fast as seeking; "
                f"{options.concurrency} clips at once {speedup} times as fast as one; computing "
                f"{runs['serial']['computing']} and {runs['overlapped']['computing']} requests at a time",
                flush=True,
            )
    return {
        "num_clips": len(clips),
        "num_frames": len(frames),
        "concurrency": options.concurrency,
        "decoding_speedup": median(rounds, "decoding", "speedup"),
        "speedup": median(rounds, "speedup"),
        "computing": median(rounds, "overlapped", "computing"),
        "rounds": rounds,
    }


def run(options: argparse.Namespace) -> int:
    clips = list_clips(prepare_world(options.world), options.clips)
    if len(clips) < options.concurrency:
        raise InputError(f"--concurrency {options.concurrency} needs as many clips, but there are {len(clips)}")
    frames = spread_frames(options.frames)
    return serve(options, "frame", read_clips(clips, frames), partial(measure, options, clips, frames))


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("concurrency", __doc__)
    add_server_arguments(parser)
    add_number(parser, "--clips", 6, "number of clips")
    add_number(parser, "--frames", 16, "frames per clip when embedding, at most 16")
    add_number(parser, "--rounds", 3, "number of rounds")
    add_number(parser, "--concurrency", 4, "clips in flight")
    return run_workload(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
