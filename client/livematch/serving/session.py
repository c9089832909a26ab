"""Send requests to one server or several with retries, and check the servers first: shared by Client and AsyncClient.

The coroutines here suspend only where their connections and `pause` do. Over blocking connections they never suspend,
and `run_blocking` runs them without an event loop.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from livematch.errors import ContractError, RequestError, UnavailableError, describe_error
from livematch.serving.connection import FRAME_MODEL, IMAGE_MODEL, Connection
from livematch.serving.retry import Attempts
from livematch.serving.settings import Settings
from livematch.types import Pixels, Recognition

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def run_blocking(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("a coroutine over blocking connections does not suspend")


class Session:
    """Connections to all servers of one client. `pause` waits for the given seconds, or until the client is closed."""

    model_identity: str | None = None
    embedding_size: int = 0
    class_names: tuple[str, ...] = ()

    def __init__(
        self, settings: Settings, connections: Sequence[Connection], pause: Callable[[float], Awaitable[object]]
    ) -> None:
        self._settings = settings
        self._connections = connections
        self._pause = pause
        self._has_warned = True  # no warning before the first response: an error reports a server that never answers

    def copy(self, pause: Callable[[float], Awaitable[object]]) -> "Session":
        """Return a session with its own connections to the same servers, which it does not check again."""
        other = Session(self._settings, [connection.copy() for connection in self._connections], pause)
        other.model_identity, other.embedding_size = self.model_identity, self.embedding_size
        other.class_names = self.class_names
        other._has_warned = self._has_warned
        return other

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def check_servers(self) -> None:
        """Check all servers, with the errors of `Client`; set what the models are and what they return."""
        identities = {}
        class_names = set()
        sizes = set()
        for connection in self._connections:
            for model in (IMAGE_MODEL, FRAME_MODEL):
                try:
                    sizes.add(await self._call(partial(Connection.check_tensors, model=model), [connection]))
                except RequestError as error:
                    raise ContractError(f"the server at {connection.url} does not serve {model}: {error}") from error
            try:
                await self._call(Connection.check_memory, [connection])
            except (RequestError, OSError) as error:
                raise ContractError(
                    f"the server at {connection.url} cannot use shared memory of this machine: {error}"
                ) from error
            identities[connection.url], names = await self._call(Connection.describe_models, [connection])
            class_names.add(names)
        if len(set(identities.values())) > 1:
            found = ", ".join(f"{identity or 'unnamed models'} at {url}" for url, identity in identities.items())
            raise ContractError(f"the servers have different models: {found}")
        if len(sizes) > 1:
            raise ContractError(f"the models have embeddings of different sizes: {sorted(sizes)}")
        if len(class_names) > 1:
            raise ContractError(f"the servers name the classes differently: {' and '.join(map(str, class_names))}")
        self.model_identity = next(iter(identities.values()))
        (self.embedding_size,) = sizes
        (self.class_names,) = class_names

    async def check_identity(self) -> None:
        """Raise ContractError if a server that answers no longer serves the models it served at the beginning."""
        for connection in self._connections:
            with suppress(InferenceServerException):
                await connection.check_identity(self.model_identity, self.class_names)

    async def recognize(self, model: str, pixels: Pixels) -> Recognition:
        """Return what `model` detects in one image, uint8 [H,W,3]; see `Client.recognize_image` for the errors."""

        async def infer(connection: Connection) -> Any:
            response = await connection.infer(model, pixels)
            if connection.may_have_restarted:
                await connection.check_identity(self.model_identity, self.class_names)
            return response

        response = await self._call(infer)
        num_detections = int(response.as_numpy("num_detections")[0, 0])  # further rows only pad the batch
        boxes, scores, labels, embeddings = (
            response.as_numpy(name)[0, :num_detections] for name in ("boxes", "scores", "labels", "embeddings")
        )
        return Recognition(boxes, scores, self._names_of(labels), embeddings)

    def _names_of(self, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.str_]:
        """Return the classes' names; their numbers as text where the server has no names.

        Raises ContractError for a number that the server does not name.
        """
        if not self.class_names:
            return labels.astype(str)
        if unnamed := [label for label in labels.tolist() if not 0 <= label < len(self.class_names)]:
            raise ContractError(
                f"a box has the class {unnamed[0]}, but the server names {len(self.class_names)} classes"
            )
        return np.array(self.class_names)[labels]

    async def _call(
        self, request: Callable[[Connection], Awaitable[_T]], connections: Sequence[Connection] | None = None
    ) -> _T:
        """Send a request to one of the servers, and again after a failure that a retry may cure."""
        attempts = Attempts(
            connections or self._connections,
            max_tries=self._settings.max_tries,
            first_pause_s=self._settings.first_pause_s,
        )
        while True:
            with attempts.next_server() as connection:
                try:
                    answer = await request(connection)
                    self._has_warned = False
                    return answer
                except InferenceServerException as error:
                    failure = error
                    reason = describe_error(error.message() or error)
                    if not await connection.is_outage(error):
                        raise RequestError(reason) from error
            pause_s = attempts.fail(connection)
            if pause_s is None:
                raise UnavailableError(
                    f"no answer from the server at {connection.url} in {self._settings.max_tries} tries: {reason}"
                ) from failure
            if not self._has_warned:
                self._has_warned = True
                _log.warning("no answer from %s, trying again: %s", connection.url, reason)
            if pause_s > 0:
                await self._pause(pause_s)
