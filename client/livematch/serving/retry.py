"""Choose the server for each try of a request, and decide how often and after which pauses to retry. Does no I/O."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

_LONGEST_PAUSE_S = 8.0
_AVOIDED_S = 2.0  # how long a failed server is avoided while others answer

_lock = threading.Lock()  # guards `num_in_flight` of all servers


@dataclass(eq=False)
class Health:
    """Holds what the client knows about one server; times are on the monotonic clock."""

    num_in_flight: int = 0
    failed_s: float = -math.inf
    identity_checked_s: float = 0.0
    """Start of the last check that found the server's models unchanged."""

    @property
    def may_have_restarted(self) -> bool:
        return self.failed_s >= self.identity_checked_s


S = TypeVar("S", bound=Health)


class Attempts(Generic[S]):
    """Choose the server for each try of one request, and decide when to give up.

    A try goes to the server with the fewest requests in flight among those that have not failed in this round. Once all
    have failed, the next round starts after a pause, which doubles from `first_pause_s` up to 8 s.
    """

    def __init__(self, servers: Sequence[S], *, max_tries: int, first_pause_s: float) -> None:
        self._servers = servers
        self._untried = list(servers)
        self._num_left = max_tries * len(servers)
        self._pause_s = first_pause_s

    @contextmanager
    def next_server(self) -> Iterator[S]:
        """Context manager: yield the server for the next try, counted as busy until the end."""
        avoided_s = time.monotonic() - _AVOIDED_S
        with _lock:
            server = min(self._untried, key=lambda server: (server.failed_s > avoided_s, server.num_in_flight))
            server.num_in_flight += 1
        try:
            yield server
        finally:
            with _lock:
                server.num_in_flight -= 1

    def fail(self, server: S) -> float | None:
        """Record that a try on `server` failed; return the pause in seconds before the next, None to give up."""
        server.failed_s = time.monotonic()
        self._num_left -= 1
        if self._num_left == 0:
            return None
        self._untried.remove(server)
        if self._untried:
            return 0.0
        self._untried = list(self._servers)
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return pause_s
