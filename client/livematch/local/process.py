"""Run a server process that ends with the calling process, and watch its children."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import psutil

from livematch.errors import LocalServerError

# Asks the kernel to send SIGTERM when the parent dies, then becomes the server. The parent may have died before that
# request, so the launcher checks afterwards whether it still has its parent.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
_CHECK_INTERVAL_S = 1.0


class Process:
    """Runs `command` in its own process group.

    After `watch_children()`, the process is killed as soon as one of its children ends: tritonserver itself would keep
    running, and reject every request that needs this child.

    Its stdout and stderr are appended to `log_path`. `on_exit` is called in another thread when it ends without
    `stop()`. LocalServerError is raised if it cannot be run.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], log_path: Path, on_exit: Callable[[], None]
    ) -> None:
        self._on_exit = on_exit
        self._children: list[psutil.Process] = []
        self._has_lost_child = False
        self._is_stopping = False
        started: Future[None] = Future()
        # The kernel sends the parent-death signal when the *thread* that forked ends, so the caller's must not fork.
        arguments = (command, environment, log_path, started)
        threading.Thread(target=self._run, args=arguments, name="tritonserver", daemon=True).start()
        try:
            started.result()
        except Exception as error:
            raise LocalServerError(f"cannot run {command[0]}: {error}") from error
        self.pid: int = self._popen.pid

    @property
    def exit_reason(self) -> str | None:
        """How the process ended, such as "was killed by signal 9"; None while it runs."""
        return_code = self._popen.poll()
        if return_code is None:
            return None
        if self._has_lost_child:
            return "was killed because the process of one of its models had ended"
        return f"was killed by signal {-return_code}" if return_code < 0 else f"ended with exit code {return_code}"

    def watch_children(self) -> None:
        """From now on, kill the process when one of its current children ends."""
        with contextlib.suppress(psutil.NoSuchProcess):  # the process itself has ended; `exit_reason` says so
            self._children = psutil.Process(self.pid).children()

    def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, then SIGKILL after `timeout_s`; kill whatever is left of the process group."""
        self._is_stopping = True
        self._popen.terminate()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        with contextlib.suppress(ProcessLookupError):  # nothing is left after a clean stop
            os.killpg(self.pid, signal.SIGKILL)

    def _run(self, command: list[str], environment: dict[str, str], log_path: Path, started: Future[None]) -> None:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        try:
            with log_path.open("ab") as log:
                self._popen = popen = subprocess.Popen(
                    launcher,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except Exception as error:
            started.set_exception(error)
            return
        started.set_result(None)
        while True:
            try:
                popen.wait(_CHECK_INTERVAL_S)
                break
            except subprocess.TimeoutExpired:
                if not (self._is_stopping or self._has_lost_child) and any(map(has_ended, self._children)):
                    self._has_lost_child = True
                    popen.kill()  # after SIGTERM it would wait for the requests that the lost child holds
        if not self._is_stopping:
            self._on_exit()


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended, even if its parent has not collected the exit code yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
