"""Connect to one server over gRPC: check its models, send requests, and tell which errors a retry may cure."""

import asyncio
import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from livematch.errors import ContractError, UnavailableError
from livematch.serving.retry import Health
from livematch.serving.settings import PRIORITIES, Settings, Tls
from livematch.serving.shared_memory import SharedMemory
from livematch.types import Pixels

IMAGE_MODEL = "recognize_image"
FRAME_MODEL = "recognize_frame"
_DESCRIBED_BY = "crop_and_embed"  # its config has the parameters `model_identity` and `class_names`
_Tensors = dict[str, tuple[str, tuple[int, ...]]]
_INPUTS: _Tensors = {"image": ("UINT8", (-1, -1, -1, 3))}
_OUTPUTS: _Tensors = {
    "boxes": ("FP32", (-1, -1, 4)),
    "scores": ("FP32", (-1, -1)),
    "labels": ("INT32", (-1, -1)),
    "embeddings": ("FP32", (-1, -1, -1)),  # the last size is the server's
    "num_detections": ("INT32", (-1, 1)),
}

# UNAVAILABLE: nothing listens, the server is shutting down, or a model's queue is full.
_RETRIED_STATUSES = {"StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"}
_RESTRICTED = "This protocol is restricted"  # the access key is missing or wrong; the status is UNAVAILABLE here too
_DEAD_STUB = "is not healthy"  # the process of a Python model has ended; another server or a restart may answer
# Without the first option, gRPC waits up to two minutes before it tries to reach a restarted server again.
_CHANNEL_OPTIONS = [
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


class Connection(Health):
    """Sends requests to one server.

    Its methods are coroutines that work with either library: with `tritonclient.grpc` they block and never suspend, so
    that `livematch.serving.session.run_blocking` can run them, in many threads at once; with `tritonclient.grpc.aio`
    they suspend like any other coroutine.

    Shared memory can only be used with `tritonclient.grpc`.

    Raises:
        InferenceServerException: the server or gRPC rejected a request; raised by each method that sends one.
        UnavailableError: the connection was closed; raised by the same methods.
    """

    def __init__(
        self, url: str, settings: Settings, library: ModuleType = triton, *, shared_memory: bool = False
    ) -> None:
        super().__init__()
        self.url = url
        self._settings = settings
        self._options = {"headers": settings.headers, "client_timeout": settings.timeout_s}
        tls = settings.tls or Tls()
        self._triton = library.InferenceServerClient(
            url,
            ssl=settings.tls is not None,
            root_certificates=tls.root_certificates,
            private_key=tls.private_key,
            certificate_chain=tls.certificate_chain,
            channel_args=_CHANNEL_OPTIONS,
        )
        self._memory = SharedMemory(self._triton, settings.headers) if shared_memory else None
        self._is_closed = False

    def copy(self) -> "Connection":
        """Return another connection to the same server, which starts with what is known of the server's health."""
        other = Connection(self.url, self._settings)
        other.failed_s, other.identity_checked_s = self.failed_s, self.identity_checked_s
        if self._memory is not None:
            other._memory = SharedMemory(other._triton, self._settings.headers, self._memory)
        return other

    async def close(self) -> None:
        self._is_closed = True
        if self._memory is not None:
            self._memory.close()
        await _settle(self._triton.close())

    async def infer(self, model: str, pixels: Pixels) -> triton.InferResult:
        """Return the response of `model` to one image, uint8 [H,W,3]."""
        batch = np.ascontiguousarray(pixels[np.newaxis])
        tensor = triton.InferInput("image", batch.shape, "UINT8")
        if self._memory is None:
            tensor.set_data_from_numpy(batch)
        settings = self._settings
        with self._reporting_closure(), nullcontext() if self._memory is None else self._memory.filled(tensor, batch):
            return await self._ask(
                self._triton.infer,
                model,
                [tensor],
                outputs=[triton.InferRequestedOutput(name) for name in _OUTPUTS],
                priority=PRIORITIES[settings.priority],
                timeout=int(settings.timeout_s * 1e6),  # in µs; nobody waits for the response after that
                parameters=settings.parameters,
            )

    async def check_tensors(self, model: str) -> int:
        """Return the size of the embeddings; ContractError if a model has other tensors than this client expects."""
        metadata = await self._ask(self._triton.get_model_metadata, model, as_json=True)
        size = 0
        for direction, expected in (("inputs", _INPUTS), ("outputs", _OUTPUTS)):
            found = {t["name"]: (t["datatype"], tuple(map(int, t["shape"]))) for t in metadata.get(direction, [])}
            datatype, shape = found.get("embeddings", ("", (0,)))
            if shape[-1] > 0:
                size = shape[-1]
                found["embeddings"] = datatype, (*shape[:-1], -1)
            if found != expected:
                tensors = f"{_describe(found)} instead of {_describe(expected)}"
                raise ContractError(f"{model} at {self.url} has unexpected {direction}: {tensors}")
        if not size:
            raise ContractError(f"{model} at {self.url} does not say how long its embeddings are")
        return size

    async def describe_models(self) -> tuple[str | None, tuple[str, ...]]:
        """Return the name of the weights behind the embeddings, None if they have none, and the names of the classes.

        The ensemble may be built by somebody else and say neither; then there are no names of classes.

        Raises ContractError if the names are not a list of strings in JSON.
        """
        try:
            config = await self._ask(self._triton.get_model_config, _DESCRIBED_BY, as_json=True)
        except InferenceServerException as error:
            if await self.is_outage(error):
                raise
            return None, ()
        parameters = config["config"].get("parameters", {})
        texts = {key: parameter.get("string_value") for key, parameter in parameters.items()}
        text = texts.get("class_names", "[]")
        try:
            names = json.loads(text)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(text)
        except ValueError as error:
            what = f"class_names of {_DESCRIBED_BY} at {self.url} is {text}"
            raise ContractError(f'{what}, not a list in JSON such as ["shirt", "skirt"]') from error
        return texts.get("model_identity"), tuple(names)

    async def check_identity(self, expected: str | None, class_names: tuple[str, ...]) -> None:
        """Raise ContractError if the server no longer has the models or class names that it had at the beginning."""
        start_s = time.monotonic()
        identity, names = await self.describe_models()
        if identity != expected:
            raise ContractError(
                f"the server at {self.url} has other models than at the beginning: "
                f"{identity or 'unnamed models'} instead of {expected or 'unnamed models'}"
            )
        if names != class_names:
            raise ContractError(
                f"the server at {self.url} has other class names than at the beginning: "
                f"{names} instead of {class_names}"
            )
        self.identity_checked_s = start_s

    async def check_memory(self) -> None:
        """Raise InferenceServerException or OSError if shared memory is required but cannot be used."""
        if self._memory is not None:
            with self._reporting_closure():
                self._memory.check()

    async def is_outage(self, error: InferenceServerException) -> bool:
        """Return True after an outage or an overload, False if the server refused this one request."""
        reason = error.message() or ""
        if _RESTRICTED in reason:
            return False
        if error.status() in _RETRIED_STATUSES or _DEAD_STUB in reason:
            return True
        if self._memory is not None and self._memory.is_lost(error):
            return True
        try:  # while a server shuts down, it reports unknown models and failed steps of the ensemble
            return not await self._ask(self._triton.is_server_ready)
        except InferenceServerException:
            return True

    async def _ask(self, method: Any, *arguments: Any, **options: Any) -> Any:
        with self._reporting_closure():
            return await _settle(method(*arguments, **options, **self._options))

    @contextmanager
    def _reporting_closure(self) -> Iterator[None]:
        """Context manager: raise UnavailableError if the connection is closed, now or while the body runs."""
        closure = UnavailableError(f"the connection to {self.url} was closed")
        if self._is_closed:
            raise closure
        try:
            yield
        except (InferenceServerException, ValueError) as error:  # gRPC raises ValueError for a call on a closed channel
            if self._is_closed:
                raise closure from error
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._is_closed and task is not None and not task.cancelling():  # closing the channel cancelled the call
                raise closure from error
            raise


async def _settle(answer: Any) -> Any:
    """Return the result of a blocking library, or await that of an asynchronous one."""
    return await answer if inspect.isawaitable(answer) else answer


def _describe(tensors: _Tensors) -> str:
    return ", ".join(f"{name} {datatype} {list(shape)}" for name, (datatype, shape) in sorted(tensors.items()))
