import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from livematch import Client, ContractError, UnavailableError


def quick_client(server, **options) -> Client:
    return Client(server.url, shared_memory=True, **({"first_pause_s": 0.01, "max_tries": 3} | options))


@pytest.fixture
def image(drawing):
    return drawing.draw((64, 48), (10, 5, 30, 40), (200, 30, 30))


def test_shared_memory_and_the_connection_when_none_is_left(loopback_server, image, monkeypatch):
    with quick_client(loopback_server) as client:
        assert client.recognize_image(image).boxes.tolist() == [[10, 5, 30, 40]]
        assert len(loopback_server.regions) == 1
        monkeypatch.setattr("os.posix_fallocate", no_space)
        large = np.pad(image, ((0, 600), (0, 600), (0, 0)), constant_values=255)  # for which another region is needed
        assert client.recognize_image(large).boxes.tolist() == [[10, 5, 30, 40]]
        assert loopback_server.regions == {}
        with pytest.raises(ContractError, match=r"cannot use shared memory of this machine: .*No space left"):
            quick_client(loopback_server)


def test_regions_that_a_restart_ended_cost_one_try_together(loopback_server, image):
    loopback_server.delay_s = 0.1
    with quick_client(loopback_server, max_tries=2) as client:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(client.recognize_image, [image] * 8))
        assert len(loopback_server.regions) == 4
        loopback_server.regions.clear()
        assert len(client.recognize_image(image)) == 1
        assert len(loopback_server.regions) == 1


def test_regions_of_requests_that_took_too_long_are_freed_later(loopback_server, image):
    def ask_for_too_long():
        loopback_server.delay_s = 1.0
        with pytest.raises(UnavailableError, match="in 1 tries"):
            client.recognize_image(image)
        loopback_server.delay_s = 0.0
        (kept,) = loopback_server.regions
        while loopback_server.regions_in_use:
            time.sleep(0.01)
        return kept

    with quick_client(loopback_server, timeout_s=0.3, max_tries=1) as client:
        kept = ask_for_too_long()
        assert len(client.recognize_image(image)) == 1
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
    with quick_client(loopback_server):
        assert loopback_server.regions.keys() == others


@pytest.mark.parametrize("delays", [{"delay_s": 0.1}, {"region_delay_s": 0.1}], ids=lambda delays: next(iter(delays)))
def test_images_that_are_not_waited_for_leave_no_region(loopback_server, image, delays):
    with quick_client(loopback_server) as client:
        vars(loopback_server).update(delays)
        for _ in range(3):
            recognitions = client.recognize_images([image] * 40)
            next(recognitions)
            recognitions.close()
        vars(loopback_server).update(delay_s=0.0, region_delay_s=0.0)
        time.sleep(0.3)  # for the server to finish what nobody waits for
        assert len(client.recognize_image(image)) == 1
        assert len(loopback_server.regions) == 1
    assert loopback_server.regions == {}
