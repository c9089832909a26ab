import errno
import logging
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from livematch import Client, ContractError, InputError, RequestError, Tls, UnavailableError

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def quick_client(server, **options) -> Client:
    return Client(server.url, **({"first_pause_s": 0.01, "max_tries": 3} | options))


@pytest.fixture
def picture(drawing):
    return drawing.draw((64, 48), (10, 5, 30, 40), (200, 30, 30))


def test_recognition_has_only_the_counted_rows(loopback_server, picture, drawing):
    with quick_client(loopback_server) as client:
        found = client.recognize_image(picture)
        nothing = client.recognize_frame(np.full((8, 8, 3), 255, np.uint8))
    boxes, scores, embeddings = drawing.recognize(picture)
    assert found.boxes.tolist() == [[10, 5, 30, 40]]
    assert found.scores == pytest.approx(scores)
    assert np.array_equal(found.embeddings, embeddings)
    assert (found.boxes.dtype, found.scores.dtype, found.embeddings.dtype) == (np.float32,) * 3
    assert len(boxes) == len(found) == 1
    assert len(nothing) == 0
    assert (nothing.boxes.shape, nothing.embeddings.shape) == ((0, 4), (0, 2048))
    assert loopback_server.num_requests == {"recognize_image": 1, "recognize_frame": 1}


def test_views_are_sent_as_they_look(loopback_server, picture):
    with quick_client(loopback_server) as client:
        mirrored = client.recognize_image(picture[:, ::-1])
    assert mirrored.boxes.tolist() == [[34, 5, 54, 40]]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_before_they_are_sent(loopback_server, wrong):
    with quick_client(loopback_server) as client, pytest.raises(InputError, match=r"uint8 pixels \[H,W,3\]"):
        client.recognize_image(wrong)
    assert loopback_server.num_requests["recognize_image"] == 0


def test_identity_is_read_from_the_config(loopback_server):
    with quick_client(loopback_server) as client:
        assert client.model_identity == "loopback-1"
    loopback_server.identity = None
    with quick_client(loopback_server) as client:
        assert client.model_identity is None


def test_priority_and_patience_are_sent_along(loopback_server, picture):
    with quick_client(loopback_server) as client:
        client.recognize_image(picture)
    assert loopback_server.parameters == {"priority": 2, "timeout": 120_000_000}
    with quick_client(loopback_server, priority="live", timeout_s=1.5) as client:
        client.recognize_image(picture)
    assert loopback_server.parameters == {"priority": 1, "timeout": 1_500_000}


def test_overload_is_retried(loopback_server, picture, caplog):
    with quick_client(loopback_server) as client, caplog.at_level(logging.WARNING):
        loopback_server.faults = [UNAVAILABLE, UNAVAILABLE]
        assert len(client.recognize_image(picture)) == 1
    assert caplog.text.count("trying again: a fault: UNAVAILABLE") == 1  # one line for the whole outage


def test_retries_are_bounded(loopback_server, picture):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [UNAVAILABLE] * 9
        with pytest.raises(UnavailableError, match=r"in 3 tries: a fault: UNAVAILABLE"):
            client.recognize_image(picture)
        assert len(loopback_server.faults) == 6


def test_a_refused_request_is_not_retried(loopback_server, picture):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [grpc.StatusCode.INVALID_ARGUMENT]
        with pytest.raises(RequestError, match="a fault: INVALID_ARGUMENT"):
            client.recognize_image(picture)
        assert len(client.recognize_image(picture)) == 1
    assert loopback_server.num_requests["recognize_image"] == 2


def test_what_a_stopping_server_says_is_no_refusal(loopback_server, picture):
    with quick_client(loopback_server) as client:
        loopback_server.is_ready = False
        loopback_server.faults = [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL]
        assert len(client.recognize_image(picture)) == 1
        loopback_server.faults = [grpc.StatusCode.NOT_FOUND] * 3
        with pytest.raises(UnavailableError, match="in 3 tries: a fault: NOT_FOUND"):
            client.recognize_image(picture)


def test_a_restarted_server_is_found_again(loopback_server, picture):
    with quick_client(loopback_server, first_pause_s=0.2, max_tries=8) as client:
        client.recognize_image(picture)
        loopback_server.stop()
        restart = threading.Timer(0.7, loopback_server.start)
        restart.start()
        assert len(client.recognize_image(picture)) == 1
        restart.join()


def test_a_server_that_comes_back_with_other_models_is_refused(loopback_server, picture):
    with quick_client(loopback_server) as client:
        loopback_server.faults = [UNAVAILABLE]
        assert len(client.recognize_image(picture)) == 1  # back with the same ones
        loopback_server.faults = [UNAVAILABLE]
        loopback_server.identity = "loopback-2"
        for recognize in (client.recognize_image, client.recognize_frame):
            with pytest.raises(ContractError, match=r"127.* other models .*: loopback-2 instead of loopback-1"):
                recognize(picture)


def test_nobody_listening(loopback_server):
    loopback_server.stop()
    with pytest.raises(UnavailableError, match=rf"no answer from the server at {loopback_server.url} in 2 tries"):
        quick_client(loopback_server, max_tries=2)


def test_a_slow_answer_counts_as_none(loopback_server, picture):
    with quick_client(loopback_server, timeout_s=0.2, max_tries=1) as client:
        loopback_server.delay_s = 1.0
        with pytest.raises(UnavailableError, match="in 1 tries"):
            client.recognize_image(picture)


def test_closing_ends_a_wait_in_another_thread(loopback_server, picture):
    client = quick_client(loopback_server, first_pause_s=60)
    loopback_server.faults = [UNAVAILABLE] * 3
    errors: list[Exception] = []

    def ask():
        try:
            client.recognize_image(picture)
        except UnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while len(loopback_server.faults) == 3:
        time.sleep(0.01)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])


def test_a_copy_is_closed_by_itself_but_not_outlived(loopback_server, picture):
    with quick_client(loopback_server) as client:
        first, second = client.copy(), client.copy()
        first.close()
        with pytest.raises(UnavailableError, match="closed"):
            first.recognize_image(picture)
        assert (len(second.recognize_image(picture)), len(client.recognize_image(picture))) == (1, 1)
    with pytest.raises(UnavailableError, match="closed"):
        second.recognize_image(picture)
    with pytest.raises(UnavailableError, match="closed"):  # as when a server dies while a run begins
        client.copy().recognize_image(picture)


def test_other_tensors_are_named(loopback_server):
    loopback_server.shapes["embeddings"] = ("FP32", [-1, -1, 512])
    with pytest.raises(ContractError, match=r"recognize_image.*embeddings FP32 \[-1, -1, 512\].*\[-1, -1, 2048\]"):
        quick_client(loopback_server)


def test_a_server_without_the_models_is_named(loopback_server):
    del loopback_server.num_requests["recognize_frame"]
    with pytest.raises(ContractError, match="does not serve recognize_frame"):
        quick_client(loopback_server)


@pytest.fixture
def second_server(drawing):
    server = drawing.LoopbackServer()
    yield server
    server.stop()


def ask_in_parallel(client, picture, num_requests):
    with ThreadPoolExecutor(4) as threads:
        return [len(found) for found in threads.map(client.recognize_image, [picture] * num_requests)]


def test_several_servers_share_the_work(loopback_server, second_server, picture):
    servers = (loopback_server, second_server)
    for server in servers:
        server.delay_s = 0.05
    with Client([server.url for server in servers]) as client:
        assert ask_in_parallel(client, picture, 20) == [1] * 20
    counts = [server.num_requests["recognize_image"] for server in servers]
    assert sum(counts) == 20
    assert min(counts) >= 7


def test_a_server_that_stops_leaves_the_work_to_the_other(loopback_server, second_server, picture):
    with Client([loopback_server.url, second_server.url], first_pause_s=30) as client:
        second_server.stop()
        start_s = time.monotonic()
        assert ask_in_parallel(client, picture, 20) == [1] * 20
        assert time.monotonic() - start_s < 30  # without a pause


def test_each_server_is_tried_as_often_as_one_alone(loopback_server, second_server, picture):
    servers = (loopback_server, second_server)
    with Client([server.url for server in servers], first_pause_s=0.01, max_tries=3) as client:
        for server in servers:
            server.faults = [UNAVAILABLE] * 9
        with pytest.raises(UnavailableError, match="in 3 tries: a fault"):
            client.recognize_image(picture)
    assert [len(server.faults) for server in servers] == [6, 6]


def test_servers_with_different_models_are_refused(loopback_server, second_server):
    second_server.identity = "loopback-2"
    with pytest.raises(ContractError, match=rf"loopback-1 at {loopback_server.url}, loopback-2 at {second_server.url}"):
        Client([loopback_server.url, second_server.url])


def test_no_address_is_refused():
    with pytest.raises(InputError, match="no server address"):
        Client([])


@pytest.mark.parametrize("address", ["localhost", "http://localhost:8001", "localhost:", "localhost:grpc", ":8001", ""])
def test_an_address_of_another_form_is_refused_at_once(address):
    with pytest.raises(InputError, match=rf"HOST:PORT, got '{address}'"):
        Client(address, first_pause_s=30)


@pytest.mark.parametrize("address", ["localhost:0", "localhost:65536", "[::1]:99999"])
def test_a_port_that_none_can_have_is_refused_at_once(address):
    with pytest.raises(InputError, match=rf"from 1 to 65535, got '{re.escape(address)}'"):
        Client(address, first_pause_s=30)


def test_certificates_that_are_not_there_are_refused(loopback_server):
    with pytest.raises(InputError, match=r"nowhere\.pem is not a file"):
        Client(loopback_server.url, tls=Tls(root_certificates=Path("nowhere.pem")))


def test_shared_memory_and_the_connection_when_none_is_left(loopback_server, picture, monkeypatch):
    with quick_client(loopback_server, shared_memory=True) as client:
        assert client.recognize_image(picture).boxes.tolist() == [[10, 5, 30, 40]]
        assert len(loopback_server.regions) == 1
        monkeypatch.setattr("os.posix_fallocate", no_space)
        large = np.pad(picture, ((0, 600), (0, 600), (0, 0)), constant_values=255)  # for which another region is needed
        assert client.recognize_image(large).boxes.tolist() == [[10, 5, 30, 40]]
        assert loopback_server.regions == {}
        with pytest.raises(ContractError, match=r"cannot use shared memory of this machine: .*No space left"):
            quick_client(loopback_server, shared_memory=True)


def test_regions_that_a_restart_ended_cost_one_try_together(loopback_server, picture):
    loopback_server.delay_s = 0.1
    with quick_client(loopback_server, shared_memory=True, max_tries=2) as client:
        ask_in_parallel(client, picture, 8)
        assert len(loopback_server.regions) == 4
        loopback_server.regions.clear()
        assert len(client.recognize_image(picture)) == 1
        assert len(loopback_server.regions) == 1


def test_regions_of_requests_that_took_too_long_are_freed_later(loopback_server, picture):
    def ask_for_too_long():
        loopback_server.delay_s = 1.0
        with pytest.raises(UnavailableError, match="in 1 tries"):
            client.recognize_image(picture)
        loopback_server.delay_s = 0.0
        (kept,) = loopback_server.regions
        while loopback_server.regions_in_use:
            time.sleep(0.01)
        return kept

    with quick_client(loopback_server, shared_memory=True, timeout_s=0.3, max_tries=1) as client:
        kept = ask_for_too_long()
        assert len(client.recognize_image(picture)) == 1
        assert len(loopback_server.regions.keys() - {kept}) == len(loopback_server.regions) == 1
        ask_for_too_long()
    assert loopback_server.regions == {}


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


KILLED = """
import os, sys
import numpy as np
from livematch import Client
Client(sys.argv[1], shared_memory=True).recognize_image(np.zeros((4, 4, 3), np.uint8))
os.kill(os.getpid(), 9)
"""


def test_regions_of_killed_processes_are_freed(loopback_server):
    killed = subprocess.Popen([sys.executable, "-c", KILLED, loopback_server.url])
    killed.wait()
    (left,) = loopback_server.regions
    alive = left.replace(str(killed.pid), str(os.getpid()), 1)
    others = {alive, f"livematch-{killed.pid}-elsewhere", "other"}
    loopback_server.regions |= dict.fromkeys(others)
    with quick_client(loopback_server, shared_memory=True):
        assert loopback_server.regions.keys() == others
