"""A server that requires a key, encrypts and writes traces; and images passed in shared memory."""

import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import livematch
from livematch import Tls
from livematch.local.local_server import LocalServer
from livematch.types import KEY_NAME
from tests.model_repository import handmade
from tests.model_repository.load import assert_equal

pytestmark = pytest.mark.triton

KEY = "open sesame"
IMAGE = handmade.make_image(3)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem for 127.0.0.1, self-signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("operation")
    subject = ["-subj", "/CN=livematch", "-addext", "subjectAltName=IP:127.0.0.1"]
    keys = ["-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *subject, *keys], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(handmade_repository: Path, folder: Path) -> Iterator[LocalServer]:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    tls = ["--grpc-use-ssl=true", f"--grpc-server-cert={folder}/cert.pem", f"--grpc-server-key={folder}/key.pem"]
    trace = [f"--trace-config=triton,file={folder}/trace.json", "--trace-config=rate=0"]
    with LocalServer(handmade_repository, access_key=KEY, extra_args=[*tls, *trace]) as started:
        yield started


@pytest.fixture
def tls(folder: Path) -> Tls:
    return Tls(root_certificates=folder / "cert.pem")


def test_a_client_with_key_and_certificate_is_served(server: LocalServer, tls: Tls) -> None:
    with livematch.Client(server.url, access_key=KEY, tls=tls, shared_memory=True) as client:
        assert len(client.recognize_image(IMAGE)) == 3


@pytest.mark.parametrize("key", [None, "guess"])
def test_a_client_without_the_key_is_told_so_at_once(server: LocalServer, tls: Tls, key: str | None) -> None:
    start_s = time.monotonic()
    with pytest.raises(livematch.ContractError, match=f"restricted.*{KEY_NAME}"):
        livematch.Client(server.url, access_key=key, tls=tls, first_pause_s=30)
    assert time.monotonic() - start_s < 10


def test_a_client_that_does_not_encrypt_is_not_served(server: LocalServer) -> None:
    with pytest.raises(livematch.UnavailableError):
        livematch.Client(server.url, access_key=KEY, max_tries=1)


def test_http_requires_the_key_except_for_health(server: LocalServer) -> None:
    def status(path: str, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection(server.http_url, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    assert status("/v2/health/ready", {}) == 200
    for path in ("/v2/models/recognize_image", "/v2/models/recognize_image/config", "/v2/models/stats"):
        assert (status(path, {}), status(path, {KEY_NAME: KEY})) == (403, 200), path


def read_trace(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("trace.json*"))


def test_one_request_is_traced_through_all_its_models(server: LocalServer, tls: Tls, folder: Path) -> None:
    headers = {f"triton-grpc-protocol-{KEY_NAME}": KEY}
    certificate = str(tls.root_certificates)
    with triton.InferenceServerClient(server.url, ssl=True, root_certificates=certificate) as client:
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1", "log_frequency": "1"}
        client.update_trace_settings("recognize_image", settings, headers=headers)
        with livematch.Client(server.url, access_key=KEY, tls=tls) as asker:
            asker.recognize_image(IMAGE)
    deadline = time.monotonic() + 20
    while not (trace := read_trace(folder)).endswith("]") and time.monotonic() < deadline:  # still being written
        time.sleep(0.05)
    models = {event["model_name"] for event in json.loads(trace) if "model_name" in event}
    assert {"recognize_image", "prepare_image", "detector", "crop_and_embed"} <= models


def test_models_cannot_be_loaded_or_unloaded(handmade_server: LocalServer) -> None:
    with (
        triton.InferenceServerClient(handmade_server.url) as client,
        pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"),
    ):
        client.unload_model("detector")


def test_a_server_on_all_interfaces_closes_the_endpoints_that_change_it(handmade_repository: Path) -> None:
    server = LocalServer(handmade_repository, host="0.0.0.0")
    restriction = [option for option in server._restrictions() if "grpc" in option]
    assert len(restriction) == 1
    protocols, key = restriction[0].removeprefix("--grpc-restricted-protocol=").split(":")
    assert protocols == "model-repository,shared-memory,trace,logging"
    assert len(key.removeprefix(f"{KEY_NAME}=")) == 64
    assert LocalServer(handmade_repository)._restrictions() == []


def test_shared_memory_gives_the_same_answers_and_leaves_nothing(handmade_server: LocalServer) -> None:
    images = [handmade.make_image(count, 64 * (1 + count), 200, count)[0] for count in (0, 3, 9, 2, 25)]
    with (
        livematch.Client(handmade_server.url) as plain,
        livematch.Client(handmade_server.url, shared_memory=True) as shared,
    ):
        for image in images:
            assert_equal(shared.recognize_image(image), plain.recognize_image(image))
        with pytest.raises(livematch.RequestError, match="image sides"):
            shared.recognize_image(np.zeros((1, 8193, 3), np.uint8))
        assert len(shared.recognize_image(IMAGE)) == 3
        with triton.InferenceServerClient(handmade_server.url) as client:
            assert len(client.get_system_shared_memory_status().regions) == 1
    with triton.InferenceServerClient(handmade_server.url) as client:
        assert not client.get_system_shared_memory_status().regions
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"livematch-{os.getpid()}-")]


def test_regions_that_a_server_does_not_know_are_made_again(handmade_server: LocalServer) -> None:
    with livematch.Client(handmade_server.url, shared_memory=True, first_pause_s=0.05) as client:
        assert len(client.recognize_image(IMAGE)) == 3
        with triton.InferenceServerClient(handmade_server.url) as other:
            other.unregister_system_shared_memory()  # all of them, as after a restart
        assert len(client.recognize_image(IMAGE)) == 3


def test_a_server_that_cannot_open_a_region_is_named(
    handmade_server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("livematch.serving.shared_memory._FOLDER", tmp_path)  # as if it ran on another machine
    with pytest.raises(livematch.ContractError, match=r"cannot use shared memory of this machine: .*[Uu]nable to open"):
        livematch.Client(handmade_server.url, shared_memory=True)
