"""The `livematch` command.

Progress, warnings and errors go to stderr. The last line of stdout is the summary as one line of JSON. Exit codes:
0 all done, 2 nothing more could be done (one line says why), 3 done but for the sources listed as failures,
130 interrupted.
"""

import argparse
import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from livematch.cli.arguments import parse_arguments
from livematch.errors import LivematchError, LocalServerError, UnavailableError

if TYPE_CHECKING:
    from livematch.matching.vote import Match, MatchOptions
    from livematch.pipeline.embed import EmbedSummary
    from livematch.serving.client import Client

_MIN_UPTIME_S = 10.0  # a server that ends so soon after it was started again is given up

EXIT_ERROR = 2
EXIT_FAILURES = 3
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse_arguments(argv)
    _show_warnings()
    try:
        summary: dict[str, Any] = _COMMANDS[options.command](options)
    except (LivematchError, OSError) as error:  # OSError: an output folder that cannot be made, a full disk
        print(f"livematch: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("livematch: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    return EXIT_FAILURES if summary.get("num_failures") else 0


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.local.local_server import LocalServer

    signal.signal(signal.SIGTERM, _raise_interrupt)
    server = LocalServer(
        options.repository,
        config_name=options.config_name,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        log_path=options.log,
        exit_timeout_s=options.exit_timeout,
        access_key=options.key,
        extra_args=options.triton_options,
    )
    has_ended = threading.Event()
    server.on_exit(has_ended.set)
    with server:
        addresses = {"url": server.url, "http_url": server.http_url, "metrics_url": server.metrics_url}
        print(json.dumps(addresses), flush=True)
        restart_s = -math.inf
        while True:
            has_ended.wait()
            has_ended.clear()
            try:
                server.check()
            except LocalServerError as error:
                if time.monotonic() < restart_s + _MIN_UPTIME_S:
                    raise
                logging.getLogger("livematch").warning("%s; it is started again", error)
            server.stop()
            server.start()
            restart_s = time.monotonic()


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.pipeline.embed import DEFAULT_CONCURRENCY, EmbedOptions, embed_images, embed_videos
    from livematch.pipeline.failures import write_failures

    flow = EmbedOptions(
        concurrency=options.concurrency or DEFAULT_CONCURRENCY,
        shard=options.shard,
        strict=options.strict,
        flip=options.flip,
    )
    with _connected(options) as client:
        if options.images:
            embedded = embed_images(client, options.images, options.output, flow)
        else:
            embedded = embed_videos(client, options.videos, options.output, flow, frames=options.frames)
    if options.failures:
        write_failures(embedded.failures, options.failures)
    return _embedded_summary(embedded)


def _match(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.results import write_matches, write_result

    matches = _matches(options.queries, options.gallery, _match_options(options), options.memory)
    write_result(matches, options.output)
    if options.matches:
        write_matches(matches, options.matches)
    return {"num_matches": len(matches)}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.ground_truth import read_ground_truth
    from livematch.evaluation.results import read_result, write_json
    from livematch.evaluation.scores import evaluate

    score = evaluate(read_result(options.result), read_ground_truth(options.truth)).to_json()
    if options.output:
        write_json(score, options.output)
    return {key: value for key, value in score.items() if key != "levels"}


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.ground_truth import read_ground_truth
    from livematch.evaluation.results import read_distances, read_result
    from livematch.pipeline.failures import read_failures
    from livematch.report.report import write_report

    write_report(
        options.output,
        read_result(options.result),
        images=options.images,
        videos=options.videos,
        distances=read_distances(options.matches) if options.matches else {},
        truth=read_ground_truth(options.truth) if options.truth else None,
        failures=read_failures(options.failures) if options.failures else [],
        limit=options.limit,
        num_pictured=options.pictures,
    )
    return {"report": str(options.output), "num_bytes": options.output.stat().st_size}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.ground_truth import read_ground_truth
    from livematch.evaluation.results import to_result, write_json, write_matches, write_result
    from livematch.evaluation.scores import evaluate
    from livematch.pipeline.embed import DEFAULT_CONCURRENCY, EmbedOptions, embed_images, embed_videos
    from livematch.pipeline.failures import write_failures
    from livematch.report.report import write_report

    start_s = time.monotonic()
    out: Path = options.output
    # Before the long part, because both may be wrong.
    truth = read_ground_truth(options.truth) if options.truth else None
    rule = _match_options(options)
    concurrency = options.concurrency or DEFAULT_CONCURRENCY
    flow = EmbedOptions(concurrency=concurrency, strict=options.strict, flip=options.flip)
    queries, gallery = out / "features" / "images.parquet", out / "features" / "videos.parquet"
    with _connected(options) as client:
        images = embed_images(client, options.images, queries, flow)
        videos = embed_videos(client, options.videos, gallery, flow, frames=options.frames)
    failures = [*images.failures, *videos.failures]
    write_failures(failures, out / "failures.parquet")
    matches = _matches([queries], [gallery], rule, options.memory)
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
    """A client of the servers at --server, or of one started on --repository for as long as this lasts."""
    from livematch.local.local_server import LocalServer
    from livematch.serving.client import Client
    from livematch.serving.settings import Tls

    settings: dict[str, Any] = {
        "max_tries": options.max_tries,
        "crop_scale": options.crop_scale,
        "priority": "live" if options.command == "watch" else "batch",
    }
    if options.repository is None:
        tls = Tls(root_certificates=options.tls_ca, certificate_chain=options.tls_cert, private_key=options.tls_key)
        settings |= {"access_key": options.key, "tls": None if tls == Tls() else tls}
        with Client(options.server, **settings, shared_memory=options.shared_memory) as client:
            yield client
        return
    with LocalServer(options.repository) as server, Client(server.url, **settings, shared_memory=True) as client:
        server.on_exit(client.close)  # so that nobody waits for it to come back
        try:
            yield client
        except UnavailableError as error:
            try:
                server.check()
            except LocalServerError as reason:
                raise LocalServerError(f"{reason}; {error}") from error
            raise


def _watch(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from livematch.features.table import read_features
    from livematch.pipeline.watch import watch

    products = read_features(options.gallery)
    num_decisions = 0
    with _connected(options) as client:
        window = {"every": options.every, "num_frames": options.window, "limit": options.limit}
        for decision in watch(client, options.video, products, **window):
            print(json.dumps(asdict(decision), ensure_ascii=False), flush=True)
            num_decisions += 1
    return {"num_decisions": num_decisions}


def _load(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.features.milvus import MilvusGallery
    from livematch.features.table import open_features

    features = open_features(options.features)
    with MilvusGallery(options.gallery) as gallery:
        gallery.load(features)
    return {"num_rows": len(features)}


def _delete(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.features.milvus import MilvusGallery

    with MilvusGallery(options.gallery, must_exist=True) as gallery:
        gallery.delete(options.sources)
    return {"num_sources": len(options.sources)}


def _match_options(options: argparse.Namespace) -> "MatchOptions":
    from livematch.matching.vote import MatchOptions

    return MatchOptions(
        quantile=options.quantile,
        vote_share=options.vote_share,
        limit=options.limit,
        assignment=options.assignment,
        num_pairs=options.pairs,
    )


def _matches(
    queries: Sequence[Path], gallery: Sequence[str | Path], rule: "MatchOptions", memory_bytes: int
) -> "list[Match]":
    from livematch.features.milvus import PREFIX, MilvusGallery
    from livematch.features.table import open_features
    from livematch.matching.nearest import memory_left
    from livematch.matching.vote import match

    if len(gallery) == 1 and str(gallery[0]).startswith(PREFIX):
        with MilvusGallery(str(gallery[0]), must_exist=True) as collection:
            return collection.match(open_features(queries), rule)
    features = open_features(queries), open_features(list(map(Path, gallery)))
    return match(*features, rule, memory_bytes=memory_left(memory_bytes))


def _embedded_summary(embedded: "EmbedSummary") -> dict[str, Any]:
    return {
        "num_stored": embedded.num_stored,
        "num_resumed": embedded.num_resumed,
        "num_boxes": embedded.num_boxes,
        "num_failures": len(embedded.failures),
        "elapsed_s": round(embedded.elapsed_s, 3),
        "sources_per_s": round(embedded.sources_per_s, 2),
    }


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


_COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "serve": _serve,
    "embed": _embed,
    "match": _match,
    "load": _load,
    "delete": _delete,
    "run": _run,
    "watch": _watch,
    "evaluate": _evaluate,
    "report": _report,
}
