"""What `livematch embed` makes of a server: clips decoded in one pass, several sources under way at once.

    python -m benchmarks.concurrency --clips 6 --rounds 3

Two comparisons, each in turns in one run. Decoding: the sixteen frames of a clip in one pass against each frame
sought and decoded by itself. Embedding: one source at a time against several, `--frames` of each; a source's frames go
one after another, so that it takes as many clips as sources at once.

`computing` is how many requests the server computes for at a time on average, from Triton's statistics: the computing
time of the ensemble's steps over the time that passed. While one source is under way it is the share of the time in
which the server is busy; with several it may be above 1.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from benchmarks.baseline import read_frame
from benchmarks.harness.resources import describe_usage, read_usage
from benchmarks.harness.results import Record, digest_models, rounded
from benchmarks.harness.stage_times import computing_ms, read_stages, subtract_stages
from benchmarks.harness.workload import (
    add_server_arguments,
    default_output,
    describe_networks,
    list_clips,
    prepare_repository,
    prepare_world,
    read_clips,
    spread_frames,
)
from livematch import Client, LocalServer, read_frames
from livematch.media.videos import DEFAULT_FRAMES
from livematch.pipeline.embed import EmbedOptions, embed_videos


def compare_decoding(clips: Sequence[Path]) -> dict[str, float]:
    """Seconds for the frames of all clips both ways, and their ratio."""
    one_pass_s = _time(lambda: [pixels.shape for clip in clips for _, pixels in read_frames(clip)])
    sought_s = _time(lambda: [read_frame(clip, index).shape for clip in clips for index in DEFAULT_FRAMES])
    return {
        "one_pass_s": rounded(one_pass_s),
        "sought_s": rounded(sought_s),
        "speedup": rounded(sought_s / one_pass_s),
    }


def embed(server: LocalServer, clips: Path, frames: range, concurrency: int, output: Path) -> dict[str, Any]:
    """JSON of one run over these frames of all clips of a folder."""
    with Client(server.url) as client, triton.InferenceServerClient(server.url) as observer:
        stages_before, usage_before, start_s = read_stages(observer), read_usage(server.pid), time.perf_counter()
        embedded = embed_videos(client, clips, output, EmbedOptions(concurrency=concurrency), frames=frames)
        elapsed_s = time.perf_counter() - start_s
        stages = subtract_stages(read_stages(observer), stages_before)
    num_frames = embedded.num_stored * len(frames)
    return {
        "frames_per_s": rounded(num_frames / elapsed_s),
        "computing": rounded(computing_ms(stages, "frame") / 1e3 / elapsed_s),
        "usage": describe_usage(usage_before, read_usage(server.pid), elapsed_s, num_frames),
    }


def _time(action: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_arguments(parser, "concurrency")
    parser.add_argument("--clips", type=int, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--frames", type=int, default=16, metavar="N", help="of each clip, 16 at most, default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="sources at once, default: %(default)s")
    options = parser.parse_args(argv)
    clips = list_clips(prepare_world(options.world), options.clips)
    if len(clips) < options.concurrency:
        parser.error(f"{options.concurrency} sources at once take as many clips, there are {len(clips)}")
    frames = spread_frames(options.frames)
    repository, _ = prepare_repository(options, read_clips(clips, frames))
    run = Record("concurrency", options, argv)
    rounds = []
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="livematch-embedding-")))
        (folder / "clips").mkdir()
        for clip in clips:
            (folder / "clips" / clip.name).symlink_to(clip.resolve())
        server = resources.enter_context(LocalServer(repository))
        embed(server, folder / "clips", frames, options.concurrency, folder / "warm-up.parquet")
        for turn in range(options.rounds):
            ways = {"serial": 1, "overlapped": options.concurrency}
            found = {
                way: embed(server, folder / "clips", frames, ways[way], folder / f"{way}{turn}.parquet")
                for way in sorted(ways, reverse=turn % 2 == 0)
            }
            speedup = rounded(found["overlapped"]["frames_per_s"] / found["serial"]["frames_per_s"])
            rounds.append({"decoding": compare_decoding(clips), **found, "speedup": speedup})
            print(
                f"round {turn + 1}: one pass {rounds[-1]['decoding']['speedup']} times as fast as seeking; "
                f"{options.concurrency} sources at once {speedup} times as fast as one, "
                f"computing {found['serial']['computing']} and {found['overlapped']['computing']} requests at a time",
                flush=True,
            )
    figures = {
        "num_clips": len(clips),
        "num_frames": len(frames),
        "concurrency": options.concurrency,
        **describe_networks(options),
        "decoding_speedup": rounded(statistics.median(turn["decoding"]["speedup"] for turn in rounds)),
        "speedup": rounded(statistics.median(turn["speedup"] for turn in rounds)),
        "computing": rounded(statistics.median(turn["overlapped"]["computing"] for turn in rounds)),
        "rounds": rounds,
    }
    run.write(figures, default_output(options), models=digest_models(repository))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
