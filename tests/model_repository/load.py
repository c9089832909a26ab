"""Load from many clients at once, and the memory that a server's processes hold."""

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


def ask_one_by_one(url: str, images: Sequence[np.ndarray]) -> list[Recognition]:
    with livematch.Client(url) as client:
        return [client.recognize_image(image) for image in images]


def ask_at_once(
    url: str, images: Sequence[np.ndarray], expected: Sequence[Recognition], *, num_requests: int, num_clients: int
) -> float:
    """Return the requests per second; raise AssertionError if a response differs from the expected one."""
    numbers = iter(range(num_requests))
    pick = itertools.cycle(range(len(images)))

    def work(client: livematch.Client) -> int:
        num_answers = 0
        for _, index in zip(numbers, pick, strict=False):  # both are shared by all threads
            assert_equal(client.recognize_image(images[index]), expected[index])
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


def ask_for_largest_batches(url: str, images: Sequence[np.ndarray], *, num_instances: int) -> None:
    """Send the last image of each size as a batch of eight, to all instances at once."""

    def send(image: np.ndarray) -> None:
        batch = np.stack([image] * 8)
        tensor = triton.InferInput("image", batch.shape, "UINT8")
        tensor.set_data_from_numpy(batch)
        with triton.InferenceServerClient(url) as client:
            client.infer("recognize_image", [tensor], client_timeout=600)

    for image in {image.shape: image for image in images}.values():
        with ThreadPoolExecutor(num_instances) as pool:
            list(pool.map(send, [image] * num_instances))


def assert_equal(found: Recognition, expected: Recognition) -> None:
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    cosines = (found.embeddings * expected.embeddings).sum(axis=1)
    assert (cosines > 1 - MAX_COSINE_DIFFERENCE).all(), f"cosine {cosines.min()}"


class EmbedderCalls:
    """Measures how many crops a call of an embedder has, on average since this object was created."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = self._read()

    def crops_per_call(self) -> float:
        return crops_per_call(subtract_stages(self._read(), self._before))

    def _read(self) -> Stages:
        with triton.InferenceServerClient(self._url) as client:
            return read_stages(client)


def memory_bytes(pid: int) -> int:
    """Return the anonymous and shared memory of a process and its descendants, each page counted once."""
    return sum(map(_data_bytes, process_tree(pid)))


def _data_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
