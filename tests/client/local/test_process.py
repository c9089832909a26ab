import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from livematch.errors import LocalServerError
from livematch.local.process import Process, has_ended

PARENT = """
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
print("started", flush=True)
time.sleep(60)
"""


def test_a_process_has_ended_before_its_parent_asks():
    process = subprocess.Popen(["sleep", "60"])
    seen = psutil.Process(process.pid)
    assert not has_ended(seen)
    process.kill()
    while seen.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert has_ended(seen)
    process.wait()
    assert has_ended(seen)


def test_a_process_that_ends_while_its_state_is_read(monkeypatch):
    process = subprocess.Popen(["sleep", "60"])
    seen = psutil.Process(process.pid)

    def is_running() -> bool:
        process.kill()
        process.wait()
        return True

    monkeypatch.setattr(seen, "is_running", is_running)
    assert has_ended(seen)


def test_a_process_is_killed_when_one_of_its_children_ends(tmp_path: Path):
    has_exited = threading.Event()
    log = tmp_path / "log"
    process = Process([sys.executable, "-c", PARENT], {}, log, has_exited.set)
    try:
        while "started" not in log.read_text():
            has_exited.wait(0.05)
        process.watch_children()
        (child,) = psutil.Process(process.pid).children()
        assert process.exit_reason is None
        child.kill()
        assert has_exited.wait(10)
        assert process.exit_reason == "was killed because the process of one of its models had ended"
    finally:
        process.stop(1.0)


def test_children_of_a_process_that_has_ended_are_not_watched(tmp_path: Path):
    has_exited = threading.Event()
    process = Process(["/bin/true"], {}, tmp_path / "log", has_exited.set)
    assert has_exited.wait(10)
    process.watch_children()
    assert process.exit_reason == "ended with exit code 0"
    process.stop(1.0)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(LocalServerError, match=r"cannot run /bin/true: .*No such file"):
        Process(["/bin/true"], {}, tmp_path / "missing" / "log", lambda: None)
