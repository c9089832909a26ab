"""Sources to a features file: decode, send, store, with several sources under way at once.

Each of a few threads takes one source file, decodes it and sends its pictures one after another, so that the server
works for some while others decode, and memory holds one picture per thread. Results are stored in the order of the
sources, whichever is ready first, so the file does not depend on timing.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from livematch.client import Client, Recognition
from livematch.decoding import DEFAULT_FRAMES, Pixels, read_frames, read_image
from livematch.errors import DecodeError, InputError, RequestError, UnavailableError
from livematch.sources import Failure, Source, list_images, list_videos
from livematch.store import FeaturesStore

NUM_IN_FLIGHT = 4

_WINDOW_PER_THREAD = 4  # sources begun or waiting, so that one slow source does not leave the other threads idle

_log = logging.getLogger(__name__)

Pictures = list[tuple[int, Recognition]]


@dataclass(frozen=True)
class Embedded:
    """What a run has done. num_resumed of the num_stored sources were in the file already; num_boxes counts all."""

    num_stored: int
    num_resumed: int
    num_boxes: int
    failures: list[Failure]


@dataclass(frozen=True)
class _Stages:
    decode: Callable[[Source], Iterable[tuple[int, Pixels]]]
    recognize: Callable[[Pixels], Recognition]


def embed_images(
    client: Client, directory: Path, output: Path, *, num_in_flight: int = NUM_IN_FLIGHT, strict: bool = False
) -> Embedded:
    """Write the features of `directory/<item_id>/<k>.jpg` to `output`; images already in it are skipped.

    Raises:
        DecodeError, RequestError: with `strict`, at the first source that fails. What is stored stays.
        UnavailableError: the server went away. What is stored stays, and the next run goes on from there.
        FeaturesError: `output` holds features of other models, or of something else.
        InputError: `directory` is no folder, or `num_in_flight` is below 1.
    """
    sources, failures = list_images(directory)
    stages = _Stages(lambda source: [(-1, read_image(source.path))], client.recognize_image)
    with FeaturesStore(output, model_identity=client.model_identity, selection="images") as store:
        return _embed(sources, failures, stages, store, num_in_flight, strict)


def embed_videos(
    client: Client,
    directory: Path,
    output: Path,
    *,
    frames: range = DEFAULT_FRAMES,
    num_in_flight: int = NUM_IN_FLIGHT,
    strict: bool = False,
) -> Embedded:
    """Write the features of `frames` of each `directory/<video_id>.mp4` to `output`, like `embed_images`.

    A video that lacks one of the frames fails as a whole: none of its frames is stored.
    """
    if not frames or min(frames) < 0:
        raise InputError(f"frames must be at least one, from 0 on; got {frames.start}:{frames.stop}:{frames.step}")
    sources, failures = list_videos(directory)
    stages = _Stages(lambda source: read_frames(source.path, frames), client.recognize_frame)
    selection = f"frames {frames.start}:{frames.stop}:{frames.step}"
    with FeaturesStore(output, model_identity=client.model_identity, selection=selection) as store:
        return _embed(sources, failures, stages, store, num_in_flight, strict)


def _embed(
    sources: Sequence[Source],
    failures: list[Failure],
    stages: _Stages,
    store: FeaturesStore,
    num_in_flight: int,
    strict: bool,
) -> Embedded:
    if num_in_flight < 1:
        raise InputError(f"num_in_flight must be at least 1, got {num_in_flight}")
    for failure in failures:
        if strict:
            raise DecodeError(failure.reason)
        _log.warning("%s", failure.reason)
    finished = store.finished
    waiting = [source for source in sources if source.key not in finished]
    num_resumed = len(sources) - len(waiting)
    description = sources[0].kind + "s" if sources else "sources"
    with tqdm(total=len(sources), initial=num_resumed, desc=description, unit="file", dynamic_ncols=True) as progress:
        try:
            with closing(_in_order(waiting, stages, num_in_flight)) as ordered:
                for source, future in ordered:
                    try:
                        store.append(source.key, future.result())
                    except (DecodeError, RequestError) as error:
                        reason = str(error) if isinstance(error, DecodeError) else f"{source.path}: {error}"
                        if strict:
                            raise type(error)(reason) from error
                        _log.warning("%s", reason)
                        failures.append(Failure(source.kind, source.source, source.name, reason))
                    progress.update()
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}; {len(store.finished)} sources are stored, the same command goes on from there"
            ) from error
    store.finish()
    return Embedded(len(store.finished), num_resumed, store.num_rows, failures)


def _in_order(
    sources: Iterable[Source], stages: _Stages, num_threads: int
) -> Generator[tuple[Source, Future[Pictures]], None, None]:
    """Work on the sources in threads, and yield each with its future, in order. Closing it stops the threads."""
    stopped = threading.Event()

    def work(source: Source) -> Pictures:
        pictures = []
        for frame_index, pixels in stages.decode(source):
            if stopped.is_set():
                raise CancelledError
            pictures.append((frame_index, stages.recognize(pixels)))
        return pictures

    remaining = iter(sources)
    window: deque[tuple[Source, Future[Pictures]]] = deque()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="livematch")
    try:
        while True:
            for source in islice(remaining, num_threads * _WINDOW_PER_THREAD - len(window)):
                window.append((source, executor.submit(work, source)))
            if not window:
                return
            yield window.popleft()
    finally:
        stopped.set()
        executor.shutdown(cancel_futures=True)
