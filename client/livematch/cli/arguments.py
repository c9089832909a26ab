"""The options of each `livematch` command."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

DEFAULT_SERVER = "127.0.0.1:8001"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of one command, whose name is in `command`; ends the process with a usage message if they are wrong."""
    parser = argparse.ArgumentParser(prog="livematch", description="Which product does a live clip show?")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    serve = _command(commands, "serve", "run a Triton server on this machine, until interrupted")
    serve.add_argument("--repository", type=Path, required=True, help="model repository")
    serve.add_argument("--config-name", default="onnx", help="which of the models' configs (default: %(default)s)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--grpc-port", type=int, default=8001, help="0: any free one (default: %(default)s)")
    serve.add_argument("--http-port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    serve.add_argument("--metrics-port", type=int, default=8002, help="0: any free one (default: %(default)s)")
    serve.add_argument("--log", type=Path, help="the server's log file")
    serve.add_argument(
        "--exit-timeout", type=_seconds, default=10.0, metavar="S",
        help="how long requests in flight may take when the server is stopped (default: %(default)g)",
    )  # fmt: skip
    _add_key_option(serve, "wanted from clients for all but the health endpoint")
    serve.add_argument("triton_options", nargs="*", metavar="-- OPTION", help="further options of tritonserver")

    embed = _command(commands, "embed", "detect and embed the garments of images or of videos")
    kind = embed.add_mutually_exclusive_group(required=True)
    kind.add_argument("--images", type=Path, help="folder of <item_id>/<k>.jpg")
    kind.add_argument("--videos", type=Path, help="folder of <video_id>.mp4")
    embed.add_argument("-o", "--output", type=_output, required=True, help="features file (Parquet)")
    embed.add_argument("--failures", type=_output, help="write the sources that failed to this Parquet file")
    embed.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N",
        help="only part I of N, counted from 0, as in a job array; give each part its own output file",
    )  # fmt: skip
    _add_embedding_options(embed)

    match = _command(commands, "match", "match items to clips")
    match.add_argument("--queries", type=Path, nargs="+", required=True, metavar="FILE", help="features of the images")
    match.add_argument(
        "--gallery", nargs="+", required=True, metavar="FILE",
        help="features of the videos, or milvus:FILE.db or milvus:URI, as made by `livematch load`",
    )  # fmt: skip
    match.add_argument("-o", "--output", type=_output, required=True, help="result.json")
    match.add_argument("--matches", type=_output, help="also write the matches with their distances to this JSON file")
    _add_matching_options(match)

    load = _command(
        commands, "load", "put features of videos into a Milvus gallery; those of the same clips are replaced"
    )
    load.add_argument("--gallery", required=True, metavar="GALLERY", help="milvus:FILE.db, or milvus:URI of a cluster")
    load.add_argument("--features", type=Path, nargs="+", required=True, metavar="FILE", help="features of the videos")

    delete = _command(commands, "delete", "remove clips from a Milvus gallery")
    delete.add_argument(
        "--gallery", required=True, metavar="GALLERY", help="milvus:FILE.db, or milvus:URI of a cluster"
    )
    delete.add_argument("--sources", nargs="+", required=True, metavar="ID", help="ids of the clips")

    run = _command(commands, "run", "embed, match and, with --truth, evaluate and report")
    run.add_argument("--images", type=Path, required=True, help="folder of <item_id>/<k>.jpg")
    run.add_argument("--videos", type=Path, required=True, help="folder of <video_id>.mp4")
    run.add_argument("--truth", type=Path, help="annotated part: image_annotation/ and video_annotation/")
    run.add_argument("-o", "--output", type=Path, required=True, help="folder for all that is written")
    _add_embedding_options(run)
    _add_matching_options(run)

    watch = _command(commands, "watch", "say frame by frame which product a stream shows, one line of JSON each")
    watch.add_argument("--video", required=True, metavar="FILE_OR_URL", help="whatever ffmpeg can open")
    watch.add_argument("--gallery", type=Path, required=True, metavar="FILE", help="features of the products' images")
    watch.add_argument(
        "--every", type=_positive, default=20, metavar="N", help="look at every N-th frame (default: %(default)s)"
    )
    watch.add_argument(
        "--window", type=_positive, default=16, metavar="N", help="frames that decide together (default: %(default)s)"
    )
    watch.add_argument(
        "--limit", type=float, default=1.12, help="distance a box must be below to count (default: %(default)s)"
    )
    _add_connection_options(watch)

    evaluate = _command(commands, "evaluate", "score a result against annotations")
    evaluate.add_argument("--result", type=Path, required=True, help="result.json")
    evaluate.add_argument("--truth", type=Path, required=True, help="part: image_annotation/ and video_annotation/")
    evaluate.add_argument("-o", "--output", type=_output, help="score.json")

    report = _command(commands, "report", "one HTML page with every matched clip beside its product")
    report.add_argument("--result", type=Path, required=True, help="result.json")
    report.add_argument("--images", type=Path, required=True, help="folder of <item_id>/<k>.jpg")
    report.add_argument("--videos", type=Path, required=True, help="folder of <video_id>.mp4")
    report.add_argument("--matches", type=Path, help="matches.json, for the distances")
    report.add_argument("--truth", type=Path, help="annotated part, for the levels S1 to S3")
    report.add_argument("--failures", type=Path, help="failures.parquet")
    report.add_argument(
        "--pictures", type=int, default=2000, metavar="N",
        help="matches that get pictures, the nearest; those past the first 200 lie in a folder (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--limit", type=_limit, default=1.12, help="that of `match`, for the histogram (default: %(default)s)"
    )
    report.add_argument("-o", "--output", type=_output, required=True, help="report.html")
    return parser.parse_args(argv)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    description: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=description, description=description)


def _add_connection_options(parser: argparse.ArgumentParser) -> None:
    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--server", nargs="+", default=[DEFAULT_SERVER], metavar="HOST:PORT",
        help=f"gRPC addresses of servers with the same models, which share the work (default: {DEFAULT_SERVER})",
    )  # fmt: skip
    server.add_argument("--repository", type=Path, help="start a server on this model repository for the run")
    parser.add_argument(
        "--max-tries", type=_positive, default=10, metavar="N",
        help="how often a request is sent to each server while all are down or overloaded (default: %(default)s)",
    )  # fmt: skip

    parser.add_argument(
        "--crop-scale", type=float, default=1.0, metavar="F",
        help="crop this much wider and higher than the boxes, the same for images and videos (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--shared-memory",
        action="store_true",
        help="hand pictures through shared memory to servers on this machine, as is done with --repository",
    )
    _add_key_option(parser, "of servers that want one")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="TLS: certificate of the authority to trust")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="TLS: certificate that this client shows")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="TLS: private key of that certificate")


def _add_key_option(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "--key", default=os.environ.get("LIVEMATCH_KEY"), help=f"access key {purpose} (default: $LIVEMATCH_KEY)"
    )


def _add_embedding_options(parser: argparse.ArgumentParser) -> None:
    _add_connection_options(parser)
    parser.add_argument(
        "--frames", type=_frame_range, default="80:400:20", metavar="START:STOP:STEP",
        help="frames of a video, STOP not included (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=_positive, metavar="N",
        help="requests in flight, and sources under way (default: twice the number of CPUs, at least 4)",
    )  # fmt: skip
    parser.add_argument(
        "--flip", action="store_true", help="average embeddings with those of the mirrored picture, for twice the work"
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first source that fails")


def _add_matching_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantile", type=float, default=0.28, help="share of queries that vote (default: %(default)s)"
    )
    parser.add_argument("--vote-share", type=float, default=0.5, help="votes a clip needs (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=1.12, help="distance a match must be below (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs",
        type=_positive,
        default=1,
        metavar="N",
        help="box pairs per clip in the result (default: %(default)s)",
    )
    parser.add_argument(
        "--memory", type=_num_bytes, default="2G", metavar="SIZE",
        help="what matching may use in all, e.g. 800M or 16G (default: %(default)s)",
    )  # fmt: skip


def _output(text: str) -> Path:
    path = Path(text)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from error
    if is_folder:
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text!r}")
    return path


def _limit(text: str) -> float:
    if not (limit := _number(text)) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return limit


def _seconds(text: str) -> float:
    if not 0 <= (seconds := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _num_bytes(text: str) -> int:
    units = {"M": 20, "G": 30}
    if text[-1:] not in units or not text[:-1].isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number with M or G, as 800M, got {text!r}")
    return int(text[:-1]) << units[text[-1]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    index, slash, num_shards = text.partition("/")
    if not slash or not index.isdecimal() or not num_shards.isdecimal() or int(index) >= int(num_shards):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, got {text!r}")
    return int(index), int(num_shards)


def _frame_range(text: str) -> range:
    try:
        start, stop, step = map(int, text.split(":"))
        frames = range(start, stop, step)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected START:STOP:STEP, got {text!r}") from error
    if not frames or min(frames) < 0:
        raise argparse.ArgumentTypeError(f"no frames, or negative ones, in {text!r}")
    return frames
