"""A server's process and those it started: begun, watched, ended with their parent."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from livematch.errors import LocalServerError

# Runs between fork and the server: asks the kernel for SIGTERM when the parent dies, then becomes the server.
# The parent may have died before the request was made, hence the second look at it.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
_LOOK_INTERVAL_S = 1.0


class Process:
    """Runs `command` in a process group of its own; stdout and stderr go to `log_path`.

    Once `watch_children()` was called, the process is ended when one of its children ends: tritonserver would stay, and
    refuse whatever needs that child. `on_end` is called in another thread when the process has ended.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], log_path: Path, on_end: Callable[[], None]
    ) -> None:
        self._command = command
        self._environment = environment
        self._log_path = log_path
        self._on_end = on_end
        self._children: set[int] = set()
        self._has_lost_child = False
        self._is_stopping = False
        self._popen: subprocess.Popen[bytes] | None = None
        has_begun = threading.Event()
        # The kernel sends the parent-death signal when the *thread* that forked ends, so not a caller's thread.
        threading.Thread(target=self._run, args=(has_begun,), name="tritonserver", daemon=True).start()
        has_begun.wait()
        if self._popen is None:
            raise LocalServerError(f"cannot run {command[0]}")
        self.pid: int = self._popen.pid

    @property
    def ending(self) -> str | None:
        """How the process has ended, None while it runs."""
        assert self._popen is not None
        return_code = self._popen.poll()
        if return_code is None:
            return None
        if self._has_lost_child:
            return "was killed because the process of one of its models had ended"
        return f"was killed by signal {-return_code}" if return_code < 0 else f"ended with exit code {return_code}"

    def watch_children(self) -> None:
        self._children = _children(self.pid)

    def stop(self, timeout_s: float) -> None:
        """Ends the process, gently for `timeout_s`, and whatever is left of its group."""
        assert self._popen is not None
        self._is_stopping = True
        self._popen.terminate()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        with contextlib.suppress(ProcessLookupError):  # nothing is left after a clean stop
            os.killpg(self.pid, signal.SIGKILL)

    def _run(self, has_begun: threading.Event) -> None:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *self._command]
        try:
            with self._log_path.open("ab") as log:
                popen = subprocess.Popen(
                    launcher,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._popen = popen
        finally:
            has_begun.set()
        while True:
            try:
                popen.wait(_LOOK_INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                if not (self._is_stopping or self._has_lost_child) and not all(map(is_running, self._children)):
                    self._has_lost_child = True
                    popen.kill()  # a gentle end would wait for requests that the lost child holds
        if not self._is_stopping:
            self._on_end()


def is_running(pid: int) -> bool:
    """False also for a process that has ended and that its parent has not asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends while this reads
        return False


def _children(pid: int) -> set[int]:
    children: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            children.update(map(int, task.read_text().split()))
    return children
