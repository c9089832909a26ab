"""A gRPC connection to one server: its requests, and what its errors mean."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from livematch.errors import ContractError, InputError
from livematch.serving.shared_memory import SharedMemory

IDENTITY_MODEL = "crop_and_embed"  # its config carries the parameter `model_identity`

_ADDRESS = re.compile(r"([^\s:/]+|\[[^\s/]+\]):(\d{1,5})")

# UNAVAILABLE: nothing listens, the server is shutting down, or a model's queue is full.
_RETRIED_STATUSES = {"StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"}
_RESTRICTED = "This protocol is restricted"  # the access key is missing or wrong, which is UNAVAILABLE too
_DEAD_STUB = "is not healthy"  # the process of a Python model has ended; another server has one, or a restarted one
# Without the first, gRPC waits up to two minutes before it looks whether a restarted server is back.
_CHANNEL_OPTIONS = [
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files for an encrypted connection; without any, the system's authorities are trusted.

    Raises:
        InputError: a file is not there, or a certificate chain is without a private key, or the other way round.
    """

    root_certificates: Path | None = None  # of the authority that signed the server's certificate
    certificate_chain: Path | None = None  # of this client, where the server wants one,
    private_key: Path | None = None  # and its key

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):  # gRPC would abort the process
            given = self.certificate_chain or self.private_key
            raise InputError(f"TLS needs a client's certificate and its private key together, got only {given}")
        for path in (self.root_certificates, self.certificate_chain, self.private_key):
            if path is not None and not path.is_file():
                raise InputError(f"{path} is not a file, but TLS was to use it")


class Connection:
    """Sends requests to one server, and knows how it does. For many threads at once.

    Args:
        url: "host:port".
        headers: of every request.
        timeout_s: how long one may take.
        shared_memory: hand pictures over through it.
        tls: encrypt the connection.

    Raises:
        InputError: `url` is of another form, or has no such port.

    Its methods raise InferenceServerException for whatever the server or gRPC refuses, and ValueError after `close`.
    """

    def __init__(
        self, url: str, *, headers: dict[str, str], timeout_s: float, tls: Tls | None, shared_memory: bool
    ) -> None:
        address = _ADDRESS.fullmatch(url)
        if not address:
            raise InputError(f"the address of a server is HOST:PORT, got {url!r}")
        if not 0 < int(address[2]) <= 65535:
            raise InputError(f"the port of a server is from 1 to 65535, got {url!r}")
        self.url = url
        self.num_in_flight = 0
        self.failed_s = -math.inf  # on the monotonic clock
        self.checked_s = 0.0  # when it still had the models of the beginning
        self._headers = headers
        self._timeout_s = timeout_s
        self._tls = tls
        files = tls or Tls()
        self._connection = triton.InferenceServerClient(
            url,
            ssl=tls is not None,
            root_certificates=files.root_certificates,
            private_key=files.private_key,
            certificate_chain=files.certificate_chain,
            channel_args=_CHANNEL_OPTIONS,
        )
        self._memory = SharedMemory(self._connection, headers) if shared_memory else None
        self._is_closed = False

    def copy(self) -> Self:
        """A connection of its own to the same server, with what is known of it."""
        other = type(self)(
            self.url,
            headers=self._headers,
            timeout_s=self._timeout_s,
            tls=self._tls,
            shared_memory=self._memory is not None,
        )
        other.failed_s, other.checked_s = self.failed_s, self.checked_s
        return other

    def close(self) -> None:
        self._is_closed = True
        if self._memory is not None:
            self._memory.close()
        self._connection.close()

    def infer(
        self,
        model: str,
        batch: npt.NDArray[np.uint8],
        *,
        outputs: Sequence[triton.InferRequestedOutput],
        priority: int,
        parameters: dict[str, str],
    ) -> triton.InferResult:
        """The answer of `model` to the tensor "image", uint8 [n,H,W,3]."""

        def send() -> triton.InferResult:
            return self._connection.infer(
                model,
                [tensor],
                outputs=outputs,
                priority=priority,
                timeout=int(self._timeout_s * 1e6),  # nobody waits for the answer after that
                client_timeout=self._timeout_s,
                headers=self._headers,
                parameters=parameters,
            )

        tensor = triton.InferInput("image", batch.shape, "UINT8")
        if self._memory is not None:
            with self._memory.holding(batch, tensor):
                return send()
        tensor.set_data_from_numpy(batch)
        return send()

    def read_metadata(self, model: str) -> dict[str, Any]:
        """Triton's description of a model's tensors."""
        metadata: dict[str, Any] = self._connection.get_model_metadata(
            model, as_json=True, client_timeout=self._timeout_s, headers=self._headers
        )
        return metadata

    def read_identity(self) -> str | None:
        """What names the weights behind the embeddings; None if the repository does not say."""
        try:
            config = self._connection.get_model_config(
                IDENTITY_MODEL, as_json=True, client_timeout=self._timeout_s, headers=self._headers
            )
        except InferenceServerException as error:
            if self.is_outage(error):
                raise
            return None  # an ensemble of another make may lack this model; the features then carry no identity
        parameter: dict[str, str] = config["config"].get("parameters", {}).get("model_identity", {})
        return parameter.get("string_value")

    def check_identity(self, expected: str | None) -> None:
        """Raises ContractError if the server has other models than at the beginning."""
        start_s = time.monotonic()
        identity = self.read_identity()
        if identity != expected:
            raise ContractError(
                f"the server at {self.url} has other models than at the beginning: "
                f"{identity or 'unnamed models'} instead of {expected or 'unnamed models'}"
            )
        self.checked_s = start_s

    def check_memory(self) -> None:
        """Raises InferenceServerException or OSError if shared memory is wanted and there is no use in trying."""
        if self._memory is not None:
            self._memory.check()

    def is_outage(self, error: InferenceServerException) -> bool:
        """Tells what a later try may mend from a refusal of this one request."""
        reason = error.message() or ""
        if _RESTRICTED in reason:
            return False
        if error.status() in _RETRIED_STATUSES or _DEAD_STUB in reason:
            return True
        if self._memory is not None and self._memory.is_lost(error):
            return True
        try:  # A server that stops speaks of unknown models and failed steps of the ensemble.
            return not self._connection.is_server_ready(client_timeout=self._timeout_s, headers=self._headers)
        except InferenceServerException:
            return True
        except ValueError:  # the channel was closed meanwhile; the next try says so
            if self._is_closed:
                return True
            raise
