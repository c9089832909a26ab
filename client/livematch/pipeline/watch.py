"""Decide which product a stream shows at the moment, frame by frame, over a sliding window."""

import contextlib
import math
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from livematch.errors import InputError
from livematch.features.table import Features, check_comparable, require_selection
from livematch.matching.vote import MatchOptions
from livematch.media.videos import StreamFrame, read_stream
from livematch.serving.client import Client
from livematch.types import Box, Recognition


@dataclass(frozen=True)
class Decision:
    """Tells which product is shown at a frame.

    item_id: the product with the largest weight in the window; None if no box in it is near enough to any product.
    confidence: the fraction of all weight in the window that this product has, 0..1.
    distance: squared distance, 0..4, of its nearest box in this frame; None if the frame does not show it.
    img_name, frame_box: the product's image that this box is nearest to, and the box; None if `distance` is None.
    title, url: of the product; empty if its features have none.
    """

    frame_index: int
    time_s: float
    item_id: str | None
    confidence: float
    distance: float | None = None
    img_name: str | None = None
    frame_box: Box | None = None
    title: str = ""
    url: str = ""


@dataclass(frozen=True)
class _Sighting:
    """A box in a frame that is near enough to a product, with its nearest product image and its weight."""

    item_id: str
    img_name: str
    distance: float
    weight: float
    frame_box: Box


class Window:
    """Decides which product is shown, from the recognitions of the last `num_frames` frames.

    Each box votes for the product whose image is nearest, if its squared distance is below `limit`. The vote's weight
    is the detector's score times (`limit` - squared distance).
    """

    def __init__(self, products: Features, *, num_frames: int, limit: float) -> None:
        if num_frames < 1:
            raise InputError(f"the window needs at least 1 frame, got {num_frames}")
        if not 0 < limit < math.inf:
            raise InputError(f"the limit must be a positive number, got {limit}")
        self._products = products
        self._items = dict(zip(products.sources, zip(products.titles, products.urls, strict=True), strict=True))
        self._directions = products.embeddings / np.linalg.norm(products.embeddings, axis=1, keepdims=True)
        self._limit = limit
        self._frames: deque[list[_Sighting]] = deque(maxlen=num_frames)

    def decide(self, frame_index: int, time_s: float, recognition: Recognition) -> Decision:
        """Add the next frame's recognition to the window, and decide for this frame."""
        sightings = self._find_sightings(recognition)
        self._frames.append(sightings)
        weights: dict[str, float] = defaultdict(float)
        for sighting in chain.from_iterable(self._frames):
            weights[sighting.item_id] += sighting.weight
        if not weights:
            return Decision(frame_index, time_s, None, 0.0)
        item_id = max(weights, key=weights.__getitem__)
        confidence = round(weights[item_id] / sum(weights.values()), 6)
        title, url = self._items[item_id]
        decision = Decision(frame_index, time_s, item_id, confidence, title=title, url=url)
        in_frame = [sighting for sighting in sightings if sighting.item_id == item_id]
        if not in_frame:
            return decision
        best = min(in_frame, key=lambda sighting: sighting.distance)
        return replace(decision, distance=best.distance, img_name=best.img_name, frame_box=best.frame_box)

    def _find_sightings(self, recognition: Recognition) -> list[_Sighting]:
        if not len(recognition) or not len(self._products):
            return []
        cosines = recognition.embeddings @ self._directions.T
        rows = cosines.argmax(axis=1)
        distances = 2 - 2 * cosines[np.arange(len(rows)), rows].astype(float)
        boxes = zip(rows, distances, recognition.scores.tolist(), recognition.boxes.tolist(), strict=True)
        return [
            _Sighting(
                self._products.sources[row],
                self._products.names[row],
                round(max(distance, 0.0), 6),
                score * (self._limit - distance),
                tuple(box),
            )
            for row, distance, score, box in boxes
            if distance < self._limit
        ]


def watch(
    client: Client,
    video: str | Path,
    products: Features,
    *,
    every: int = 20,
    num_frames: int = 16,
    limit: float = MatchOptions.limit,
) -> Iterator[Decision]:
    """Yield a decision for every `every`-th frame of a file or a live stream, as soon as it is made.

    A stream (a URL with "://") does not wait: frames that arrive while another one is being recognized are dropped,
    so that decisions keep up with it. No frame of a file is dropped.

    >>> products = livematch.read_features("images.parquet")
    >>> with livematch.Client("127.0.0.1:8001", priority="live") as client:
    ...     for decision in watch(client, "rtmp://example.com/live", products):
    ...         print(decision.time_s, decision.item_id, decision.confidence)

    Args:
        products: features of the product images.
        num_frames: length of the sliding window; only every `every`-th frame counts.
        limit: squared distance below which a box counts as showing a product.

    Raises:
        FeaturesError: `products` hold frames, or were made by other models than the server serves.
        RequestError, UnavailableError, ContractError: see `Client.recognize_image`.
        DecodeError: the video cannot be opened, or breaks off.
        InputError: `every` or `num_frames` is below 1, or `limit` is not a positive number.
    """
    require_selection(products, "images", "a gallery of products (photos)")
    check_comparable(products, "the server", client.model_identity, client.embedding_size)
    window = Window(products, num_frames=num_frames, limit=limit)
    frames = read_stream(video, every)
    for frame in _newest(frames) if "://" in str(video) else frames:
        yield window.decide(frame.frame_index, frame.time_s, client.recognize_frame(frame.pixels))


def _newest(frames: Iterator[StreamFrame]) -> Iterator[StreamFrame]:
    """Read the frames in a thread, and yield the newest one each time the consumer asks for one."""
    # At most one frame, and the end of the stream. Unbounded, because put() must never block: the consumer may be gone.
    mailbox: queue.Queue[StreamFrame | BaseException | None] = queue.Queue()
    is_over = threading.Event()

    def read() -> None:
        try:
            for frame in frames:
                if is_over.is_set():
                    return
                with contextlib.suppress(queue.Empty):
                    mailbox.get_nowait()  # drop the frame that was not consumed in time
                mailbox.put(frame)
            end: BaseException | None = None
        except Exception as error:  # raised again where the frames are consumed
            end = error
        mailbox.put(end)

    threading.Thread(target=read, name="livematch-stream", daemon=True).start()
    try:
        while (content := mailbox.get()) is not None:
            if isinstance(content, BaseException):
                raise content
            yield content
    finally:
        is_over.set()
