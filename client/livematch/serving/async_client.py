"""The asyncio client of a recognition server."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Literal, Self

from tritonclient.grpc import aio

from livematch.errors import UnavailableError
from livematch.serving.connection import FRAME_MODEL, IMAGE_MODEL, Connection
from livematch.serving.pixels import ImageInput, check_several, read_pixels
from livematch.serving.session import Session
from livematch.serving.settings import DEFAULT_CONCURRENCY, DEFAULT_URL, Settings, Tls, check_count
from livematch.types import Recognition

SeveralImages = Iterable[ImageInput] | AsyncIterable[ImageInput]


class AsyncClient:
    """The counterpart of `Client` for asyncio, with the same methods, arguments and errors.

    It connects and checks the servers' models in `async with`, or at the first request. All requests must come from one
    event loop. Image files are decoded in threads. There is no `shared_memory` argument: registering shared memory
    would block the event loop. There is no `copy` either: to end a request early, cancel its task.

    >>> async with AsyncClient() as client:
    ...     print(await client.recognize_image("dress.jpg"))
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
        access_key: str | None = None,
        tls: Tls | None = None,
        min_score: float | None = None,
    ) -> None:
        self._settings = Settings(
            urls, max_tries, first_pause_s, timeout_s, crop_scale, priority, access_key, tls, min_score
        )
        self._closed = asyncio.Event()
        self._connecting = asyncio.Lock()
        self._session: Session | None = None

    @property
    def model_identity(self) -> str | None:
        """The name of the weights behind the embeddings; None if it has none, and before the client has connected."""
        return None if self._session is None else self._session.model_identity

    @property
    def embedding_size(self) -> int:
        """The length of the embeddings; 0 before the first request."""
        return 0 if self._session is None else self._session.embedding_size

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty if the server has no names for them, and before the first request."""
        return () if self._session is None else self._session.class_names

    async def recognize_image(self, image: ImageInput) -> Recognition:
        """Detect and embed the garments of a product photo; see `Client.recognize_image`."""
        return await self._recognize(IMAGE_MODEL, image)

    async def recognize_frame(self, frame: ImageInput) -> Recognition:
        """Detect and embed the garments of a video frame; see `Client.recognize_image`."""
        return await self._recognize(FRAME_MODEL, frame)

    def recognize_images(
        self, images: SeveralImages, *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> AsyncGenerator[Recognition, None]:
        """Yield the recognition of each image in order, with several requests in flight; see `Client.recognize_images`.

        >>> async for recognition in client.recognize_images(paths):
        ...     print(recognition)
        """
        return self._recognize_each(IMAGE_MODEL, images, concurrency)

    def recognize_frames(
        self, frames: SeveralImages, *, concurrency: int = DEFAULT_CONCURRENCY
    ) -> AsyncGenerator[Recognition, None]:
        """Yield the recognition of each video frame in order; see `recognize_images`."""
        return self._recognize_each(FRAME_MODEL, frames, concurrency)

    async def check_identity(self) -> None:
        """Ask the servers again which models they serve; see `Client.check_identity`."""
        await (await self._connect()).check_identity()

    async def close(self) -> None:
        """Close the connections; requests in flight in other tasks raise UnavailableError."""
        self._closed.set()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _connect(self) -> Session:
        """Return the session, after the first call has connected to the servers and checked them."""
        async with self._connecting:
            if self._closed.is_set():
                raise UnavailableError("this client was closed")
            if self._session is None:
                connections = [Connection(url, self._settings, aio) for url in self._settings.addresses]
                self._session = Session(self._settings, connections, self._pause)
                try:
                    await self._session.check_servers()
                except BaseException:
                    session, self._session = self._session, None
                    await session.close()
                    raise
            return self._session

    async def _recognize(self, model: str, image: ImageInput) -> Recognition:
        pixels = await asyncio.to_thread(read_pixels, image)
        return await (await self._connect()).recognize(model, pixels)

    def _recognize_each(self, model: str, images: SeveralImages, concurrency: int) -> AsyncGenerator[Recognition, None]:
        if not isinstance(images, AsyncIterable):
            check_several(images)
        check_count("concurrency", concurrency)
        return _in_order(self._start_each(model, images), concurrency)

    async def _start_each(self, model: str, images: SeveralImages) -> AsyncIterator[asyncio.Future[Recognition]]:
        """Start a task for each image; an error of the iterable itself becomes a future that raises it."""
        try:
            if isinstance(images, AsyncIterable):
                async for image in images:
                    yield asyncio.create_task(self._recognize(model, image))
            else:
                for image in images:
                    yield asyncio.create_task(self._recognize(model, image))
        except Exception as error:
            failed: asyncio.Future[Recognition] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            yield failed

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)


async def _in_order(
    futures: AsyncIterator[asyncio.Future[Recognition]], concurrency: int
) -> AsyncGenerator[Recognition, None]:
    """Yield the results in order, with up to `concurrency` of the futures in progress; cancel these at the end."""
    window: deque[asyncio.Future[Recognition]] = deque()
    try:
        async for future in futures:
            window.append(future)
            if len(window) == concurrency:
                yield await window.popleft()
        while window:
            yield await window.popleft()
    finally:
        for future in window:
            future.cancel()
        await asyncio.gather(*window, return_exceptions=True)
