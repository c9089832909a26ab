"""Sixteen clients at once get the same responses as one client, and the server's memory does not grow.

LIVEMATCH_SOAK_REQUESTS=5000 pytest -m slow -rP tests/model_repository    the long runs, with their measurements
"""

import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from export.config import demo
from export.graphs.prepare import build_prepare
from livematch import read_image
from livematch.local.local_server import LocalServer
from tests.model_repository import handmade
from tests.model_repository.load import (
    EmbedderCalls,
    ask_at_once,
    ask_for_largest_batches,
    ask_one_by_one,
    memory_bytes,
)
from tests.model_repository.malformed import GRPC, HTTP, malformed_requests, send

pytestmark = pytest.mark.triton

NUM_CLIENTS = 16
NUM_SOAK_REQUESTS = int(os.environ.get("LIVEMATCH_SOAK_REQUESTS", "5000"))
MAX_GROWTH = 0.02


def handmade_images() -> list[np.ndarray]:
    """Return images of mixed sizes with 0 to 40 detections each; images of one size share batches."""
    counts = itertools.cycle([0, 1, 2, 7, 40, 0, 3, 15])
    sizes = [(96, 64), (64, 96), (200, 150), (33, 180)] * 6
    images = enumerate(zip(sizes, counts, strict=False))
    return [handmade.make_image(count, height, width, seed)[0] for seed, ((height, width), count) in images]


def test_responses_under_load_equal_those_of_single_requests(handmade_server: LocalServer) -> None:
    images = handmade_images()
    expected = ask_one_by_one(handmade_server.url, images)
    assert {len(recognition) for recognition in expected} == {0, 1, 2, 3, 7, 15, 40}
    calls = EmbedderCalls(handmade_server.url)
    ask_at_once(handmade_server.url, images, expected, num_requests=96, num_clients=NUM_CLIENTS)
    assert calls.crops_per_call() > 1.5  # crops of several requests and boxes shared calls


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_malformed_requests_are_refused_with_reasons(handmade_server: LocalServer, protocol: str) -> None:
    refuse(handmade_server, protocol, num_requests=25)


def refuse(server: LocalServer, protocol: str, num_requests: int) -> None:
    url = server.url if protocol == GRPC else server.http_url
    for request in itertools.islice(malformed_requests(seed=num_requests), num_requests):
        refusal = send(request, protocol, url)
        assert re.search(request.refusal, refusal, re.DOTALL), f"{request.kind}: {refusal}"
    assert len(ask_one_by_one(server.url, [handmade.make_image(2, 64, 64)[0]])[0]) == 2


@pytest.fixture(scope="module")
def generous_repository(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's repository with a low minimum score, so that images have many detections."""
    repository = shutil.copytree(demo_repository, tmp_path_factory.mktemp("generous") / "repository")
    config = replace(demo(), image=replace(demo().image, min_score=0.06))
    onnx.save(build_prepare(config, "image"), repository / "prepare_image" / "1" / "model.onnx")
    return repository


@pytest.fixture(scope="module")
def demo_images(demo_world: Path) -> list[np.ndarray]:
    """Sheets of 0 to 40 photos of mixed sizes, and single photos; images of one size share batches."""
    paths = sorted((demo_world / "image").glob("*/*.jpg"))
    sheets = [(0, 1, 160), (1, 1, 200), (4, 2, 160), (9, 5, 160), (16, 8, 160), (40, 20, 160)]
    return [make_sheet(paths, *sheet, seed) for seed, sheet in enumerate(sheets * 3)] + [
        read_image(path) for path in paths[:8]
    ]


def make_sheet(paths: list[Path], num_photos: int, num_columns: int, side_px: int, seed: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: randomly chosen photos in a grid whose remaining cells are white."""
    chosen = np.random.default_rng(seed).choice(len(paths), num_photos)
    num_rows = max(1, -(-num_photos // num_columns))
    sheet = np.full((num_rows, side_px, num_columns, side_px, 3), 255, np.uint8)
    for position, index in enumerate(chosen):
        row, column = divmod(position, num_columns)
        sheet[row, :, column] = cv2.resize(read_image(paths[index]), (side_px, side_px), interpolation=cv2.INTER_AREA)
    return sheet.reshape(num_rows * side_px, num_columns * side_px, 3)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_soak(generous_repository: Path, demo_images: list[np.ndarray]) -> None:
    num_warm_up = min(1000, NUM_SOAK_REQUESTS // 2)
    with LocalServer(generous_repository) as server:
        expected = ask_one_by_one(server.url, demo_images)
        counts = sorted({len(recognition) for recognition in expected})

        def ask(num_requests: int, num_clients: int) -> tuple[float, float]:
            calls = EmbedderCalls(server.url)
            counted = {"num_requests": num_requests, "num_clients": num_clients}
            requests_per_s = ask_at_once(server.url, demo_images, expected, **counted)
            return requests_per_s, calls.crops_per_call()

        # ONNX Runtime keeps the memory of the largest batch of each size, which may occur late by chance.
        ask_for_largest_batches(server.url, demo_images, num_instances=2)
        ask(num_warm_up, NUM_CLIENTS)
        before_bytes = memory_bytes(server.pid)
        alone, crops_alone = ask(min(200, NUM_SOAK_REQUESTS // 4), 1)
        together, crops_together = ask(NUM_SOAK_REQUESTS - num_warm_up, NUM_CLIENTS)
        growth = memory_bytes(server.pid) / before_bytes - 1
    print(
        f"boxes per image {counts}; memory after {num_warm_up} requests {before_bytes / 2**20:.0f} MiB, {growth:+.2%}"
    )
    print(f"1 client {alone:.2f} requests/s, {crops_alone:.2f} crops per embedder call")
    print(f"{NUM_CLIENTS} clients {together:.2f} requests/s, {crops_together:.2f} crops per embedder call")
    assert counts[0] == 0 and counts[-1] >= 20
    assert growth < MAX_GROWTH or num_warm_up < 1000  # after 1000 requests every size has occurred often
    assert crops_together > crops_alone


@pytest.mark.slow
def test_memory_stays_flat_under_malformed_requests(handmade_repository: Path) -> None:
    with LocalServer(handmade_repository) as server:
        for protocol in (GRPC, HTTP):
            refuse(server, protocol, num_requests=150)
        before_bytes = memory_bytes(server.pid)
        for protocol in (GRPC, HTTP):
            refuse(server, protocol, num_requests=150)
        growth = memory_bytes(server.pid) / before_bytes - 1
    print(f"300 malformed requests: {before_bytes / 2**20:.0f} MiB, {growth:+.2%}")
    assert growth < MAX_GROWTH
