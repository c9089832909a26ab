"""Which product does a stream show right now: frame by frame, over a sliding window."""

import contextlib
import math
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from livematch.errors import InputError
from livematch.features.table import Features, check_comparable
from livematch.matching.vote import MatchOptions
from livematch.media.streams import StreamFrame, read_stream
from livematch.serving.client import Client
from livematch.types import EMBEDDING_SIZE, Box, Recognition


@dataclass(frozen=True)
class Decision:
    """What is shown at a frame.

    item_id: the product with the most weight in the window; None if nothing there is nearer than the limit.
    confidence: its share of the weight of all products in the window, 0..1.
    distance, img_name, frame_box: of its nearest box in this very frame, None if it is not in it.
    """

    frame_index: int
    time_s: float
    item_id: str | None
    confidence: float
    distance: float | None = None
    img_name: str | None = None
    frame_box: Box | None = None


@dataclass(frozen=True)
class _Sighting:
    item_id: str
    img_name: str
    distance: float
    weight: float
    frame_box: Box


class Window:
    """Decides from the sightings of the last `num_frames` frames looked at.

    Each box counts for the product whose photo is nearest, with its detector score times how far its squared distance
    is below `limit`.

    Raises:
        InputError: `num_frames` is below 1, or `limit` is not a positive number.
    """

    def __init__(self, products: Features, *, num_frames: int, limit: float) -> None:
        if num_frames < 1:
            raise InputError(f"the window needs at least 1 frame, got {num_frames}")
        if not 0 < limit < math.inf:
            raise InputError(f"the limit must be a positive number, got {limit}")
        self._products = products
        self._directions = products.embeddings / np.linalg.norm(products.embeddings, axis=1, keepdims=True)
        self._limit = limit
        self._frames: deque[list[_Sighting]] = deque(maxlen=num_frames)

    def decide(self, frame_index: int, time_s: float, found: Recognition) -> Decision:
        """Take in the garments of the next frame."""
        sightings = self._sightings(found)
        self._frames.append(sightings)
        weights: dict[str, float] = defaultdict(float)
        for sighting in chain.from_iterable(self._frames):
            weights[sighting.item_id] += sighting.weight
        if not weights:
            return Decision(frame_index, time_s, None, 0.0)
        item_id = max(weights, key=weights.__getitem__)
        confidence = round(weights[item_id] / sum(weights.values()), 6)
        here = [sighting for sighting in sightings if sighting.item_id == item_id]
        if not here:
            return Decision(frame_index, time_s, item_id, confidence)
        best = min(here, key=lambda sighting: sighting.distance)
        return Decision(frame_index, time_s, item_id, confidence, best.distance, best.img_name, best.frame_box)

    def _sightings(self, found: Recognition) -> list[_Sighting]:
        if not len(found) or not len(self._products):
            return []
        cosines = found.embeddings @ self._directions.T
        rows = cosines.argmax(axis=1)
        distances = 2 - 2 * cosines[np.arange(len(rows)), rows].astype(float)
        return [
            _Sighting(
                self._products.sources[row],
                self._products.names[row],
                round(max(distance, 0.0), 6),
                score * (self._limit - distance),
                _to_box(box),
            )
            for row, distance, score, box in zip(rows, distances, found.scores.tolist(), found.boxes, strict=True)
            if distance < self._limit
        ]


def watch(
    client: Client,
    video: str,
    products: Features,
    *,
    every: int = 20,
    num_frames: int = 16,
    limit: float = MatchOptions.limit,
) -> Iterator[Decision]:
    """A decision for every `every`-th frame of a file or a stream, as they come.

    A stream (an address with "://") goes on while a frame is recognised: frames that come meanwhile are left out, so
    that decisions stay up to date. Of a file all are taken.

    Args:
        products: features of the photos.
        num_frames: length of the sliding window, in frames looked at.
        limit: squared distance that a box must be below to count.

    Raises:
        FeaturesError: `products` are of other models than the server's.
        ContractError: the server came back from an outage with other models.
        DecodeError: the video cannot be opened, or breaks off.
        InputError: `every` or `num_frames` is below 1, or `limit` is not a positive number.
    """
    check_comparable(products, "the server", client.model_identity, EMBEDDING_SIZE)
    window = Window(products, num_frames=num_frames, limit=limit)
    frames = read_stream(video, every)
    for frame in _newest(frames) if "://" in video else frames:
        yield window.decide(frame.frame_index, frame.time_s, client.recognize_frame(frame.pixels))


def _newest(frames: Iterator[StreamFrame]) -> Iterator[StreamFrame]:
    """The frames as a thread reads them, without those that were overtaken while the last one was worked on."""
    # At most one frame and what ended the stream; without a bound, or the thread would wait for a reader that stopped.
    mailbox: queue.Queue[StreamFrame | BaseException | None] = queue.Queue()
    is_over = threading.Event()

    def read() -> None:
        try:
            for frame in frames:
                if is_over.is_set():
                    return
                with contextlib.suppress(queue.Empty):
                    mailbox.get_nowait()  # overtaken
                mailbox.put(frame)
            last: BaseException | None = None
        except Exception as error:  # handed over to the reader of the frames
            last = error
        mailbox.put(last)

    threading.Thread(target=read, name="livematch-stream", daemon=True).start()
    try:
        while (content := mailbox.get()) is not None:
            if isinstance(content, BaseException):
                raise content
            yield content
    finally:
        is_over.set()


def _to_box(box: npt.NDArray[np.float32]) -> Box:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1
