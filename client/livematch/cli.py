"""The `livematch` command.

Progress, warnings and errors go to stderr. The last line of stdout is the summary as one line of JSON. Exit codes:
0 all done, 2 nothing more could be done (one line says why), 3 done but for the sources listed as failures,
130 interrupted.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from livematch.errors import LivematchError, ServerError

if TYPE_CHECKING:
    from livematch.client import Client
    from livematch.embedding import Embedded
    from livematch.matching import Match
    from livematch.sources import Failure

EXIT_ERROR = 2
EXIT_FAILURES = 3
EXIT_INTERRUPTED = 130

DEFAULT_URL = "127.0.0.1:8001"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    _show_warnings()
    try:
        summary: dict[str, Any] = options.command(options)
    except (LivematchError, OSError) as error:  # OSError: an output folder that cannot be made, a full disk
        print(f"livematch: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("livematch: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    return EXIT_FAILURES if summary.get("num_failures") else 0


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.server import LocalServer

    signal.signal(signal.SIGTERM, _raise_interrupt)
    server = LocalServer(
        options.repository,
        config_name=options.config_name,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        log_path=options.log,
    )
    with server:
        addresses = {"url": server.url, "http_url": server.http_url, "metrics_url": server.metrics_url}
        print(json.dumps(addresses), flush=True)
        _wait_for_end(server.pid)
        raise ServerError(f"the server for {options.repository} has ended")


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.embedding import embed_images, embed_videos

    start_s = time.monotonic()
    with _connected(options) as client:
        flow: dict[str, Any] = {"num_in_flight": options.in_flight, "strict": options.strict}
        if options.images:
            embedded = embed_images(client, options.images, options.output, **flow)
        else:
            embedded = embed_videos(client, options.videos, options.output, frames=options.frames, **flow)
    if options.failures:
        _write_failures([embedded], options.failures)
    return _embedded_summary(embedded) | {"elapsed_s": round(time.monotonic() - start_s, 3)}


def _match(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.results import write_matches, write_result

    matches = _matches(options.queries, options.gallery, options)
    write_result(matches, options.output)
    if options.matches:
        write_matches(matches, options.matches)
    return {"num_matches": len(matches)}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation import evaluate
    from livematch.results import read_result, write_json
    from livematch.truth import read_truth

    score = evaluate(read_result(options.result), read_truth(options.truth)).to_json()
    if options.output:
        write_json(score, options.output)
    return {key: value for key, value in score.items() if key != "levels"}


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.report import write_report
    from livematch.results import read_distances, read_failures, read_result
    from livematch.truth import read_truth

    write_report(
        options.output,
        read_result(options.result),
        images=options.images,
        videos=options.videos,
        distances=read_distances(options.matches) if options.matches else {},
        truth=read_truth(options.truth) if options.truth else None,
        failures=read_failures(options.failures) if options.failures else [],
    )
    return {"report": str(options.output), "num_bytes": options.output.stat().st_size}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.embedding import embed_images, embed_videos
    from livematch.evaluation import evaluate
    from livematch.report import write_report
    from livematch.results import to_result, write_json, write_matches, write_result
    from livematch.truth import read_truth

    start_s = time.monotonic()
    out: Path = options.output
    truth = read_truth(options.truth) if options.truth else None  # before the long part: it may be unreadable
    flow: dict[str, Any] = {"num_in_flight": options.in_flight, "strict": options.strict}
    queries, gallery = out / "features" / "images.parquet", out / "features" / "videos.parquet"
    with _connected(options) as client:
        images = embed_images(client, options.images, queries, **flow)
        videos = embed_videos(client, options.videos, gallery, frames=options.frames, **flow)
    failures = _write_failures([images, videos], out / "failures.json")
    matches = _matches([queries], [gallery], options)
    write_result(matches, out / "result.json")
    write_matches(matches, out / "matches.json")
    summary: dict[str, Any] = {
        "images": _embedded_summary(images),
        "videos": _embedded_summary(videos),
        "num_matches": len(matches),
        "num_failures": len(failures),
    }
    if truth is not None:
        result = to_result(matches)
        score = evaluate(result, truth).to_json()
        write_json(score, out / "score.json")
        write_report(
            out / "report.html",
            result,
            images=options.images,
            videos=options.videos,
            distances={m.video_id: m.distance for m in matches},
            truth=truth,
            failures=failures,
            limit=options.limit,
        )
        summary["score"] = {key: value for key, value in score.items() if key != "levels"}
    return summary | {"elapsed_s": round(time.monotonic() - start_s, 3)}


@contextmanager
def _connected(options: argparse.Namespace) -> Iterator["Client"]:
    """A client of the server at --url, or of one started on --repository for as long as this lasts."""
    from livematch.client import Client
    from livematch.server import LocalServer

    if options.repository is None:
        with Client(options.url, max_tries=options.max_tries) as client:
            yield client
    else:
        with LocalServer(options.repository) as server, Client(server.url, max_tries=options.max_tries) as client:
            yield client


def _matches(queries: Sequence[Path], gallery: Sequence[Path], options: argparse.Namespace) -> "list[Match]":
    from livematch.features import open_features
    from livematch.matching import Rule, match

    rule = Rule(
        quantile=options.quantile,
        vote_share=options.vote_share,
        limit=options.limit,
        assignment=options.assignment,
        num_pairs=options.pairs,
    )
    return match(open_features(queries), open_features(gallery), rule, memory_bytes=options.memory)


def _write_failures(parts: "Sequence[Embedded]", path: Path) -> "list[Failure]":
    from livematch.results import write_failures

    failures = [failure for part in parts for failure in part.failures]
    write_failures(failures, path)
    return failures


def _embedded_summary(embedded: "Embedded") -> dict[str, Any]:
    return {
        "num_stored": embedded.num_stored,
        "num_resumed": embedded.num_resumed,
        "num_boxes": embedded.num_boxes,
        "num_failures": len(embedded.failures),
    }


def _wait_for_end(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.5)


def _raise_interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


class _StderrHandler(logging.Handler):
    """Prints above a progress bar, if one is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"livematch: {record.getMessage()}", file=sys.stderr)


def _show_warnings() -> None:
    log = logging.getLogger("livematch")
    log.handlers = [_StderrHandler(logging.WARNING)]
    log.propagate = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="livematch", description="Which product does a live clip show?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = _command(commands, "serve", _serve, "run a Triton server on this machine, until interrupted")
    serve.add_argument("--repository", type=Path, required=True, help="model repository")
    serve.add_argument("--config-name", default="onnx", help="which of the models' configs (default: %(default)s)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--grpc-port", type=int, default=8001, help="0: any free one (default: %(default)s)")
    serve.add_argument("--http-port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    serve.add_argument("--metrics-port", type=int, default=8002, help="0: any free one (default: %(default)s)")
    serve.add_argument("--log", type=Path, help="the server's log file")

    embed = _command(commands, "embed", _embed, "detect and embed the garments of images or of videos")
    kind = embed.add_mutually_exclusive_group(required=True)
    kind.add_argument("--images", type=Path, help="folder of <item_id>/<k>.jpg")
    kind.add_argument("--videos", type=Path, help="folder of <video_id>.mp4")
    embed.add_argument("-o", "--output", type=Path, required=True, help="features file (Parquet)")
    embed.add_argument("--failures", type=Path, help="write the sources that failed to this JSON file")
    _add_server_options(embed)

    match = _command(commands, "match", _match, "match items to clips")
    match.add_argument("--queries", type=Path, nargs="+", required=True, metavar="FILE", help="features of the images")
    match.add_argument("--gallery", type=Path, nargs="+", required=True, metavar="FILE", help="features of the videos")
    match.add_argument("-o", "--output", type=Path, required=True, help="result.json")
    match.add_argument("--matches", type=Path, help="also write the matches with their distances to this JSON file")
    _add_matching_options(match)

    run = _command(commands, "run", _run, "embed, match and, with --truth, evaluate and report")
    run.add_argument("--images", type=Path, required=True, help="folder of <item_id>/<k>.jpg")
    run.add_argument("--videos", type=Path, required=True, help="folder of <video_id>.mp4")
    run.add_argument("--truth", type=Path, help="annotated part: image_annotation/ and video_annotation/")
    run.add_argument("-o", "--output", type=Path, required=True, help="folder for all that is written")
    _add_server_options(run)
    _add_matching_options(run)

    evaluate = _command(commands, "evaluate", _evaluate, "score a result against annotations")
    evaluate.add_argument("--result", type=Path, required=True, help="result.json")
    evaluate.add_argument("--truth", type=Path, required=True, help="part: image_annotation/ and video_annotation/")
    evaluate.add_argument("-o", "--output", type=Path, help="score.json")

    report = _command(commands, "report", _report, "one HTML page with every matched clip beside its product")
    report.add_argument("--result", type=Path, required=True, help="result.json")
    report.add_argument("--images", type=Path, required=True, help="folder of <item_id>/<k>.jpg")
    report.add_argument("--videos", type=Path, required=True, help="folder of <video_id>.mp4")
    report.add_argument("--matches", type=Path, help="matches.json, for the distances")
    report.add_argument("--truth", type=Path, help="annotated part, for the levels S1 to S3")
    report.add_argument("--failures", type=Path, help="failures.json")
    report.add_argument("-o", "--output", type=Path, required=True, help="report.html")
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], dict[str, Any]],
    description: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=description, description=description)
    parser.set_defaults(command=command)
    return parser


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    server = parser.add_mutually_exclusive_group()
    server.add_argument("--url", default=DEFAULT_URL, help="gRPC address of a server (default: %(default)s)")
    server.add_argument("--repository", type=Path, help="start a server on this model repository for the run")
    parser.add_argument(
        "--frames", type=_frame_range, default="80:400:20", metavar="START:STOP:STEP",
        help="frames of a video, STOP not included (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--in-flight", type=int, default=4, metavar="N", help="requests at once (default: %(default)s)")
    parser.add_argument(
        "--max-tries", type=int, default=6, metavar="N",
        help="how often a request is sent to a server that is down or overloaded (default: %(default)s)",
    )  # fmt: skip
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
        "--assignment", choices=("nearest", "joint"), default="nearest",
        help="each item takes its nearest clip, or all are assigned together (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", type=int, default=1, metavar="N", help="box pairs per clip in the result (default: %(default)s)"
    )
    parser.add_argument(
        "--memory", type=_num_bytes, default="2G", metavar="SIZE",
        help="what matching may use in all, e.g. 800M or 16G (default: %(default)s)",
    )  # fmt: skip


def _num_bytes(text: str) -> int:
    units = {"M": 20, "G": 30}
    if text[-1:] not in units or not text[:-1].isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number with M or G, as 800M, got {text!r}")
    return int(text[:-1]) << units[text[-1]]


def _frame_range(text: str) -> range:
    try:
        start, stop, step = map(int, text.split(":"))
        frames = range(start, stop, step)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected START:STOP:STEP, got {text!r}") from error
    if not frames or min(frames) < 0:
        raise argparse.ArgumentTypeError(f"no frames, or negative ones, in {text!r}")
    return frames


if __name__ == "__main__":
    sys.exit(main())
