"""Sixteen clients at once get what one client gets; the long run is marked slow.

pytest -m slow tests/model_repository -rP    with LIVEMATCH_SOAK_REQUESTS=5000 or another number
"""

import itertools
import os
import re

import numpy as np
import pytest

from livematch.server import LocalServer
from tests.model_repository import handmade
from tests.model_repository.load import EmbedderCalls, ask_at_once, ask_one_by_one
from tests.model_repository.malformed import GRPC, HTTP, malformed_requests, send

pytestmark = pytest.mark.triton

NUM_CLIENTS = 16
NUM_SOAK_REQUESTS = int(os.environ.get("LIVEMATCH_SOAK_REQUESTS", "5000"))
MAX_GROWTH = 0.02


def handmade_pictures() -> list[np.ndarray]:
    """Of mixed sizes, with 0 to 40 detections each; pictures of one size share batches."""
    counts = itertools.cycle([0, 1, 2, 7, 40, 0, 3, 15])
    sizes = [(96, 64), (64, 96), (200, 150), (33, 180)] * 6
    pictures = enumerate(zip(sizes, counts, strict=False))
    return [handmade.make_image(count, height, width, seed)[0] for seed, ((height, width), count) in pictures]


def test_answers_under_load_are_those_of_single_requests(handmade_server: LocalServer) -> None:
    pictures = handmade_pictures()
    expected = ask_one_by_one(handmade_server.url, pictures)
    assert {len(recognition) for recognition in expected} == {0, 1, 2, 3, 7, 15, 40}
    calls = EmbedderCalls(handmade_server.url)
    ask_at_once(handmade_server.url, pictures, expected, num_requests=96, num_clients=NUM_CLIENTS)
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
