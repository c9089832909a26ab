"""Sources to a features file: decode, send, store, with several sources under way at once.

Each of a few threads takes one source file, decodes it once and sends its pictures one after another, so that the
server works for some while others decode, and memory holds one picture per thread. Results are stored in the order of
the sources, whichever is ready first, so the file does not depend on timing.
"""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from livematch.errors import ContractError, DecodeError, InputError, RequestError, UnavailableError
from livematch.features.store import FeaturesStore
from livematch.flip import with_flip
from livematch.media.images import read_image
from livematch.media.sources import Source, list_images, list_videos, take_shard
from livematch.media.videos import DEFAULT_FRAMES, read_frames
from livematch.serving.client import Client
from livematch.types import Failure, Pixels, Recognition

DEFAULT_CONCURRENCY = max(4, 2 * (os.cpu_count() or 1))
"""Half of the threads decode on a core each while the others wait for the server."""

_WINDOW_PER_THREAD = 4  # sources begun or waiting, so that one slow source does not leave the other threads idle

_log = logging.getLogger(__name__)

Pictures = list[tuple[int, Recognition]]


@dataclass(frozen=True)
class EmbedSummary:
    """What a run has done.

    num_stored, num_boxes: sources and boxes in the file now, those of other folders included.
    num_resumed: sources of this folder that were in the file already.
    num_tried: sources that were not, failed ones included.
    """

    num_stored: int
    num_resumed: int
    num_tried: int
    num_boxes: int
    failures: list[Failure]
    elapsed_s: float

    @property
    def sources_per_s(self) -> float:
        """Of those that were tried."""
        return self.num_tried / self.elapsed_s


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How sources are worked on.

    concurrency: sources under way at once, which is also the number of requests in flight.
    shard: (index, num_shards) of the sources to take; see `take_shard`.
    strict: stop at the first source that fails.
    flip: average each embedding with that of the mirrored picture; see `with_flip`.

    Raises:
        InputError: `concurrency` is below 1.
    """

    concurrency: int = DEFAULT_CONCURRENCY
    shard: tuple[int, int] = (0, 1)
    strict: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InputError(f"concurrency must be at least 1, got {self.concurrency}")


@dataclass(frozen=True)
class _Stages:
    decode: Callable[[Source], Iterable[tuple[int, Pixels]]]
    recognize: Callable[[Client, Pixels], Recognition]


def embed_images(client: Client, directory: Path, output: Path, flow: EmbedOptions | None = None) -> EmbedSummary:
    """Write the features of `directory/<item_id>/<k>.jpg` to `output`; images already in it are skipped.

    Raises:
        DecodeError, RequestError: with `strict`, at the first source that fails. What is stored stays.
        UnavailableError: the server went away. What is stored stays, and the next run goes on from there.
        ContractError: the server's models were exchanged meanwhile. `output` is not written.
        FeaturesError: `output` holds features of other models, or of something else.
        InputError: `directory` is no folder.
    """
    flow = flow or EmbedOptions()
    stages = _Stages(lambda source: [(-1, read_image(source.path))], Client.recognize_image)
    return _embed(client, list_images(directory), stages, output, "images", flow)


def embed_videos(
    client: Client,
    directory: Path,
    output: Path,
    flow: EmbedOptions | None = None,
    *,
    frames: range = DEFAULT_FRAMES,
) -> EmbedSummary:
    """Write the features of `frames` of each `directory/<video_id>.mp4` to `output`, like `embed_images`.

    A video that lacks one of the frames fails as a whole: none of its frames is stored.
    """
    if not frames or min(frames) < 0:
        raise InputError(f"frames must be at least one, from 0 on; got {frames.start}:{frames.stop}:{frames.step}")
    stages = _Stages(lambda source: read_frames(source.path, frames), Client.recognize_frame)
    selection = f"frames {frames.start}:{frames.stop}:{frames.step}"
    return _embed(client, list_videos(directory), stages, output, selection, flow or EmbedOptions())


def _embed(
    client: Client,
    listed: tuple[list[Source], list[Failure]],
    stages: _Stages,
    output: Path,
    selection: str,
    flow: EmbedOptions,
) -> EmbedSummary:
    if flow.flip:
        selection += ", flip"
    if client.crop_scale != 1:
        selection += f", crops scaled by {client.crop_scale}"
    sources = take_shard(listed[0], flow.shard)
    failures = listed[1] if flow.shard[0] == 0 else []  # these are in no shard
    for failure in failures:
        if flow.strict:
            raise DecodeError(failure.reason)
        _log.warning("%s", failure.reason)
    with FeaturesStore(output, model_identity=client.model_identity, selection=selection) as store:
        return _fill(store, client, sources, failures, stages, flow)


def _fill(
    store: FeaturesStore,
    client: Client,
    sources: Sequence[Source],
    failures: list[Failure],
    stages: _Stages,
    flow: EmbedOptions,
) -> EmbedSummary:
    start_s = time.monotonic()
    finished = store.finished
    waiting = [source for source in sources if source.key not in finished]
    num_resumed = len(sources) - len(waiting)
    description = sources[0].kind + "s" if sources else "sources"
    with tqdm(
        total=len(sources),
        initial=num_resumed,
        desc=description,
        unit="file",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file needs fewer lines
    ) as progress:
        try:
            with closing(_in_order(waiting, client, stages, flow)) as ordered:
                for source, future in ordered:
                    try:
                        store.append(source.key, future.result())
                    except (DecodeError, RequestError) as error:
                        reason = str(error) if isinstance(error, DecodeError) else f"{source.path}: {error}"
                        if flow.strict:
                            raise type(error)(reason) from error
                        _log.warning("%s", reason)
                        stage: Literal["decode", "recognize"] = (
                            "decode" if isinstance(error, DecodeError) else "recognize"
                        )
                        failures.append(Failure(source.kind, source.source, source.name, stage, reason))
                    progress.update()
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}; {len(store.finished)} sources are stored, the same command goes on from there"
            ) from error
    try:
        client.check_identity()
    except ContractError as error:  # they were exchanged between two requests
        raise ContractError(f"{error}; remove {store.partial_path}, which may hold embeddings of both") from error
    store.finish()
    return EmbedSummary(
        num_stored=len(store.finished),
        num_resumed=num_resumed,
        num_tried=len(waiting),
        num_boxes=store.num_rows,
        failures=failures,
        elapsed_s=time.monotonic() - start_s,
    )


def _in_order(
    sources: Iterable[Source], client: Client, stages: _Stages, flow: EmbedOptions
) -> Generator[tuple[Source, Future[Pictures]], None, None]:
    """Work on the sources in threads, and yield each with its future, in order.

    Closing it stops the threads. They have connections of their own, so that this ends their requests too, which may
    last for minutes while a server is away.
    """
    stopped = threading.Event()
    connected = client.copy()
    recognize: Callable[[Pixels], Recognition] = partial(stages.recognize, connected)
    if flow.flip:
        recognize = with_flip(recognize)

    def work(source: Source) -> Pictures:
        pictures = []
        for frame_index, pixels in stages.decode(source):
            if stopped.is_set():
                raise CancelledError
            pictures.append((frame_index, recognize(pixels)))
        return pictures

    remaining = iter(sources)
    window: deque[tuple[Source, Future[Pictures]]] = deque()
    executor = ThreadPoolExecutor(flow.concurrency, thread_name_prefix="livematch")
    try:
        while True:
            for source in islice(remaining, flow.concurrency * _WINDOW_PER_THREAD - len(window)):
                window.append((source, executor.submit(work, source)))
            if not window:
                return
            yield window.popleft()
    finally:
        stopped.set()
        connected.close()
        executor.shutdown(cancel_futures=True)
