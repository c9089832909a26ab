"""The blocking client of a recognition server."""

import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Literal, Self, TypeVar

from livematch.serving.connection import FRAME_MODEL, IMAGE_MODEL, Connection
from livematch.serving.pixels import ImageInput, check_several, read_pixels
from livematch.serving.session import Session, run_blocking
from livematch.serving.settings import DEFAULT_CONCURRENCY, DEFAULT_URL, Settings, Tls, check_count
from livematch.types import Recognition

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Client:
    """Connects to one Triton server or several, checks their models once, and sends them images and frames.

    Many threads may use one client at once. Each request goes to the server with the fewest requests in flight. If that
    server is down or overloaded, the request goes to the others at once; when all have failed, it is sent again after
    pauses of 0.5, 1, 2, 4 and then 8 s, until it has been sent `max_tries` times to each.

    >>> with Client() as client:
    ...     for detection in client.recognize_image("dress.jpg"):
    ...         print(detection.box, detection.score)

    Args:
        urls: gRPC address of the server, "host:port", or a list of several.
        max_tries: how often a request is sent to each server before `UnavailableError` is raised.
        first_pause_s: the first pause between tries; each further one is twice as long, up to 8 s.
        timeout_s: how long one try may take.
        crop_scale: factor, 1 to 2, by which each box is enlarged before it is cropped and embedded.
        priority: "live" requests overtake "batch" requests in the server's queues.
        shared_memory: send images through shared memory, or over the connection while none is free. The servers must
            run on this machine and allow it.
        access_key: the key of servers that require one.
        tls: encrypt the connection.
        min_score: detections must score more than this, 0 to 1; None for the server's own limit.

    Raises:
        InputError: an argument has the wrong type or is out of its range.
        UnavailableError: one of the servers does not answer.
        ContractError: a server lacks the models, they have unexpected tensors, it cannot use shared memory of this
            machine, or two servers serve different models.
    """

    def __init__(
        self,
        urls: str | Sequence[str] = DEFAULT_URL,
        *,
        max_tries: int = 10,
        first_pause_s: float = 0.5,
        timeout_s: float = 120.0,
        crop_scale: float = 1.0,
        priority: Literal["live", "batch"] = "batch",
        shared_memory: bool = False,
        access_key: str | None = None,
        tls: Tls | None = None,
        min_score: float | None = None,
    ) -> None:
        settings = Settings(urls, max_tries, first_pause_s, timeout_s, crop_scale, priority, access_key, tls, min_score)
        self.crop_scale, self.min_score = crop_scale, min_score
        self._closed = threading.Event()
        self._copies: weakref.WeakSet[Client] = weakref.WeakSet()
        connections = [Connection(url, settings, shared_memory=shared_memory) for url in settings.addresses]
        self._session = Session(settings, connections, self._pause)
        try:
            run_blocking(self._session.check_servers())
        except BaseException:
            self.close()
            raise

    @property
    def model_identity(self) -> str | None:
        """The name of the weights behind the embeddings; None if the server's model repository has no name for them."""
        return self._session.model_identity

    @property
    def embedding_size(self) -> int:
        """The length of the embeddings."""
        return self._session.embedding_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes that the detector finds; empty if the server has no names for them."""
        return self._session.class_names

    def recognize_image(self, image: ImageInput) -> Recognition:
        """Detect and embed the garments of a product photo.

        Args:
            image: RGB pixels (uint8 [H,W,3], upright), a PIL image, or the path of an image file.

        Raises:
            InputError: `image` is none of these, or an array with another dtype or shape.
            DecodeError: the image file cannot be decoded.
            RequestError: the server refused this image.
            UnavailableError: the server is down or overloaded after all tries, or this client was closed.
            ContractError: after an outage, the server serves different models.
        """
        return self._recognize(image, IMAGE_MODEL)

    def recognize_frame(self, frame: ImageInput) -> Recognition:
        """Detect and embed the garments of a video frame; see `recognize_image`."""
        return self._recognize(frame, FRAME_MODEL)

    def recognize_images(
        self, images: Iterable[ImageInput], *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> Generator[Recognition, None, None]:
        """Yield the recognition of each image in order, with several requests in flight.

        At most `concurrency` images and results are held at once. An error, even one of the iterable itself, is raised
        at its position, after the results before it. Closing the generator ends the requests in flight.

        >>> for path, recognition in zip(paths, client.recognize_images(paths)):
        ...     print(path, recognition)
        """
        return self._recognize_each(IMAGE_MODEL, images, concurrency)

    def recognize_frames(
        self, frames: Iterable[ImageInput], *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> Generator[Recognition, None, None]:
        """Yield the recognition of each video frame in order; see `recognize_images`."""
        return self._recognize_each(FRAME_MODEL, frames, concurrency)

    def check_identity(self) -> None:
        """Ask the servers again which models they serve; a server that does not answer is skipped.

        Raises:
            ContractError: a server no longer serves the models it served at the beginning.
        """
        run_blocking(self._session.check_identity())

    def copy(self) -> "Client":
        """Return a client with its own connections to the same servers.

        It can be closed while this one stays open; closing this one closes its copies.
        """
        other = copy.copy(self)
        other._closed = threading.Event()
        other._copies = weakref.WeakSet()
        other._session = self._session.copy(other._pause)
        self._copies.add(other)
        if self._closed.is_set():  # by another thread, which may not have seen this copy
            other.close()
        return other

    def close(self) -> None:
        """Close the connections; requests in flight in other threads raise UnavailableError."""
        self._closed.set()
        for other in list(self._copies):
            other.close()
        run_blocking(self._session.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _recognize(self, image: ImageInput, model: str) -> Recognition:
        return run_blocking(self._session.recognize(model, read_pixels(image)))

    def _recognize_each(
        self, model: str, images: Iterable[ImageInput], concurrency: int
    ) -> Generator[Recognition, None, None]:
        check_several(images)
        check_count("concurrency", concurrency)
        work = partial(Client._recognize, model=model)
        return _results(submit_in_order(self, work, images, num_threads=concurrency, num_ahead=concurrency))

    async def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)


def submit_in_order(
    client: Client,
    work: Callable[[Client, _Item], _Result],
    items: Iterable[_Item],
    *,
    num_threads: int,
    num_ahead: int,
) -> Generator[Future[_Result], None, None]:
    """Do `work` on each item in threads, and yield the futures in the order of the items.

    An error of the iterable itself becomes a future that raises it. Closing the generator ends the threads at once:
    they use a copy of `client`, and closing that ends their requests, which could otherwise take minutes while a
    server is away.

    `num_ahead` futures are created before the first one is yielded, and kept ahead of the caller.
    """
    connected = client.copy()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="livematch")
    window: deque[Future[_Result]] = deque()
    try:
        try:
            for item in items:
                window.append(executor.submit(work, connected, item))
                if len(window) == num_ahead:
                    yield window.popleft()
        except Exception as error:
            window.append(Future())
            window[-1].set_exception(error)
        while window:
            yield window.popleft()
    finally:
        connected.close()
        executor.shutdown(cancel_futures=True)


def _results(futures: Generator[Future[_Result], None, None]) -> Generator[_Result, None, None]:
    with closing(futures):
        for future in futures:
            yield future.result()
