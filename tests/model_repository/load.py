"""Many clients at once, and what a server's processes hold meanwhile."""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

import livematch
from benchmarks.harness.resources import process_tree
from benchmarks.harness.stage_times import Stages, crops_per_call, read_stages, subtract_stages
from livematch.types import Recognition

MAX_COSINE_DIFFERENCE = 1e-4


def ask_one_by_one(url: str, pictures: Sequence[np.ndarray]) -> list[Recognition]:
    with livematch.Client(url) as client:
        return [client.recognize_image(picture) for picture in pictures]


def ask_at_once(
    url: str, pictures: Sequence[np.ndarray], expected: Sequence[Recognition], *, num_requests: int, num_clients: int
) -> float:
    """Requests per second. Raises AssertionError if an answer differs from the expected one of its picture."""
    numbers = iter(range(num_requests))
    pick = itertools.cycle(range(len(pictures)))

    def work(client: livematch.Client) -> int:
        num_answers = 0
        for _, index in zip(numbers, pick, strict=False):  # both are shared by all threads
            assert_equal(client.recognize_image(pictures[index]), expected[index])
            num_answers += 1
        return num_answers

    clients = [livematch.Client(url) for _ in range(num_clients)]
    start_s = time.monotonic()
    with ThreadPoolExecutor(num_clients) as pool:
        num_answers = sum(pool.map(work, clients))
    elapsed_s = time.monotonic() - start_s
    for client in clients:
        client.close()
    assert num_answers == num_requests
    return num_requests / elapsed_s


def ask_for_largest_batches(url: str, pictures: Sequence[np.ndarray], *, num_instances: int) -> None:
    """Sends the last picture of each size as a batch of eight, to all instances at once."""

    def send(picture: np.ndarray) -> None:
        batch = np.stack([picture] * 8)
        tensor = triton.InferInput("image", batch.shape, "UINT8")
        tensor.set_data_from_numpy(batch)
        with triton.InferenceServerClient(url) as client:
            client.infer("recognize_image", [tensor], client_timeout=600)

    for picture in {picture.shape: picture for picture in pictures}.values():
        with ThreadPoolExecutor(num_instances) as pool:
            list(pool.map(send, [picture] * num_instances))


def assert_equal(found: Recognition, expected: Recognition) -> None:
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    cosines = (found.embeddings * expected.embeddings).sum(axis=1)
    assert (cosines > 1 - MAX_COSINE_DIFFERENCE).all(), f"cosine {cosines.min()}"


class EmbedderCalls:
    """How many crops one call of an embedder held, on average, since this object was made."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = self._read()

    def crops_per_call(self) -> float:
        return crops_per_call(subtract_stages(self._read(), self._before))

    def _read(self) -> Stages:
        with triton.InferenceServerClient(self._url) as client:
            return read_stages(client)


def memory_bytes(pid: int) -> int:
    """Of a process and its descendants: anonymous and shared memory, each page counted once; no program text."""
    return sum(map(_data_bytes, process_tree(pid)))


def _data_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
