"""Define and parse the options of each `livematch` command."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of one command, whose name becomes `command`; exit with a usage message if they are wrong."""
    parser = argparse.ArgumentParser(prog="livematch", description="Find which product a live-shopping clip shows.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    serve = _command(commands, "serve", "run a Triton server on this machine until interrupted")
    serve.add_argument("--repository", type=Path, required=True, help="model repository to serve")
    serve.add_argument(
        "--config-name", default="onnx", metavar="NAME",
        help="serve each model with its configs/NAME.pbtxt, if it has one (default: %(default)s)",
    )  # fmt: skip
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    for service, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        help_text = "port to listen on, or 0 to choose a free one (default: %(default)s)"
        serve.add_argument(f"--{service}-port", type=int, default=port, metavar="PORT", help=help_text)
    serve.add_argument("--log", type=Path, help="write the server's log to this file")
    serve.add_argument(
        "--exit-timeout", type=_seconds, default=10.0, metavar="S",
        help="seconds to let requests in flight finish when the server is stopped (default: %(default)g)",
    )  # fmt: skip
    _add_key_option(serve, "access key required on every endpoint except health")
    serve.add_argument("triton_options", nargs="*", metavar="-- OPTION", help="further options for tritonserver")

    embed = _command(commands, "embed", "detect and embed the garments of images or of videos")
    kind = embed.add_mutually_exclusive_group(required=True)
    kind.add_argument("--images", type=Path, metavar="DIR", help="folder of <item_id>/<k>.jpg")
    kind.add_argument("--videos", type=Path, metavar="DIR", help="folder of <video_id>.mp4")
    embed.add_argument("-o", "--output", type=_output, required=True, help="features file to write (Parquet)")
    embed.add_argument("--failures", type=_output, help="also write the sources that failed to this Parquet file")
    embed.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N",
        help="embed only part I of N, where I starts at 0; give each part its own output file",
    )  # fmt: skip
    _add_embedding_options(embed)

    match = _command(commands, "match", "find which item each clip shows")
    match.add_argument("--queries", type=Path, nargs="+", required=True, metavar="FILE", help="features of the images")
    match.add_argument(
        "--gallery", nargs="+", required=True, metavar="FILE",
        help="features of the videos, or a Milvus gallery: milvus:FILE.db or milvus:URI",
    )  # fmt: skip
    match.add_argument("-o", "--output", type=_output, required=True, help="result.json to write")
    match.add_argument("--matches", type=_output, help="also write matches with distances to this JSON file")
    _add_matching_options(match)

    load = _command(commands, "load", "add features of videos to a Milvus gallery, replacing those of the same clips")
    _add_gallery_option(load)
    load.add_argument("--features", type=Path, nargs="+", required=True, metavar="FILE", help="features of the videos")

    delete = _command(commands, "delete", "remove clips from a Milvus gallery")
    _add_gallery_option(delete)
    delete.add_argument("--sources", nargs="+", required=True, metavar="ID", help="ids of the clips to remove")

    run = _command(commands, "run", "embed, match and report in one command, and evaluate if --truth is given")
    run.add_argument("--images", type=Path, metavar="DIR", required=True, help="folder of <item_id>/<k>.jpg")
    run.add_argument("--videos", type=Path, metavar="DIR", required=True, help="folder of <video_id>.mp4")
    run.add_argument("--truth", type=Path, metavar="DIR", help="annotations as for `evaluate`, to score the result")
    run.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    _add_embedding_options(run)
    _add_matching_options(run)

    watch = _command(commands, "watch", "print which product a stream shows, one line of JSON per frame")
    watch.add_argument("--video", required=True, metavar="FILE_OR_URL", help="file or URL that ffmpeg can open")
    watch.add_argument("--gallery", type=Path, required=True, metavar="FILE", help="features of the products' images")
    watch.add_argument(
        "--every", type=_positive, default=20, metavar="N", help="recognize every N-th frame (default: %(default)s)"
    )
    watch.add_argument(
        "--window", type=_positive, default=16, metavar="N",
        help="decide from the last N recognized frames (default: %(default)s)",
    )  # fmt: skip
    watch.add_argument(
        "--limit", type=float, default=1.12, help="ignore boxes at this distance or more (default: %(default)s)"
    )
    _add_connection_options(watch)

    evaluate = _command(commands, "evaluate", "score a result against annotations")
    evaluate.add_argument("--result", type=Path, required=True, help="result.json to score")
    evaluate.add_argument(
        "--truth", type=Path, metavar="DIR", required=True, help="folder of image_annotation/ and video_annotation/"
    )
    evaluate.add_argument("-o", "--output", type=_output, help="also write the score to this JSON file")

    report = _command(commands, "report", "write an HTML page that shows each matched clip beside its product")
    report.add_argument("--result", type=Path, required=True, help="result.json to show")
    report.add_argument("--images", type=Path, metavar="DIR", required=True, help="folder of <item_id>/<k>.jpg")
    report.add_argument("--videos", type=Path, metavar="DIR", required=True, help="folder of <video_id>.mp4")
    report.add_argument("--matches", type=Path, help="matches.json, to show distances")
    report.add_argument("--truth", type=Path, metavar="DIR", help="annotations as for `evaluate`, to show scores")
    report.add_argument("--failures", type=Path, help="failures.parquet, to list the sources that failed")
    report.add_argument(
        "--pictures", type=int, default=2000, metavar="N",
        help="show images for the N nearest matches; those after the first 200 are files beside the page "
        "(default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--limit", type=_limit, default=1.12,
        help="limit to mark in the histogram, as for `match` (default: %(default)s)",
    )  # fmt: skip
    report.add_argument("-o", "--output", type=_output, required=True, help="report.html to write")
    return parser.parse_args(argv)


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, description: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=description, description=description)


def _add_connection_options(parser: argparse.ArgumentParser) -> None:
    from livematch.serving.settings import DEFAULT_URL  # here, so that importing this module does not import numpy

    server = parser.add_mutually_exclusive_group()
    server.add_argument(
        "--server", nargs="+", default=[DEFAULT_URL], metavar="HOST:PORT",
        help=f"gRPC addresses of one or more servers that serve the same models (default: {DEFAULT_URL})",
    )  # fmt: skip
    server.add_argument(
        "--repository", type=Path, help="start a server on this model repository, and stop it at the end"
    )
    parser.add_argument(
        "--max-tries", type=_positive, default=10, metavar="N",
        help="tries per request and server while all servers are down or overloaded (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--crop-scale", type=float, default=1.0, metavar="F",
        help="scale the crops by F, 1 to 2; use the same for images and videos (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--shared-memory", action="store_true",
        help="send images through shared memory, to servers on this machine; always on with --repository",
    )  # fmt: skip
    _add_key_option(parser, "access key, for servers that require one")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="TLS: certificate authority to trust")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="TLS: certificate to present to the server")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="TLS: private key of that certificate")


def _add_key_option(parser: argparse.ArgumentParser, description: str) -> None:
    default = os.environ.get("LIVEMATCH_KEY")
    parser.add_argument("--key", default=default, help=f"{description} (default: $LIVEMATCH_KEY)")


def _add_gallery_option(parser: argparse.ArgumentParser) -> None:
    help_text = "milvus:FILE.db, or milvus:URI of a cluster"
    parser.add_argument("--gallery", required=True, metavar="GALLERY", help=help_text)


def _add_embedding_options(parser: argparse.ArgumentParser) -> None:
    _add_connection_options(parser)
    parser.add_argument(
        "--frames", type=_frame_range, default="80:400:20", metavar="START:STOP:STEP",
        help="frames of each video to embed, STOP excluded (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=_positive, metavar="N",
        help="number of files to work on at once (default: twice the number of CPUs, at least 4)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="stop at the first file that fails")


def _add_matching_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantile", type=float, default=0.28, help="fraction of an item's boxes that vote (default: %(default)s)"
    )
    parser.add_argument(
        "--vote-share", type=float, default=0.5, help="fraction of the votes that a clip needs (default: %(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=1.12, help="drop matches at this distance or more (default: %(default)s)"
    )
    parser.add_argument(
        "--pairs", type=_positive, default=1, metavar="N",
        help="list up to N pairs of boxes per clip in the result (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=_num_bytes, default="2G", metavar="SIZE",
        help="memory limit of the process while it matches, such as 800M or 16G (default: %(default)s)",
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
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
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
        raise argparse.ArgumentTypeError(f"expected a whole number followed by M or G, such as 800M, got {text!r}")
    return int(text[:-1]) << units[text[-1]]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
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
        raise argparse.ArgumentTypeError(f"expected at least one frame and none negative, got {text!r}")
    return frames
