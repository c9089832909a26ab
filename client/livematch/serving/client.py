"""The gRPC client of the two ensembles: RGB pixels in, boxes with scores and embeddings out."""

import contextlib
import copy
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from livematch.errors import ContractError, InputError, RequestError, UnavailableError
from livematch.serving.connection import Connection, Tls
from livematch.types import EMBEDDING_SIZE, KEY_NAME, Recognition

IMAGE_MODEL = "recognize_image"
FRAME_MODEL = "recognize_frame"
INPUTS = {"image": ("UINT8", (-1, -1, -1, 3))}
OUTPUTS = {
    "boxes": ("FP32", (-1, -1, 4)),
    "scores": ("FP32", (-1, -1)),
    "embeddings": ("FP32", (-1, -1, EMBEDDING_SIZE)),
    "num_detections": ("INT32", (-1, 1)),
}

PRIORITIES = {"live": 1, "batch": 2}  # in the server's queues live requests go first

_MAX_PAUSE_S = 8.0
_AVOIDED_S = 2.0  # for how long a server that failed is left alone while others are up

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Client:
    """Connects to one Triton server or several, checks their models' tensors once, and sends them pictures.

    One client may be used by many threads at once. Each request goes to the server with the fewest in flight. One that
    finds its server down or overloaded goes to the others at once, and when all have been tried, again after pauses of
    0.5, 1, 2, 4 and then 8 s, until each has been tried `max_tries` times.

    Args:
        urls: gRPC address, "host:port", or several.
        max_tries: how often a request is sent to each server before `UnavailableError`.
        timeout_s: how long one try may take.
        crop_scale: factor, 1 to 2, by which crops are wider and higher than their boxes.
        priority: "live" requests go first in the server's queues.
        shared_memory: hand pictures over through shared memory, or the connection if none is left; for servers on
            this machine that allow it.
        access_key: of servers that want one.
        tls: encrypt the connection.

    Raises:
        InputError: an address is not of that form, or another argument is out of its range.
        UnavailableError: nobody answers at one of the addresses.
        ContractError: a server has no such models, their tensors are others than this client expects, it cannot use
            shared memory of this machine, or two servers have models with different identities.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        max_tries: int = 10,
        first_pause_s: float = 0.5,
        timeout_s: float = 120.0,
        crop_scale: float = 1.0,
        priority: Literal["live", "batch"] = "batch",
        shared_memory: bool = False,
        access_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        if max_tries < 1:
            raise InputError(f"max_tries must be at least 1, got {max_tries}")
        if not 1 <= crop_scale <= 2:
            raise InputError(f"crop_scale must be from 1 to 2, got {crop_scale}")
        urls = [urls] if isinstance(urls, str) else urls
        if not urls:
            raise InputError("no server address given")
        self._max_tries = max_tries
        self._first_pause_s = first_pause_s
        self.crop_scale = crop_scale
        self._priority = PRIORITIES[priority]
        headers = {} if access_key is None else {f"triton-grpc-protocol-{KEY_NAME}": access_key}
        self._closed = threading.Event()
        self._has_warned = True  # not before the first answer: a server that never answers is an error, not an outage
        self._lock = threading.Lock()
        self._copies: weakref.WeakSet[Client] = weakref.WeakSet()
        self._servers = [
            Connection(url, headers=headers, timeout_s=timeout_s, tls=tls, shared_memory=shared_memory)
            for url in dict.fromkeys(urls)
        ]
        try:
            self.model_identity = self._check_servers()
        except BaseException:
            self.close()
            raise

    model_identity: str | None
    """Names the weights behind the embeddings; None if the server's repository does not say."""

    def recognize_image(self, image: npt.NDArray[np.uint8]) -> Recognition:
        """Find and embed the garments of a product photo.

        Args:
            image: uint8 [H,W,3], RGB, upright.

        Raises:
            InputError: `image` has another dtype or shape.
            RequestError: the server refused this image.
            UnavailableError: the server is down or overloaded after all tries, or this client was closed.
            ContractError: the server came back from an outage with other models.
        """
        return self._recognize(IMAGE_MODEL, image)

    def recognize_frame(self, frame: npt.NDArray[np.uint8]) -> Recognition:
        """Find and embed the garments of a video frame; see `recognize_image`."""
        return self._recognize(FRAME_MODEL, frame)

    def check_identity(self) -> None:
        """Ask the servers once more for their models; one that does not answer is passed over.

        Raises:
            ContractError: a server has other models than at the beginning.
        """
        for server in self._servers:
            with contextlib.suppress(InferenceServerException):
                server.check_identity(self.model_identity)

    def copy(self) -> "Client":
        """A client of the same servers over connections of its own: when it is closed, this one stays open.

        Closing this one closes its copies.
        """
        other = copy.copy(self)
        other._closed = threading.Event()
        other._copies = weakref.WeakSet()
        other._servers = [server.copy() for server in self._servers]
        self._copies.add(other)
        if self._closed.is_set():  # by another thread, which may not have seen this copy
            other.close()
        return other

    def close(self) -> None:
        """End the connection; requests under way in other threads end with UnavailableError."""
        self._closed.set()
        for other in list(self._copies):
            other.close()
        for server in self._servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _recognize(self, model: str, pixels: npt.NDArray[np.uint8]) -> Recognition:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise InputError(f"expected uint8 pixels [H,W,3], got {pixels.dtype} {list(pixels.shape)}")
        batch = np.ascontiguousarray(pixels[np.newaxis])
        outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS]
        parameters = {} if self.crop_scale == 1 else {"crop_scale": str(self.crop_scale)}

        def infer(server: Connection) -> triton.InferResult:
            answer = server.infer(model, batch, outputs=outputs, priority=self._priority, parameters=parameters)
            if server.failed_s >= server.checked_s:
                server.check_identity(self.model_identity)
            return answer

        response = self._call(infer)
        num_detections = int(response.as_numpy("num_detections")[0, 0])
        boxes, scores, embeddings = (
            response.as_numpy(name)[0, :num_detections] for name in ("boxes", "scores", "embeddings")
        )
        return Recognition(boxes, scores, embeddings)

    def _check_servers(self) -> str | None:
        """Raise ContractError unless all servers have the models that are expected; returns their identity."""
        identities: dict[str | None, str] = {}
        for server in self._servers:
            for model in (IMAGE_MODEL, FRAME_MODEL):
                self._check_contract(server, model)
            try:
                self._call(Connection.check_memory, [server])
            except (RequestError, OSError) as error:
                raise ContractError(
                    f"the server at {server.url} cannot use shared memory of this machine: {error}"
                ) from error
            identities.setdefault(self._call(Connection.read_identity, [server]), server.url)
        if len(identities) > 1:
            found = ", ".join(f"{identity or 'unnamed models'} at {url}" for identity, url in identities.items())
            raise ContractError(f"the servers have different models: {found}")
        return next(iter(identities))

    def _check_contract(self, server: Connection, model: str) -> None:
        try:
            metadata = self._call(lambda server: server.read_metadata(model), [server])
        except RequestError as error:
            raise ContractError(f"the server at {server.url} does not serve {model}: {error}") from error
        for direction, expected in (("inputs", INPUTS), ("outputs", OUTPUTS)):
            found = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in metadata.get(direction, [])}
            if found != expected:
                raise ContractError(
                    f"{model} at {server.url} has other {direction} than this client expects: "
                    f"{_describe(found)} instead of {_describe(expected)}"
                )

    def _call(self, request: Callable[[Connection], _T], servers: Sequence[Connection] | None = None) -> _T:
        """Send a request to one of the servers, again while it is down or overloaded."""
        servers = servers or self._servers
        untried = list(servers)
        pause_s = self._first_pause_s
        last_try = self._max_tries * len(servers)
        for try_number in range(1, last_try + 1):
            with self._least_busy(untried) as server:
                if self._closed.is_set():
                    raise UnavailableError(f"the connection to {server.url} was closed")
                try:
                    answer = request(server)
                except (InferenceServerException, ValueError) as error:
                    if self._closed.is_set():  # ValueError is gRPC's answer to a call on a closed channel
                        raise UnavailableError(f"the connection to {server.url} was closed") from error
                    if isinstance(error, ValueError):
                        raise
                    reason = " ".join((error.message() or str(error)).split())
                    if not server.is_outage(error):
                        raise RequestError(reason) from error
                    if try_number == last_try:
                        raise UnavailableError(
                            f"no answer from the server at {server.url} in {self._max_tries} tries: {reason}"
                        ) from error
                else:
                    self._has_warned = False
                    return answer
            server.failed_s = time.monotonic()
            if not self._has_warned:
                self._has_warned = True
                _log.warning("no answer from %s, trying again: %s", server.url, reason)
            untried.remove(server)
            if not untried:
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
                untried = list(servers)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _least_busy(self, servers: Sequence[Connection]) -> Iterator[Connection]:
        avoided_s = time.monotonic() - _AVOIDED_S
        with self._lock:
            server = min(servers, key=lambda server: (server.failed_s > avoided_s, server.num_in_flight))
            server.num_in_flight += 1
        try:
            yield server
        finally:
            with self._lock:
                server.num_in_flight -= 1


def _describe(tensors: dict[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} {datatype} {list(shape)}" for name, (datatype, shape) in sorted(tensors.items()))
