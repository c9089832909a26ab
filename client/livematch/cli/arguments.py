"""Define and parse the options of each `livematch` command."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of one command, whose name becomes `command`; exit with a usage message if they are wrong."""
    parser = argparse.ArgumentParser(prog="livematch", description="Find which product a live-shopping clip shows.")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add_command(name: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=description, description=description)

    serve = add_command("serve", "run a Triton server on this machine until interrupted")
    serve.add_argument("--repository", type=Path, required=True, help="model repository to serve")
    about_config = "serve each model with its configs/NAME.pbtxt, if it has one"
    _add_setting(serve, "--config-name", "onnx", about_config, metavar="NAME")
    _add_setting(serve, "--host", "127.0.0.1", "address to listen on")
    for service, port in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        about_port = "port to listen on, or 0 to choose a free one"
        _add_setting(serve, f"--{service}-port", port, about_port, type=int, metavar="PORT")
    serve.add_argument("--log", type=Path, help="write the server's log to this file")
    about_exit = "seconds to let requests in flight finish when the server is stopped"
    _add_setting(serve, "--exit-timeout", "10", about_exit, type=_seconds, metavar="S")
    _add_key_option(serve, "access key required on every endpoint except health")
    serve.add_argument("triton_options", nargs="*", metavar="-- OPTION", help="further options for tritonserver")

    embed = add_command("embed", "detect and embed the garments of images or of videos")
    kind = embed.add_mutually_exclusive_group(required=True)
    about_images = "folder of <item_id>/<photo>, or a CSV file with the columns item_id,path[,title,url]"
    kind.add_argument("--images", type=Path, metavar="DIR_OR_CSV", help=about_images)
    kind.add_argument("--videos", type=Path, metavar="DIR", help="folder of <video_id>.mp4")
    embed.add_argument("-o", "--output", type=_output, required=True, help="features file to write (Parquet)")
    embed.add_argument("--failures", type=_output, help="also write the sources that failed to this Parquet file")
    about_shard = "embed only part I of N, where I starts at 0; give each part its own output file"
    embed.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help=about_shard)
    _add_embedding_options(embed)

    match = add_command("match", "find which item each clip shows")
    match.add_argument("--queries", type=Path, nargs="+", required=True, metavar="FILE", help="features of the images")
    about_gallery = "features of the videos, or a Milvus gallery: milvus:FILE.db or milvus:URI"
    match.add_argument("--gallery", nargs="+", required=True, metavar="FILE", help=about_gallery)
    match.add_argument("-o", "--output", type=_output, required=True, help="result.json to write")
    match.add_argument("--matches", type=_output, help="also write matches with distances to this JSON file")
    _add_matching_options(match)

    load = add_command("load", "add features of videos to a Milvus gallery, replacing those of the same clips")
    about_milvus = "milvus:FILE.db, or milvus:URI of a cluster"
    load.add_argument("--gallery", required=True, help=about_milvus)
    load.add_argument("--features", type=Path, nargs="+", required=True, metavar="FILE", help="features of the videos")

    delete = add_command("delete", "remove clips from a Milvus gallery")
    delete.add_argument("--gallery", required=True, help=about_milvus)
    delete.add_argument("--sources", nargs="+", required=True, metavar="ID", help="ids of the clips to remove")

    run = add_command("run", "embed, match and report in one command, and evaluate if --truth is given")
    run.add_argument("--images", type=Path, metavar="DIR_OR_CSV", required=True, help=about_images)
    run.add_argument("--videos", type=Path, metavar="DIR", required=True, help="folder of <video_id>.mp4")
    run.add_argument(
        "--truth", type=Path, metavar="DIR", help="annotations as for `evaluate --result`, to score the result"
    )
    run.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    _add_embedding_options(run)
    _add_matching_options(run)

    watch = add_command("watch", "print which product a stream shows, one line of JSON per frame")
    watch.add_argument("--video", required=True, metavar="FILE_OR_URL", help="file or URL that ffmpeg can open")
    watch.add_argument("--gallery", type=Path, required=True, metavar="FILE", help="features of the products' images")
    _add_setting(watch, "--every", 20, "recognize every N-th frame", type=_positive, metavar="N")
    _add_catalogue_options(watch, "1.0")
    _add_connection_options(watch)

    evaluate = add_command("evaluate", "score matches against a table of what clips show, or a result against boxes")
    scored = evaluate.add_mutually_exclusive_group(required=True)
    scored.add_argument("--matches", type=Path, help="matches.json to score against a CSV file")
    scored.add_argument("--result", type=Path, help="result.json to score against annotated boxes")
    about_truth = (
        "with --matches, a CSV file video_id,item_id, where item_id is empty for a clip that shows none; "
        "with --result, a folder of image_annotation/ and video_annotation/, where a clip has its item's id"
    )
    evaluate.add_argument("--truth", type=Path, metavar="CSV_OR_DIR", required=True, help=about_truth)
    evaluate.add_argument("-o", "--output", type=_output, help="also write the score to this JSON file")

    report = add_command("report", "write an HTML page that shows each matched clip beside its product")
    report.add_argument("--result", type=Path, required=True, help="result.json to show")
    report.add_argument("--images", type=Path, metavar="DIR_OR_CSV", required=True, help=about_images)
    report.add_argument("--videos", type=Path, metavar="DIR", required=True, help="folder of <video_id>.mp4")
    report.add_argument("--matches", type=Path, help="matches.json, to show distances")
    report.add_argument(
        "--truth", type=Path, metavar="DIR", help="annotations as for `evaluate --result`, to show scores"
    )
    report.add_argument("--failures", type=Path, help="failures.parquet, to list the sources that failed")
    about_pictures = "show images for the N nearest matches; those after the first 200 are files beside the page"
    _add_setting(report, "--pictures", 2000, about_pictures, type=int, metavar="N")
    _add_setting(report, "--limit", 1.12, "limit to mark in the histogram, as for `match`", type=_limit)
    report.add_argument("-o", "--output", type=_output, required=True, help="report.html to write")
    return parser.parse_args(argv)


def _add_setting(parser: argparse.ArgumentParser, name: str, default: object, about: str, **options: Any) -> None:
    """Add an option whose default is part of its help."""
    parser.add_argument(name, default=default, help=f"{about} (default: %(default)s)", **options)


def _add_connection_options(parser: argparse.ArgumentParser) -> None:
    from livematch.serving.settings import DEFAULT_URL  # here, so that importing this module does not import numpy

    server = parser.add_mutually_exclusive_group()
    about_server = f"gRPC addresses of one or more servers that serve the same models (default: {DEFAULT_URL})"
    server.add_argument("--server", nargs="+", default=[DEFAULT_URL], metavar="HOST:PORT", help=about_server)
    about_repository = "start a server on this model repository, and stop it at the end"
    server.add_argument("--repository", type=Path, help=about_repository)
    about_tries = "tries per request and server while all servers are down or overloaded"
    _add_setting(parser, "--max-tries", 10, about_tries, type=_positive, metavar="N")
    about_scale = "scale the crops by F, 1 to 2; use the same for photos and clips"
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="S",
        help="keep detections that score more, 0 to 1 (default: the server's limits)",
    )
    _add_setting(parser, "--crop-scale", "1", about_scale, type=float, metavar="F")
    about_memory = "send images through shared memory, to servers on this machine; always on with --repository"
    parser.add_argument("--shared-memory", action="store_true", help=about_memory)
    _add_key_option(parser, "access key, for servers that require one")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="TLS: certificate authority to trust")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="TLS: certificate to present to the server")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="TLS: private key of that certificate")


def _add_key_option(parser: argparse.ArgumentParser, description: str) -> None:
    default = os.environ.get("LIVEMATCH_KEY")
    parser.add_argument("--key", default=default, help=f"{description} (default: $LIVEMATCH_KEY)")


def _add_embedding_options(parser: argparse.ArgumentParser) -> None:
    _add_connection_options(parser)
    about_frames = "frames of each clip to embed, STOP excluded"
    _add_setting(parser, "--frames", "80:400:20", about_frames, type=_frame_range, metavar="START:STOP:STEP")
    about_concurrency = "number of files to work on at once (default: twice the number of CPUs, at least 4)"
    parser.add_argument("--concurrency", type=_positive, metavar="N", help=about_concurrency)
    parser.add_argument("--strict", action="store_true", help="stop at the first file that fails")


def _add_matching_options(parser: argparse.ArgumentParser) -> None:
    about_rule = "catalogue: all products that a clip shows; contest: one item per clip, one clip per item"
    _add_setting(parser, "--rule", "catalogue", about_rule, choices=["catalogue", "contest"])
    _add_catalogue_options(parser, "1.0, with --rule contest 1.12")
    contest = parser.add_argument_group("options of --rule contest")
    contest.add_argument("--quantile", type=float, metavar="Q", help="fraction of an item's boxes that vote: 0.28")
    contest.add_argument("--vote-share", type=float, metavar="F", help="fraction of the votes that a clip needs: 0.5")
    about_pairs = "list up to N pairs of boxes per clip in the result: 1"
    contest.add_argument("--pairs", dest="num_pairs", type=_positive, metavar="N", help=about_pairs)
    about_memory = "memory limit of the process while it matches, such as 800M or 16G"
    _add_setting(parser, "--memory", "2G", about_memory, type=_num_bytes, metavar="SIZE")


def _add_catalogue_options(parser: argparse.ArgumentParser, limit: str) -> None:
    about_limit = f"boxes at this distance or more from every product do not count: {limit}"
    parser.add_argument("--limit", type=float, metavar="D", help=about_limit)
    about_label = "compare a garment in a photo only with those in clips that the detector puts into the same class"
    parser.add_argument("--same-label", action="store_true", help=about_label)
    about_window = "sum the evidence for a product over N analysed frames: 6"
    parser.add_argument("--window", type=_positive, metavar="N", help=about_window)
    about_evidence = "evidence from which on a product counts as shown, 0 to 1: 0.2"
    parser.add_argument("--min-evidence", type=float, metavar="E", help=about_evidence)


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
