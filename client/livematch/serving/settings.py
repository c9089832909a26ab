"""Check the settings that Client and AsyncClient share, before anything connects."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

from livematch.errors import InputError
from livematch.types import KEY_NAME

DEFAULT_URL = "127.0.0.1:8001"
DEFAULT_CONCURRENCY = 8
PRIORITIES = {"live": 1, "batch": 2}
"""Request priorities by name; the server's queues serve live requests first."""

_ADDRESS = re.compile(r"([^\s:/]+|\[[^\s/]+\]):(\d{1,5})")
_LONGEST_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Names the PEM files for an encrypted connection. Without any, the system's certificate authorities are trusted.

    root_certificates: certificates of the authority that signed the server's certificate.
    certificate_chain, private_key: this client's own certificate and its key, for servers that require one.

    Raises:
        InputError: a file does not exist, or only one of `certificate_chain` and `private_key` is given.
    """

    root_certificates: str | Path | None = None
    certificate_chain: str | Path | None = None
    private_key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):  # gRPC would abort the process
            given = self.certificate_chain or self.private_key
            raise InputError(f"TLS needs a client's certificate and its private key together, got only {given}")
        for path in (self.root_certificates, self.certificate_chain, self.private_key):
            if path is not None and not (isinstance(path, str | Path) and Path(path).is_file()):
                raise InputError(f"{path} is not a file: pass the path of a PEM file to Tls")


@dataclass(frozen=True)
class Settings:
    """Checks and holds the arguments of a client; see `Client` for their meaning and for the InputError."""

    urls: str | Sequence[str]
    max_tries: int
    first_pause_s: float
    timeout_s: float
    crop_scale: float
    priority: Literal["live", "batch"]
    access_key: str | None
    tls: Tls | None
    min_score: float | None

    def __post_init__(self) -> None:
        urls = [self.urls] if isinstance(self.urls, str) else self.urls
        if not isinstance(urls, Sequence) or isinstance(urls, bytes):
            raise InputError(f"urls must be a server address HOST:PORT, or a list of them, got {urls!r}")
        if not urls:
            raise InputError(f"no server address given: pass HOST:PORT, such as {DEFAULT_URL}")
        for url in urls:
            _check_address(url)
        check_count("max_tries", self.max_tries)
        _check_number("first_pause_s", self.first_pause_s, 0, _LONGEST_S)
        _check_number("timeout_s", self.timeout_s, 1e-6, _LONGEST_S)
        _check_number("crop_scale", self.crop_scale, 1, 2)
        if self.min_score is not None:
            _check_number("min_score", self.min_score, 0, 1)
        if not isinstance(self.priority, str) or self.priority not in PRIORITIES:
            raise InputError(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")
        key = self.access_key  # gRPC rejects a header with any other character
        if key is not None and not (isinstance(key, str) and key.isascii() and key.isprintable()):
            raise InputError("access_key must be a string of printable ASCII characters")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise InputError(
                f"tls must be a livematch.Tls, got {type(self.tls).__name__}: use tls=Tls() for the defaults"
            )

    @property
    def addresses(self) -> list[str]:
        """The servers' addresses without duplicates."""
        return [self.urls] if isinstance(self.urls, str) else list(dict.fromkeys(self.urls))

    @property
    def parameters(self) -> dict[str, str]:
        """The parameters of every request; those with the server's own values are left out."""
        parameters = {} if self.crop_scale == 1 else {"crop_scale": str(self.crop_scale)}
        return parameters if self.min_score is None else parameters | {"min_score": str(self.min_score)}

    @property
    def headers(self) -> dict[str, str]:
        """The gRPC headers of every request."""
        return {} if self.access_key is None else {f"triton-grpc-protocol-{KEY_NAME}": self.access_key}


def check_count(name: str, value: object) -> None:
    """Raise InputError unless `value` is a whole number of at least 1."""
    if not isinstance(value, Integral):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    if int(value) < 1:
        raise InputError(f"{name} must be at least 1, got {value!r}")


def _check_number(name: str, value: object, minimum: float, maximum: float) -> None:
    if not isinstance(value, Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    if not minimum <= float(value) <= maximum:  # NaN is in no range
        raise InputError(f"{name} must be from {minimum:g} to {maximum:g}, got {value!r}")


def _check_address(address: object) -> None:
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if not match:
        raise InputError(f"a server address must have the form HOST:PORT, got {address!r}")
    if not 0 < int(match[2]) <= 65535:
        raise InputError(f"the port of a server must be from 1 to 65535, got {address!r}")
