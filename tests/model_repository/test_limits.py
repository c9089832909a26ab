"""Every limit of the generated configs, exceeded on a real server with small queues.

The limits on an image itself (dtype, rank, channels, sides, images per request) are exceeded in test_recognize.py.
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
import onnx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import livematch
from export.config import PipelineConfig
from export.signature import PRIORITIES
from export.triton.model_config import write_files
from livematch.local.local_server import LocalServer
from tests.model_repository import handmade

pytestmark = pytest.mark.triton

MAX_QUEUE_SIZE = 8
NUM_AT_ONCE = 24


@pytest.fixture(scope="module")
def slow_repository(
    config: PipelineConfig, handmade_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository whose detector takes long enough for its queue to fill."""
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    copy = shutil.copytree(handmade_repository, tmp_path_factory.mktemp("slow") / "repository")
    detector = handmade.build_slow_detector(config.detector_config.pixel_mean_bgr[0])
    onnx.save(detector, copy / "detector" / "1" / "model.onnx")
    return limited(config, copy, max_queue_size=MAX_QUEUE_SIZE)


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[LocalServer]:
    with LocalServer(slow_repository) as started:
        yield started


def limited(config: PipelineConfig, repository: Path, **settings: int) -> Path:
    """Write these settings of the detector to the repository, and return it."""
    serving = replace(config.serving, detector=replace(config.serving.detector, **settings))
    write_files(replace(config, serving=serving), repository)
    return repository


def ask(client: triton.InferenceServerClient, image: np.ndarray, **options: int) -> str:
    """Return "answered", or the refusal."""
    tensor = triton.InferInput("image", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    try:
        client.infer("recognize_image", [tensor], client_timeout=120, **options)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "answered"


def image(number: int) -> np.ndarray:
    """Return [1, H, W, 3] of a size that differs by number, so that no two images share a batch of the detector."""
    return np.zeros((1, 40, 40 + 8 * number, 3), np.uint8)


def num_waiting(server: LocalServer, model: str) -> int:
    text = urllib.request.urlopen(f"http://{server.metrics_url}/metrics").read().decode()
    counts = re.findall(rf'nv_inference_pending_request_count{{model="{model}".*}} (\d+)', text)
    return int(counts[0])


def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(server: LocalServer) -> None:
    with triton.InferenceServerClient(server.url) as client, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        answers = list(pool.map(lambda number: ask(client, image(number)), range(NUM_AT_ONCE)))
    refusals = [answer for answer in answers if answer != "answered"]
    assert 0 < len(refusals) <= NUM_AT_ONCE - MAX_QUEUE_SIZE
    message = r"StatusCode.UNAVAILABLE: in ensemble 'recognize_image', .*Exceeds maximum queue size"
    assert all(re.fullmatch(message, refusal) for refusal in refusals), refusals


def test_the_client_retries_after_a_full_queue(server: LocalServer, caplog: pytest.LogCaptureFixture) -> None:
    with livematch.Client(server.url, first_pause_s=0.1) as client, ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        found = list(pool.map(client.recognize_image, (image(number)[0] for number in range(NUM_AT_ONCE))))
    assert len(found) == NUM_AT_ONCE
    assert "trying again: in ensemble 'recognize_image', " in caplog.text


def test_a_request_that_waited_too_long_is_refused(
    config: PipelineConfig, slow_repository: Path, server: LocalServer, tmp_path: Path
) -> None:
    with triton.InferenceServerClient(server.url) as client:
        # A request may set a shorter timeout, in microseconds, which the ensemble passes on.
        assert "Request timeout expired" in ask(client, image(0), timeout=1)
        assert ask(client, image(0), timeout=60_000_000) == "answered"
    repository = limited(config, shutil.copytree(slow_repository, tmp_path / "repository"), queue_timeout_us=1)
    with LocalServer(repository) as hasty, triton.InferenceServerClient(hasty.url) as client:
        assert "Request timeout expired" in ask(client, image(0))


def test_live_requests_overtake_batch_requests(server: LocalServer) -> None:
    finished: list[str] = []

    def work(client: triton.InferenceServerClient, name: str, number: int) -> None:
        if ask(client, image(number), priority=PRIORITIES[name]) == "answered":
            finished.append(name)

    with triton.InferenceServerClient(server.url) as client:
        batch = [threading.Thread(target=work, args=(client, "batch", n)) for n in range(MAX_QUEUE_SIZE)]
        for thread in batch:
            thread.start()
        while num_waiting(server, "detector") < 3:
            time.sleep(0.001)
        live = threading.Thread(target=work, args=(client, "live", 20))
        live.start()
        for thread in (*batch, live):
            thread.join()
    assert finished.count("batch") == MAX_QUEUE_SIZE
    assert finished.index("live") < MAX_QUEUE_SIZE - 2
