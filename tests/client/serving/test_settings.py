"""Every wrong argument is an InputError, before anything connects."""

import math
import re
from pathlib import Path

import pytest

from livematch import AsyncClient, Client, InputError, Tls


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"max_tries": 0}, "max_tries must be at least 1, got 0"),
        ({"max_tries": 2.5}, "max_tries must be a whole number, got 2.5"),
        ({"max_tries": "3"}, "max_tries must be a whole number, got '3'"),
        ({"first_pause_s": -1}, "first_pause_s must be from 0 to 86400, got -1"),
        ({"first_pause_s": math.nan}, "first_pause_s must be from 0 to 86400, got nan"),
        ({"timeout_s": 0}, "timeout_s must be from 1e-06 to 86400, got 0"),
        ({"timeout_s": math.nan}, "timeout_s must be from 1e-06 to 86400, got nan"),
        ({"timeout_s": math.inf}, "timeout_s must be from 1e-06 to 86400, got inf"),
        ({"timeout_s": None}, "timeout_s must be a number, got None"),
        ({"min_score": -0.1}, "min_score must be from 0 to 1, got -0.1"),
        ({"min_score": "high"}, "min_score must be a number, got 'high'"),
        ({"crop_scale": 0.9}, "crop_scale must be from 1 to 2, got 0.9"),
        ({"crop_scale": "1.2"}, "crop_scale must be a number, got '1.2'"),
        ({"priority": "x"}, "priority must be one of live, batch, got 'x'"),
        ({"priority": ["live"]}, "priority must be one of live, batch, got ['live']"),
        ({"access_key": "schlüssel"}, "access_key must be a string of printable ASCII characters"),
        ({"access_key": "two\nlines"}, "access_key must be a string of printable ASCII characters"),
        ({"access_key": 7}, "access_key must be a string of printable ASCII characters"),
        ({"tls": True}, "tls must be a livematch.Tls, got bool: use tls=Tls() for the defaults"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_wrong_option_is_named(kind, options, advice):
    with pytest.raises(InputError, match=re.escape(advice)):
        kind("127.0.0.1:1", **options)


@pytest.mark.parametrize(
    ("urls", "advice"),
    [
        ([], "no server address given: pass HOST:PORT, such as 127.0.0.1:8001"),
        (8001, "urls must be a server address HOST:PORT, or a list of them, got 8001"),
        (None, "urls must be a server address HOST:PORT, or a list of them, got None"),
        (b"localhost:8001", "urls must be a server address HOST:PORT, or a list of them, got b'localhost:8001'"),
        ([8001], "a server address must have the form HOST:PORT, got 8001"),
        ([["localhost:8001"]], "a server address must have the form HOST:PORT, got ['localhost:8001']"),
        *[
            (text, f"a server address must have the form HOST:PORT, got {text!r}")
            for text in ("localhost", "http://localhost:8001", "localhost:", "localhost:grpc", ":8001", "")
        ],
        *[
            (text, f"the port of a server must be from 1 to 65535, got {text!r}")
            for text in ("localhost:0", "localhost:65536", "[::1]:99999")
        ],
    ],
)
def test_a_wrong_address_is_named(urls, advice):
    with pytest.raises(InputError, match=re.escape(advice)):
        Client(urls)


@pytest.mark.parametrize("path", [Path("nowhere.pem"), "nowhere.pem", 7])
def test_a_missing_certificate_is_named(path):
    with pytest.raises(InputError, match=rf"{path} is not a file: pass the path of a PEM file"):
        Tls(root_certificates=path)


def test_a_certificate_needs_its_key(tmp_path):
    with pytest.raises(InputError, match="certificate and its private key together"):
        Tls(certificate_chain=tmp_path)
