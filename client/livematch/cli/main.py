"""The `livematch` command.

Progress, warnings and errors are written to stderr. The last line of stdout is a summary, as one line of JSON. The exit
codes are those of `livematch.cli.commands`.
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
from dataclasses import asdict, fields
from typing import Any, NoReturn

from tqdm import tqdm

import livematch
from livematch.cli.arguments import parse_arguments
from livematch.cli.commands import EXIT_FAILURES, EXIT_NOTHING, run_command
from livematch.errors import LivematchError, LocalServerError, UnavailableError

# `livematch.NAME` is imported on first use, and each command imports other names when it runs, so that
# `livematch --help` answers at once.

_MIN_UPTIME_S = 10.0  # a restarted server that ends sooner is not restarted again


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse_arguments(argv)
    log = logging.getLogger("livematch")
    log.handlers = [_StderrHandler(logging.WARNING)]
    log.propagate = False
    return run_command("livematch", lambda: _run_and_print_summary(options), (LivematchError, OSError))


def _run_and_print_summary(options: argparse.Namespace) -> int:
    summary = _COMMANDS[options.command](options)
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    nothing = _nothing_found(summary)
    if nothing:
        logging.getLogger("livematch").warning("%s", nothing)
    if summary.get("num_failures"):
        return EXIT_FAILURES
    return EXIT_NOTHING if nothing else 0


def _nothing_found(summary: dict[str, Any]) -> str:
    """Return what a command looked for in vain, "" if it found something."""
    parts = {"photos": summary.get("images"), "clips": summary.get("videos"), "files": summary}
    for name, part in parts.items():
        if part and part.get("num_stored") and not part.get("num_boxes"):
            return f"nothing was detected in {part['num_stored']} {name}; --min-score sets the limit for scores"
    return (
        "no item matches any clip; see whether the features files hold boxes" if summary.get("num_matches") == 0 else ""
    )


def _serve(options: argparse.Namespace) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = livematch.LocalServer(
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
                logging.getLogger("livematch").warning("%s; restarting it", error)
            server.stop()
            server.start()
            restart_s = time.monotonic()


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.pipeline.failures import write_failures

    embed_options = _embed_options(options, shard=options.shard)
    _check_sources(options)
    with _connect(options) as client:
        if options.images:
            summary = livematch.embed_images(client, options.images, options.output, embed_options)
        else:
            frames = options.frames
            summary = livematch.embed_videos(client, options.videos, options.output, embed_options, frames=frames)
    if options.failures:
        write_failures(summary.failures, options.failures)
    return summary.to_json()


def _match(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.results import write_matches
    from livematch.features.milvus import PREFIX
    from livematch.matching.nearest import memory_left
    from livematch.pipeline.run import match_by

    match_options = _match_options(options)
    queries = livematch.open_features(options.queries)
    if len(options.gallery) == 1 and options.gallery[0].startswith(PREFIX):
        if isinstance(match_options, livematch.CatalogueOptions):
            raise livematch.InputError("a gallery in Milvus needs --rule contest")
        with livematch.MilvusGallery(options.gallery[0], must_exist=True) as gallery:
            matches = livematch.match(queries, gallery, match_options)
    else:
        features = livematch.open_features(options.gallery)
        matches = match_by(match_options, queries, features, memory_bytes=memory_left(options.memory))
    livematch.write_result(matches, options.output)
    if options.matches:
        write_matches(matches, options.matches)
    return {"num_matches": len(matches)}


def _load(options: argparse.Namespace) -> dict[str, Any]:
    features = livematch.open_features(options.features)
    with livematch.MilvusGallery(options.gallery) as gallery:
        gallery.load(features)
    return {"num_rows": len(features)}


def _delete(options: argparse.Namespace) -> dict[str, Any]:
    with livematch.MilvusGallery(options.gallery, must_exist=True) as gallery:
        gallery.delete(options.sources)
    return {"num_sources": len(options.sources)}


def _run(options: argparse.Namespace) -> dict[str, Any]:
    # Built before connecting, so that a mistake in the options is reported at once.
    settings: dict[str, Any] = {
        "truth": livematch.read_ground_truth(options.truth) if options.truth else None,
        "embed_options": _embed_options(options),
        "match_options": _match_options(options),
        "memory_bytes": options.memory,
        "frames": options.frames,
    }
    _check_sources(options)
    with _connect(options) as client:
        return livematch.run(client, options.images, options.videos, options.output, **settings).to_json()


def _watch(options: argparse.Namespace) -> dict[str, Any]:
    products = livematch.read_features(options.gallery)
    settings = {"every": options.every, "options": _match_options(options)}
    num_decisions = 0
    with _connect(options) as client:
        for decision in livematch.watch(client, options.video, products, **settings):
            print(json.dumps(asdict(decision), ensure_ascii=False), flush=True)
            num_decisions += 1
    return {"num_decisions": num_decisions}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.results import write_json

    score: livematch.Score | livematch.MatchScore
    if options.matches:
        matches = livematch.read_matches(options.matches)
        score = livematch.evaluate_matches(matches, livematch.read_truth_table(options.truth))
    else:
        score = livematch.evaluate(livematch.read_result(options.result), livematch.read_ground_truth(options.truth))
    if options.output:
        write_json(score.to_json(), options.output)
    return score.summary()


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from livematch.evaluation.results import best_matches
    from livematch.pipeline.failures import read_failures

    matches = livematch.read_matches(options.matches) if options.matches else []
    livematch.write_report(
        options.output,
        livematch.read_result(options.result),
        images=options.images,
        videos=options.videos,
        distances={match.video_id: match.distance for match in best_matches(matches)},
        truth=livematch.read_ground_truth(options.truth) if options.truth else None,
        failures=read_failures(options.failures) if options.failures else [],
        limit=options.limit,
        num_pictured=options.pictures,
    )
    return {"report": str(options.output), "num_bytes": options.output.stat().st_size}


@contextmanager
def _connect(options: argparse.Namespace) -> Iterator["livematch.Client"]:
    """Context manager: yield a client of the servers at `--server`, or of one that is started on `--repository`."""
    settings: dict[str, Any] = {
        "max_tries": options.max_tries,
        "crop_scale": options.crop_scale,
        "min_score": options.min_score,
        "priority": "live" if options.command == "watch" else "batch",
    }
    if options.repository is None:
        files = {"root_certificates": options.tls_ca, "certificate_chain": options.tls_cert}
        tls = livematch.Tls(**files, private_key=options.tls_key)
        settings |= {"access_key": options.key, "tls": None if tls == livematch.Tls() else tls}
        with livematch.Client(options.server, **settings, shared_memory=options.shared_memory) as client:
            yield client
        return
    local_server = livematch.LocalServer(options.repository)
    with local_server as server, livematch.Client(server.url, **settings, shared_memory=True) as client:
        server.on_exit(client.close)  # otherwise the client would wait for the server to come back
        try:
            yield client
        except UnavailableError as error:
            try:
                server.check()
            except LocalServerError as reason:
                raise LocalServerError(f"{reason}; {error}") from error
            raise


def _check_sources(options: argparse.Namespace) -> None:
    """Raise InputError if there are no images or videos to embed, before a server starts or the others take hours."""
    from livematch.media.sources import list_images, list_videos

    if options.images:
        list_images(options.images)
    if options.videos:
        list_videos(options.videos)


def _embed_options(options: argparse.Namespace, shard: tuple[int, int] = (0, 1)) -> "livematch.EmbedOptions":
    concurrency = options.concurrency or livematch.EmbedOptions.concurrency
    return livematch.EmbedOptions(concurrency=concurrency, shard=shard, strict=options.strict)


def _match_options(options: argparse.Namespace) -> "livematch.MatchOptions | livematch.CatalogueOptions":
    """Return the options of the chosen rule; those that were not given keep their defaults."""
    kinds = {"contest": livematch.MatchOptions, "catalogue": livematch.CatalogueOptions}
    rule = getattr(options, "rule", "catalogue")
    names = {name: {field.name for field in fields(kind)} for name, kind in kinds.items()}
    given = {
        name: getattr(options, name)
        for name in names["contest"] | names["catalogue"]
        if getattr(options, name, None) not in (None, False)
    }
    if foreign := sorted(given.keys() - names[rule]):
        option = foreign[0].removeprefix("num_").replace("_", "-")
        other = next(name for name in kinds if name != rule)
        raise livematch.InputError(f"--{option} is an option of --rule {other}")
    chosen: livematch.MatchOptions | livematch.CatalogueOptions = kinds[rule](**given)
    return chosen


class _StderrHandler(logging.Handler):
    """Prints log messages above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"livematch: {record.getMessage()}", file=sys.stderr)


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
