"""Pass images to a server on the same machine through shared memory instead of over the connection."""

import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from livematch.types import Pixels

_FOLDER = Path("/dev/shm")
_PREFIX = "livematch-"
_TIMEOUT_S = 30.0  # for the server to open or release a region
_IN_USE = "currently in use"
# After these statuses, nobody knows whether the server did what it was asked for: this side stopped waiting.
_UNANSWERED = ("StatusCode.CANCELLED", "StatusCode.DEADLINE_EXCEEDED")
_SIZE_STEP_BYTES = 1 << 20  # sizes are rounded up to a multiple, so that images of similar size can share a region


class SharedMemory:
    """Manages memory regions that this process and one server have both mapped, one for each request in flight.

    A region's file is removed as soon as the server has opened it, so a killed process leaves only the server's own
    mapping behind; the next `check` on its machine frees that. A server does not release a region that it is still
    reading, for example after a request timed out; it is asked again later.
    """

    def __init__(
        self, connection: triton.InferenceServerClient, headers: dict[str, str], sibling: "SharedMemory | None" = None
    ) -> None:
        """Create the first one of a server, or one for another connection to the server of `sibling`."""
        self._connection = connection
        self._headers = headers
        self._machine = _name_machine()
        self._free: dict[str, mmap.mmap] = {}  # by name
        self._is_closed = False
        self._lock: threading.Lock = sibling._lock if sibling else threading.Lock()
        # Regions that the server may still have because it was reading them or the connection was closed; any sibling
        # can release them.
        self._unreleased_names: set[str] = sibling._unreleased_names if sibling else set()

    @contextmanager
    def filled(self, tensor: triton.InferInput, array: Pixels) -> Iterator[None]:
        """Context manager: copy `array` into a region and let `tensor` refer to it.

        If no shared memory is left, `tensor` itself holds the content. After an error, the region is not used again:
        the server may have been restarted and no longer know it, or may still be reading it.

        Raises:
            InferenceServerException: the server cannot open the region, because it runs on another machine, for
                example, or does not allow shared memory.
        """
        try:
            name, memory = self._take(array.nbytes) or self._create(array.nbytes)
        except OSError:  # /dev/shm is full
            tensor.set_data_from_numpy(array)
            yield
            return
        try:
            np.frombuffer(memory, np.uint8, array.size)[:] = array.reshape(-1)
            tensor.set_shared_memory(name, array.nbytes)
            yield
        except BaseException as error:
            self._unregister(name)
            if isinstance(error, InferenceServerException) and self.is_lost(error):
                self._release_free()  # the server has lost these too, and each would cost a try
            raise
        with self._lock:
            self._free[name] = memory
        if self._is_closed:
            self._release_free()

    def check(self) -> None:
        """Raise InferenceServerException or OSError if no region can be used; free those of killed processes."""
        status = self._connection.get_system_shared_memory_status(headers=self._headers, client_timeout=_TIMEOUT_S)
        for name in status.regions:
            match = re.match(rf"{_PREFIX}(\d+)-{self._machine}-", name)
            if match and not _is_running(int(match[1])):
                self._unregister(name)
        self._unregister(self._create(1)[0])

    def is_lost(self, error: InferenceServerException) -> bool:
        """Tell whether the server did not know a region, because it was restarted."""
        return f"shared memory region: '{_PREFIX}" in (error.message() or "")

    def close(self) -> None:
        """Release the regions that no request is using, and the others as soon as their requests end."""
        with self._lock:
            self._is_closed = True
        self._release_free()

    def _release_free(self) -> None:
        with self._lock:
            free, self._free = self._free, {}
        self._unregister(*free)

    def _take(self, num_bytes: int) -> tuple[str, mmap.mmap] | None:
        with self._lock:
            for name, memory in self._free.items():
                if len(memory) >= num_bytes:
                    del self._free[name]
                    return name, memory
            outgrown = self._free.popitem()[0] if self._free else None
        if outgrown is not None:
            self._unregister(outgrown)
        return None

    def _create(self, num_bytes: int) -> tuple[str, mmap.mmap]:
        self._unregister()
        size_bytes = -(-num_bytes // _SIZE_STEP_BYTES) * _SIZE_STEP_BYTES
        name = f"{_PREFIX}{os.getpid()}-{self._machine}-{secrets.token_hex(8)}"
        path = _FOLDER / name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)  # raises if memory is full; writing would end in SIGBUS
            self._connection.register_system_shared_memory(
                name, f"/{name}", size_bytes, headers=self._headers, client_timeout=_TIMEOUT_S
            )
            return name, mmap.mmap(descriptor, size_bytes)
        except InferenceServerException as error:
            self._keep_unless_gone(name, error)
            raise
        finally:
            os.close(descriptor)
            path.unlink()

    def _unregister(self, *names: str) -> None:
        """Ask the server to release these regions, and those that it could not release before."""
        with self._lock:
            names = *names, *self._unreleased_names
            self._unreleased_names.clear()
        for index, name in enumerate(names):
            try:
                self._connection.unregister_system_shared_memory(name, headers=self._headers, client_timeout=_TIMEOUT_S)
            except InferenceServerException as error:
                self._keep_unless_gone(name, error)
            except ValueError:  # the connection is closed
                with self._lock:
                    self._unreleased_names.update(names[index:])
                return

    def _keep_unless_gone(self, name: str, error: InferenceServerException) -> None:
        """Remember a region that the server may still have after this error, to ask for its release again later."""
        if _IN_USE in (error.message() or "") or error.status() in _UNANSWERED:
            with self._lock:
                self._unreleased_names.add(name)


def _is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and whose parent has not collected its exit code does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _name_machine() -> str:
    """Return a name for the scope in which a process id is unique: this boot of this machine and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{boot[:8]}-{Path('/proc/self/ns/pid').stat().st_ino}"
