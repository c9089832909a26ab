"""Every limit of the generated configs, tripped on a real server whose queues are small.

The limits on an image itself (dtype, rank, channels, sides, images per request) are tripped in test_recognize.py.
"""

import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import livematch
from export.config import PipelineConfig
from export.signature import PRIORITIES
from export.triton_config import write_files
from livematch.server import LocalServer

pytestmark = pytest.mark.triton

MAX_QUEUE_SIZE = 8
NUM_AT_ONCE = 24


@pytest.fixture(scope="module")
def server(config: PipelineConfig, handmade_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """prepare_image has a short queue, prepare_frame lets nobody wait."""
    limits = {"prepare_image": {"max_queue_size": MAX_QUEUE_SIZE}, "prepare_frame": {"queue_timeout_us": 1}}
    with LocalServer(limited(config, handmade_repository, tmp_path_factory.mktemp("limits"), limits)) as started:
        yield started


def limited(config: PipelineConfig, repository: Path, folder: Path, limits: dict[str, dict[str, int]]) -> Path:
    """A copy of the repository in which these models have these settings."""
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    serving = {model: replace(config.serving["prepare"], **settings) for model, settings in limits.items()}
    copy = shutil.copytree(repository, folder / "repository")
    write_files(replace(config, serving=config.serving | serving), copy)
    return copy


def ask(client: triton.InferenceServerClient, model: str, picture: np.ndarray, **options: int) -> str:
    """Returns "answered", or the refusal."""
    tensor = triton.InferInput("image", picture.shape, "UINT8")
    tensor.set_data_from_numpy(picture)
    try:
        client.infer(model, [tensor], client_timeout=120, **options)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "answered"


def slow_picture(number: int) -> np.ndarray:
    """[1, H, W, 3], of another size for each number, so that no two of them share a batch."""
    return np.zeros((1, 1400 + number, 1000, 3), np.uint8)


def num_waiting(server: LocalServer, model: str) -> int:
    text = urllib.request.urlopen(f"http://{server.metrics_url}/metrics").read().decode()
    counts = re.findall(rf'nv_inference_pending_request_count{{model="{model}".*}} (\d+)', text)
    return int(counts[0])


def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(
    config: PipelineConfig, handmade_repository: Path, tmp_path: Path
) -> None:
    """A batch of eight waits a second for more, and only four may wait."""
    limits = {"prepare_image": {"max_queue_size": 4, "max_queue_delay_us": 1_000_000}}
    picture = np.zeros((1, 40, 30, 3), np.uint8)
    with (
        LocalServer(limited(config, handmade_repository, tmp_path, limits)) as server,
        triton.InferenceServerClient(server.url) as client,
        ThreadPoolExecutor(NUM_AT_ONCE) as pool,
    ):
        answers = list(pool.map(lambda _: ask(client, "prepare_image", picture), range(NUM_AT_ONCE)))
        assert ask(client, "recognize_image", picture) == "answered"
    refusals = [answer for answer in answers if answer != "answered"]
    assert 0 < len(refusals) <= NUM_AT_ONCE - 4
    assert set(refusals) == {"StatusCode.UNAVAILABLE: [request id: <id_unknown>] Exceeds maximum queue size"}


def test_the_client_comes_back_to_a_full_queue(server: LocalServer) -> None:
    with livematch.Client(server.url, first_pause_s=0.1) as client, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        assert (
            len(list(pool.map(client.recognize_image, (slow_picture(n)[0] for n in range(NUM_AT_ONCE))))) == NUM_AT_ONCE
        )


def test_a_request_that_waited_too_long_is_refused(server: LocalServer) -> None:
    with triton.InferenceServerClient(server.url) as client:
        assert "Request timeout expired" in ask(client, "recognize_frame", slow_picture(0))
        # A request may set itself a shorter time, in microseconds, and the ensemble passes it on.
        assert "Request timeout expired" in ask(client, "recognize_image", slow_picture(0), timeout=1)
        assert ask(client, "recognize_image", slow_picture(0), timeout=60_000_000) == "answered"


def test_live_requests_overtake_batch_requests(server: LocalServer) -> None:
    finished: list[str] = []

    def work(client: triton.InferenceServerClient, name: str, number: int) -> None:
        if ask(client, "prepare_image", slow_picture(number), priority=PRIORITIES[name]) == "answered":
            finished.append(name)

    with triton.InferenceServerClient(server.url) as client:
        batch = [threading.Thread(target=work, args=(client, "batch", n)) for n in range(MAX_QUEUE_SIZE)]
        for thread in batch:
            thread.start()
        while not num_waiting(server, "prepare_image"):
            time.sleep(0.001)
        live = threading.Thread(target=work, args=(client, "live", 99))
        live.start()
        for thread in (*batch, live):
            thread.join()
    assert finished.count("batch") == MAX_QUEUE_SIZE
    assert finished.index("live") < MAX_QUEUE_SIZE - 2
