"""Pictures handed to a server on the same machine through system shared memory instead of over the connection."""

import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from livematch.local.process import is_running

_FOLDER = Path("/dev/shm")
_PREFIX = "livematch-"
_TIMEOUT_S = 30.0  # for the server to open or forget a region
_IN_USE = "currently in use"
_SIZE_STEP_BYTES = 1 << 20  # sizes are rounded up to it, so that pictures of about one size share regions


@dataclass(eq=False)
class _Region:
    name: str
    memory: mmap.mmap


class SharedMemory:
    """Regions that one server has mapped too, as many as requests were in flight at once.

    A region's file is removed as soon as the server has opened it. What a killed process leaves is its regions in the
    server; the next `check` on its machine ends those. The server keeps a region that it still reads, as for a request
    that took too long; it is asked again later.
    """

    def __init__(self, connection: triton.InferenceServerClient, headers: dict[str, str]) -> None:
        self._connection = connection
        self._headers = headers
        self._machine = _name_machine()
        self._lock = threading.Lock()
        self._free: list[_Region] = []
        self._kept_names: set[str] = set()  # of regions that the server did not let go

    @contextmanager
    def holding(self, array: npt.NDArray[np.uint8], tensor: triton.InferInput) -> Iterator[None]:
        """For as long as this lasts, `array` is in a region, and `tensor` says so; in `tensor` itself if none is left.

        A region is not used again after an error: the server may have been restarted and know it no longer, or may
        still be reading it.

        Raises:
            InferenceServerException: the server cannot open the region; it runs elsewhere, say, or does not allow it.
        """
        try:
            region = self._take(array.nbytes) or self._create(array.nbytes)
        except OSError:  # /dev/shm is full
            tensor.set_data_from_numpy(array)
            yield
            return
        try:
            np.frombuffer(region.memory, np.uint8, array.size)[:] = array.reshape(-1)
            tensor.set_shared_memory(region.name, array.nbytes)
            yield
        except BaseException as error:
            self._unregister(region.name)
            if isinstance(error, InferenceServerException) and self.is_lost(error):
                self.close()  # it knows the others no longer either, and each would cost a try
            raise
        with self._lock:
            self._free.append(region)

    def check(self) -> None:
        """Free what killed processes left in the server.

        Raises:
            InferenceServerException, OSError: there is no use in trying.
        """
        status = self._connection.get_system_shared_memory_status(headers=self._headers, client_timeout=_TIMEOUT_S)
        for name in status.regions:
            match = re.match(rf"{_PREFIX}(\d+)-{self._machine}-", name)
            if match and not is_running(int(match[1])):
                self._unregister(name)
        self._unregister(self._create(1).name)

    def is_lost(self, error: InferenceServerException) -> bool:
        """Whether the server did not know a region, because it was restarted since."""
        return f"shared memory region: '{_PREFIX}" in (error.message() or "")

    def close(self) -> None:
        """Let go of the regions that no request holds."""
        with self._lock:
            free, self._free = self._free, []
        self._unregister(*(region.name for region in free))

    def _take(self, num_bytes: int) -> _Region | None:
        with self._lock:
            for index, region in enumerate(self._free):
                if len(region.memory) >= num_bytes:
                    return self._free.pop(index)
            outgrown = self._free.pop() if self._free else None
        if outgrown is not None:
            self._unregister(outgrown.name)
        return None

    def _create(self, num_bytes: int) -> _Region:
        self._unregister()
        size_bytes = -(-num_bytes // _SIZE_STEP_BYTES) * _SIZE_STEP_BYTES
        name = f"{_PREFIX}{os.getpid()}-{self._machine}-{secrets.token_hex(8)}"
        path = _FOLDER / name
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)  # here an error, when written to a SIGBUS
            self._connection.register_system_shared_memory(
                name, f"/{name}", size_bytes, headers=self._headers, client_timeout=_TIMEOUT_S
            )
            return _Region(name, mmap.mmap(descriptor, size_bytes))
        finally:
            os.close(descriptor)
            path.unlink()

    def _unregister(self, *names: str) -> None:
        """Let the server forget these regions, and those that it kept before."""
        with self._lock:
            names = *names, *self._kept_names
            self._kept_names = set()
        for name in names:
            try:
                self._connection.unregister_system_shared_memory(name, headers=self._headers, client_timeout=_TIMEOUT_S)
            except InferenceServerException as error:
                if _IN_USE in (error.message() or ""):  # otherwise it is gone, and the region with it
                    with self._lock:
                        self._kept_names.add(name)
            except ValueError:  # the connection is closed
                return


def _name_machine() -> str:
    """Of where a process id says which process it is: this boot of this machine, and in a container that one."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{boot[:8]}-{Path('/proc/self/ns/pid').stat().st_ino}"
