"""Embed image or video files: decode them, send them to the server, and store the result in a features file.

Several threads work at once. Each takes one source (an image or video file), decodes it once, and sends its images or
frames one after another. So the server computes for some sources while others are decoded, and memory holds one
decoded image per thread. Results are stored in the order of the sources, so the file does not depend on timing.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from livematch.errors import ContractError, DecodeError, InputError, RequestError, UnavailableError
from livematch.features.store import FeaturesStore
from livematch.media.images import read_image
from livematch.media.sources import Listing, Source, list_images, list_videos, take_shard
from livematch.media.videos import DEFAULT_FRAMES, read_frames
from livematch.serving.client import Client, submit_in_order
from livematch.types import Failure, Recognition

DEFAULT_CONCURRENCY = max(4, 2 * (os.cpu_count() or 1))
"""Twice the number of cores: half of the threads can decode while the others wait for the server."""

_SUBMITTED_PER_THREAD = 4  # more than one, so that a slow source does not leave the other threads idle

_log = logging.getLogger(__name__)

Recognitions = list[tuple[int, Recognition]]
"""(frame_index, recognition) for each embedded frame of a video; a single one with frame_index -1 for an image."""

_Recognize = Callable[[Client, Source], Recognitions]


@dataclass(frozen=True)
class EmbedSummary:
    """Describes what a call of `embed_images` or `embed_videos` did.

    num_stored: sources in the features file now, including those of earlier runs on other folders.
    num_resumed: sources of this folder that the file already contained.
    num_tried: sources of this folder that it did not contain, including those that failed.
    num_boxes: boxes in the features file now.
    failures: sources that could not be listed, decoded or recognized; the file does not contain them.
    """

    num_stored: int
    num_resumed: int
    num_tried: int
    num_boxes: int
    failures: list[Failure]
    elapsed_s: float

    @property
    def sources_per_s(self) -> float:
        """Tried sources per second."""
        return self.num_tried / self.elapsed_s

    def to_json(self) -> dict[str, Any]:
        """Return the summary that `livematch embed` prints."""
        return {
            "num_stored": self.num_stored,
            "num_resumed": self.num_resumed,
            "num_boxes": self.num_boxes,
            "num_failures": len(self.failures),
            "elapsed_s": round(self.elapsed_s, 3),
            "sources_per_s": round(self.sources_per_s, 2),
        }


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Options of `embed_images` and `embed_videos`.

    concurrency: number of sources to work on at once; each has at most one request in flight.
    shard: (index, num_shards): embed only that part of the folder, to spread the work over several runs that write
        one file each; see `take_shard`.
    strict: raise the first failure instead of collecting failures in the summary.

    Raises:
        InputError: `concurrency` is below 1.
    """

    concurrency: int = DEFAULT_CONCURRENCY
    shard: tuple[int, int] = (0, 1)
    strict: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InputError(f"concurrency must be at least 1, got {self.concurrency}")


def embed_images(
    client: Client, images: str | Path, output: str | Path, options: EmbedOptions | None = None
) -> EmbedSummary:
    """Embed the images `images/<item_id>/<photo>`, and write their features to the Parquet file `output`.

    If `images` is a file, it is a CSV manifest: item_id,path[,title,url].
    Images that `output` already contains are skipped. If a run is interrupted, the next one resumes it.

    >>> with livematch.Client("127.0.0.1:8001") as client:
    ...     summary = embed_images(client, "images", "images.parquet")
    >>> features = livematch.read_features("images.parquet")

    Raises:
        DecodeError, RequestError: a source failed, and `strict` is set. The sources before it stay stored.
        UnavailableError: the server no longer answers. What is stored stays, and the next run resumes from there.
        ContractError: the server's models were replaced during the run. `output` is not written.
        FeaturesError: `output` was made by other models, is no file of image features, or another run is writing it.
        InputError: `images` is not a folder or holds no item folders, the manifest has a mistake, or the index of
            `options.shard` is out of range.
    """

    def recognize(client: Client, source: Source) -> Recognitions:
        return [(-1, client.recognize_image(read_image(source.path)))]

    return _embed(client, list_images(images), recognize, Path(output), "images", options or EmbedOptions())


def embed_videos(
    client: Client,
    directory: str | Path,
    output: str | Path,
    options: EmbedOptions | None = None,
    *,
    frames: range = DEFAULT_FRAMES,
) -> EmbedSummary:
    """Embed `frames` of each video `directory/<video_id>.mp4`; see `embed_images`, whose errors are raised here too.

    A video without one of the frames fails as a whole: none of its frames is stored.

    Raises:
        InputError: also if `frames` is empty or contains a negative index.
    """
    selection = f"{frames.start}:{frames.stop}:{frames.step}"
    if not frames or min(frames) < 0:
        raise InputError(f"frames must be at least one index and none negative, got {selection}")

    def recognize(client: Client, source: Source) -> Recognitions:
        return [(index, client.recognize_frame(pixels)) for index, pixels in read_frames(source.path, frames)]

    return _embed(
        client, list_videos(directory), recognize, Path(output), f"frames {selection}", options or EmbedOptions()
    )


def _embed(
    client: Client, listing: Listing, recognize: _Recognize, output: Path, selection: str, options: EmbedOptions
) -> EmbedSummary:
    if client.crop_scale != 1:
        selection += f", crops scaled by {client.crop_scale}"
    if client.min_score is not None:
        selection += f", scores above {client.min_score}"
    sources = take_shard(listing[0], options.shard)
    failures = listing[1] if options.shard[0] == 0 else []  # they belong to no shard, so the first one reports them
    for failure in failures:
        if options.strict:
            raise DecodeError(failure.reason)
        _log.warning("%s", failure.reason)
    identity, size = client.model_identity, client.embedding_size
    with FeaturesStore(output, model_identity=identity, embedding_size=size, selection=selection) as store:
        start_s = time.monotonic()
        finished = store.finished
        waiting = [source for source in sources if source.key not in finished]
        num_resumed = len(sources) - len(waiting)
        num_ahead = _SUBMITTED_PER_THREAD * options.concurrency
        futures = submit_in_order(client, recognize, waiting, num_threads=options.concurrency, num_ahead=num_ahead)
        progress = tqdm(
            total=len(sources),
            initial=num_resumed,
            desc=f"{sources[0].kind}s" if sources else "sources",
            unit="file",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; fewer lines in a log file
        )
        with progress, closing(futures):
            failures = [*failures, *_store(store, zip(waiting, futures, strict=True), options.strict, progress)]
        try:
            client.check_identity()
        except ContractError as error:  # no request noticed that the models were replaced between two requests
            reason = f"{error}; remove {store.partial_path}, which may contain embeddings of both models"
            raise ContractError(reason) from error
        store.finish({source.source: (source.title, source.url) for source in sources if source.title or source.url})
        return EmbedSummary(
            num_stored=len(store.finished),
            num_resumed=num_resumed,
            num_tried=len(waiting),
            num_boxes=store.num_rows,
            failures=failures,
            elapsed_s=time.monotonic() - start_s,
        )


def _store(
    store: FeaturesStore, recognized: Iterable[tuple[Source, Future[Recognitions]]], strict: bool, progress: tqdm
) -> list[Failure]:
    """Store the recognized sources one by one; return those that failed."""
    failures = []
    for source, future in recognized:
        try:
            store.append(source.key, future.result())
        except (DecodeError, RequestError) as error:
            if isinstance(error, DecodeError):  # its message names the file already
                failure = source.fail("decode", str(error))
            else:
                failure = source.fail("recognize", f"{source.path}: {error}")
            if strict:
                raise type(error)(failure.reason) from error
            _log.warning("%s", failure.reason)
            failures.append(failure)
        except UnavailableError as error:
            progress_so_far = f"{len(store.finished)} sources are stored, the next run resumes there"
            raise UnavailableError(f"{error}; {progress_so_far}") from error
        progress.update()
    return failures
