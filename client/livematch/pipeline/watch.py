"""Decide which product a stream shows at the moment, frame by frame, over a sliding window."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from livematch.features.table import Features, check_comparable, require_selection
from livematch.matching.catalogue import CatalogueOptions, Sighting, Window
from livematch.matching.pairing import require_labels
from livematch.media.videos import StreamFrame, read_stream
from livematch.serving.client import Client
from livematch.types import Box, Recognition


@dataclass(frozen=True)
class Decision:
    """Tells which product is shown at a frame.

    item_id: the product with the largest evidence in the window; None if no evidence is large enough.
    evidence: see `livematch.find_products`, 0..1; 0 if `item_id` is None.
    distance: squared distance, 0..4, of its nearest box in this frame; None if the frame does not show it.
    img_name, frame_box: the product's image that this box is nearest to, and the box; None if `distance` is None.
    title, url: of the product; empty if its features have none.
    """

    frame_index: int
    time_s: float
    item_id: str | None = None
    evidence: float = 0.0
    distance: float | None = None
    img_name: str | None = None
    frame_box: Box | None = None
    title: str = ""
    url: str = ""


class Watcher:
    """Decides which product is shown, by the rule of `livematch.find_products` over the last `options.window` frames.

    All of them count as analysed frames, so the first decisions of a stream have little evidence.
    """

    def __init__(self, products: Features, options: CatalogueOptions) -> None:
        self._products = products
        self._options = options
        self._directions = products.embeddings / np.linalg.norm(products.embeddings, axis=1, keepdims=True)
        self._labels = np.array(products.labels)
        self._window = Window(options.window)

    def decide(self, frame_index: int, time_s: float, recognition: Recognition) -> Decision:
        """Add the next frame's recognition to the window, and decide for this frame."""
        self._window.add(self._find_sightings(frame_index, recognition))
        item_id, evidence = next(iter(self._window.evidence().items()), ("", 0.0))
        if round(evidence, 9) < self._options.min_evidence:
            return Decision(frame_index, time_s)
        seen = self._window.sightings(item_id)[-1]
        title, url = self._products.titles[seen.photo], self._products.urls[seen.photo]
        decision = Decision(frame_index, time_s, item_id, round(evidence, 6), title=title, url=url)
        if seen.frame_index != frame_index:
            return decision
        img_name = self._products.names[seen.photo]
        return replace(decision, distance=round(seen.distance, 6), img_name=img_name, frame_box=seen.box)

    def _find_sightings(self, frame_index: int, recognition: Recognition) -> list[Sighting]:
        if not len(recognition) or not len(self._products):
            return []
        cosines = recognition.embeddings @ self._directions.T
        if self._options.same_label:
            cosines[recognition.labels[:, np.newaxis] != self._labels] = -np.inf
        photos = cosines.argmax(axis=1)
        distances = np.maximum(2 - 2 * cosines[np.arange(len(photos)), photos].astype(float), 0.0)
        boxes = zip(photos.tolist(), distances.tolist(), recognition, strict=True)
        return [
            Sighting.of(
                self._products, photo, frame_index, detection.box, detection.score, distance, self._options.limit
            )
            for photo, distance, detection in boxes
            if distance < self._options.limit
        ]


def watch(
    client: Client,
    video: str | Path,
    products: Features,
    *,
    every: int = 20,
    options: CatalogueOptions | None = None,
) -> Iterator[Decision]:
    """Yield a decision for every `every`-th frame of a file or a live stream, as soon as it is made.

    A stream (a URL with "://") does not wait: frames that arrive while another one is being recognized are dropped,
    so that decisions keep up with it. No frame of a file is dropped.

    >>> products = livematch.read_features("images.parquet")
    >>> with livematch.Client("127.0.0.1:8001", priority="live") as client:
    ...     for decision in watch(client, "rtmp://example.com/live", products):
    ...         print(decision.time_s, decision.item_id, decision.evidence)

    Args:
        products: features of the product images.
        options: of the rule; the window counts only every `every`-th frame.

    Raises:
        FeaturesError: `products` hold frames, were made by other models than the server serves, or have no labels
            although `options.same_label` is set.
        RequestError, UnavailableError, ContractError: see `Client.recognize_image`.
        DecodeError: the video cannot be opened, or breaks off.
        InputError: `every` is below 1.
    """
    require_selection(products, "images", "a gallery of products (photos)")
    check_comparable(products, "the server", client.model_identity, client.embedding_size)
    options = options or CatalogueOptions()
    if options.same_label:
        require_labels(products)
    watcher = Watcher(products, options)
    frames = read_stream(video, every)
    for frame in _newest(frames) if "://" in str(video) else frames:
        yield watcher.decide(frame.frame_index, frame.time_s, client.recognize_frame(frame.pixels))


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
