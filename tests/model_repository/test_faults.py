"""What a server does when one of its processes ends, or when it is stopped, with requests in flight."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tritonclient.http as triton_http

import livematch
from benchmarks.harness.resources import process_tree
from livematch.cli.commands import EXIT_ERROR, EXIT_INTERRUPTED
from tests.model_repository import handmade
from tests.model_repository.load import ask_at_once, ask_one_by_one
from tests.model_repository.malformed import GRPC, Input, Malformed, send

pytestmark = pytest.mark.triton

NUM_CLIENTS = 6


def run_cli(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "livematch.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


class Serving:
    """`livematch serve` in a process of its own."""

    def __init__(self, repository: Path, log_path: Path) -> None:
        pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
        ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics")]
        options = ["--repository", str(repository), "--log", str(log_path), "--exit-timeout", "20"]
        self.process = run_cli("serve", *options, *ports)
        assert self.process.stdout is not None
        addresses = json.loads(self.process.stdout.readline())
        self.url, self.http_url = addresses["url"], addresses["http_url"]
        self.log_path = log_path

    def stubs(self) -> dict[str, int]:
        """Process of each model instance by its name, e.g. "crop_and_embed_0_0"."""
        found = {}
        for pid in process_tree(self.process.pid):
            words = command_of(pid)
            if words[0].endswith("triton_python_backend_stub"):
                found[next(word for word in words if word.endswith(("_0_0", "_0_1", "_0_2", "_0_3")))] = pid
        return found


@pytest.fixture
def serving(handmade_repository: Path, tmp_path: Path) -> Iterator[Serving]:
    started = Serving(handmade_repository, tmp_path / "server.log")
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [handmade.make_image(count, 120 + 30 * count, 160, seed=count)[0] for count in range(6)]


def test_the_end_of_a_models_process_costs_time_only(serving: Serving, pictures: list[np.ndarray]) -> None:
    expected = ask_one_by_one(serving.url, pictures)
    stubs = serving.stubs()
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(ask_at_once, serving.url, pictures, expected, num_requests=60, num_clients=NUM_CLIENTS)
        time.sleep(0.2)
        os.kill(stubs["crop_and_embed_0_0"], signal.SIGKILL)
        load.result()
    assert not set(serving.stubs().values()) & set(stubs.values())


def test_a_request_that_kills_a_models_process_is_refused_and_the_server_recovers(
    serving: Serving, pictures: list[np.ndarray]
) -> None:
    """The product of these sides is 0 modulo 2 ** 64, which this Triton takes for the size of an empty picture."""
    overflow = Malformed("overflow", (Input("image", "UINT8", (1, 2**32, 2**32, 3), b""),), "prepare_image")
    # Triton says the first, or is ended before it can.
    assert re.search(
        "'prepare_image_0_0' is not healthy|Stream removed|Socket closed", send(overflow, GRPC, serving.url)
    )
    with livematch.Client(serving.url) as client:
        assert [len(client.recognize_image(picture)) for picture in pictures] == [0, 1, 2, 3, 4, 5]


def test_a_stopped_server_answers_what_is_in_flight_and_leaves_nothing(serving: Serving) -> None:
    """Over gRPC this Triton (24.10) refuses the remaining steps of an ensemble, at once and as an outage."""
    picture = handmade.make_image(3, 900, 700)
    processes = process_tree(serving.process.pid)
    is_stopping = threading.Event()

    def ask_http() -> set[str]:
        with triton_http.InferenceServerClient(serving.http_url, network_timeout=60) as client:
            tensor = triton_http.InferInput("image", picture.shape, "UINT8")
            tensor.set_data_from_numpy(picture)
            while not is_stopping.is_set():
                assert client.infer("recognize_image", [tensor]).as_numpy("num_detections").tolist() == [[3]]
        return {"answered"}

    def ask_grpc() -> set[str]:
        with livematch.Client(serving.url, max_tries=1) as client:
            while not is_stopping.is_set():
                try:
                    assert len(client.recognize_image(picture[0])) == 3
                except livematch.UnavailableError:
                    return {"unavailable"}
        return {"answered"}

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        http = [pool.submit(ask_http) for _ in range(NUM_CLIENTS // 2)]
        grpc = [pool.submit(ask_grpc) for _ in range(NUM_CLIENTS // 2)]
        time.sleep(2)
        serving.process.send_signal(signal.SIGTERM)
        is_stopping.set()
        assert all(future.result() == {"answered"} for future in http)
        assert all(future.result() <= {"answered", "unavailable"} for future in grpc)
    assert serving.process.wait(60) == EXIT_INTERRUPTED
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert "Exit timeout expired" not in serving.log_path.read_text()


def test_a_run_notices_at_once_that_the_server_it_started_has_died(handmade_repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    folder = tmp_path / "images" / "000001"
    folder.mkdir(parents=True)
    PIL.Image.fromarray(handmade.make_image(2, 600, 600)[0]).save(folder / "0.png")
    for k in range(1, 300):
        (folder / f"{k}.png").hardlink_to(folder / "0.png")
    options = [
        "--images",
        str(folder.parent),
        "-o",
        str(tmp_path / "features"),
        "--repository",
        str(handmade_repository),
    ]
    process = run_cli("embed", *options)
    while not list(tmp_path.glob("features*")):
        assert process.poll() is None
        time.sleep(0.01)
    server = next(pid for pid in process_tree(process.pid) if "tritonserver" in command_of(pid)[0])
    start_s = time.monotonic()
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start_s < 20
    assert process.returncode == EXIT_ERROR
    last_line = errors.splitlines()[-1]
    assert last_line.startswith("livematch: tritonserver was killed by signal 9: ")
    assert "the next run resumes there" in last_line
