"""Put load on a server: a fixed number of requests in flight (closed loop), or arrivals at random times (open loop).

A closed loop measures throughput: a new request starts when one ends, so a slow server gets fewer requests. An open
loop measures latency as users experience it: requests arrive at Poisson times however slow the server is, and latency
counts from the moment a request was due, even if no thread was free to send it then.
"""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.harness.figures import Figures, rounded
from livematch.errors import LivematchError

NUM_STABLE_WINDOWS = 3
STABLE_WITHIN = 0.1
"""perf_analyzer's rule: in three windows in a row, throughput and mean latency differ by at most 10 % from the mean of
the three. Windows with a failed request are never stable."""

PERCENTILES = (50, 90, 95, 99)

T = TypeVar("T")
Indices = npt.NDArray[np.integer[Any]]
Send = Callable[[int], int]
"""Send the image with that index and return its number of boxes; raises LivematchError."""


@dataclass(frozen=True)
class Sample:
    """One request. Times are in seconds since the load began."""

    image: int  # its index
    due_s: float  # when the request should have been sent
    end_s: float  # when it was answered or failed
    num_boxes: int  # in the answer
    error: str = ""  # why it failed; empty if it was answered

    @property
    def latency_ms(self) -> float:
        return (self.end_s - self.due_s) * 1e3


@dataclass(frozen=True)
class Window(Generic[T]):
    """The samples that ended within a period of time, and the server's counters at its start and end."""

    duration_s: float
    samples: list[Sample]
    before: T
    after: T

    @property
    def answered(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.error]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answered) / self.duration_s


def closed_loop(
    send: Send, order: Indices, *, concurrency: int, window_s: float, max_windows: int, read_counters: Callable[[], T]
) -> tuple[Window[T], bool]:
    """Keep `concurrency` requests in flight, sending the images in the given order again and again.

    A window lasts at least `window_s`, and until its answers make whole passes over the images. So windows differ by
    what the server does, not by which images fell into them (apart from requests in flight at the edges). After a
    warm-up of `window_s`, windows follow until three in a row are stable or `max_windows` are done.

    Returns the last three windows as one (all of them if there are fewer), and whether they are stable.
    """
    windows: list[Window[T]] = []
    with _Loop(send, order, concurrency) as loop:
        edge_s, _ = loop.end_window(window_s)
        before = read_counters()
        while len(windows) < max_windows and not is_stable(windows[-NUM_STABLE_WINDOWS:]):
            next_edge_s, samples = loop.end_window(window_s, num_images=len(order))
            after = read_counters()
            windows.append(Window(next_edge_s - edge_s, samples, before, after))
            edge_s, before = next_edge_s, after
    counted = windows[-NUM_STABLE_WINDOWS:]
    samples = [sample for window in counted for sample in window.samples]
    duration_s = sum(window.duration_s for window in counted)
    return Window(duration_s, samples, counted[0].before, counted[-1].after), is_stable(counted)


def is_stable(windows: list[Window[T]]) -> bool:
    """Return whether the windows are stable by the rule that STABLE_WITHIN describes."""
    has_failed = any(not window.answered or len(window.answered) < len(window.samples) for window in windows)
    if len(windows) < NUM_STABLE_WINDOWS or has_failed:
        return False
    rates = [window.rate for window in windows]
    latencies = [np.mean([sample.latency_ms for sample in window.answered]) for window in windows]
    return all(abs(value / np.mean(values) - 1) <= STABLE_WITHIN for values in (rates, latencies) for value in values)


def open_loop(
    send: Send, order: Indices, *, rate: float, duration_s: float, num_threads: int, rng: np.random.Generator
) -> tuple[list[Sample], bool]:
    """Send requests at Poisson arrivals of `rate` per second for `duration_s`.

    Exactly rate × duration requests arrive (six at least), at uniformly random times: that is how Poisson arrivals are
    distributed once their number is known.

    Returns all samples in order of arrival, and whether the server kept up: nothing failed, and the median latency of
    the last third of the arrivals is at most twice that of the first third.
    """
    due_s = np.sort(rng.uniform(0, duration_s, size=max(6, round(rate * duration_s))))
    with _Loop(send, order, num_threads, due_s) as loop:
        samples = sorted(loop.finish(), key=lambda sample: sample.due_s)
    third = len(samples) // 3
    first, last = (np.median([sample.latency_ms for sample in part]) for part in (samples[:third], samples[-third:]))
    return samples, bool(last <= 2 * first) and not any(sample.error for sample in samples)


class _Loop:
    """Context manager: threads that send one image after another, started at its beginning and stopped at its end.

    The images are sent again and again in the given order, each when it is due, or without pause if `due_s` is None.
    A LivematchError of `send` becomes a sample with an error. Any other exception stops all threads, and is raised
    again by `end_window` and `finish`.
    """

    def __init__(self, send: Send, order: Indices, num_threads: int, due_s: npt.NDArray[np.float64] | None = None):
        self._send = send
        self._order = order
        self._due_s = due_s
        self._positions = itertools.count()  # its `next` is atomic
        self._ended: SimpleQueue[Sample | Exception] = SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_threads)]

    def __enter__(self) -> Self:
        self._start_s = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.finish()

    def finish(self) -> list[Sample]:
        """Wait until all requests have ended, and return the samples that are in no window."""
        for thread in self._threads:
            thread.join()
        return self._take(self._ended.qsize())

    def end_window(self, duration_s: float, num_images: int = 1) -> tuple[float, list[Sample]]:
        """Wait for `duration_s`, then for a multiple of `num_images` samples; return the time and these samples."""
        time.sleep(duration_s)
        samples = self._take(max(1, -(-self._ended.qsize() // num_images)) * num_images)
        return self._now_s(), samples

    def _take(self, num_samples: int) -> list[Sample]:
        """Wait for this number of samples, and return them in the order in which they ended."""
        samples = []
        for _ in range(num_samples):
            ended = self._ended.get()
            if isinstance(ended, Exception):
                raise ended
            samples.append(ended)
        return samples

    def _now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def _work(self) -> None:
        try:
            for position in self._positions:
                if self._due_s is None:
                    due_s = self._now_s()
                elif position < len(self._due_s):
                    due_s = self._due_s[position]
                else:
                    return
                if self._stopped.wait(max(0.0, due_s - self._now_s())):
                    return
                self._ended.put(self._sample(int(self._order[position % len(self._order)]), due_s))
        except Exception as error:
            self._stopped.set()
            self._ended.put(error)

    def _sample(self, image: int, due_s: float) -> Sample:
        """Send an image, and return the sample of its request."""
        try:
            num_boxes, error = self._send(image), ""
        except LivematchError as refusal:
            num_boxes, error = 0, f"{type(refusal).__name__}: {refusal}"
        return Sample(image, due_s, self._now_s(), num_boxes, error)


def describe_latency(samples: list[Sample]) -> Figures:
    """Return JSON: counts, mean, percentiles (observed values, not interpolated) and maximum, in milliseconds."""
    latencies = np.array([sample.latency_ms for sample in samples if not sample.error])
    errors = sorted({sample.error for sample in samples if sample.error})
    figures: Figures = {"num_answered": len(latencies), "num_failures": len(samples) - len(latencies)}
    if errors:
        figures["errors"] = errors[:3]
    if len(latencies):
        figures["mean_ms"] = rounded(latencies.mean())
        percentiles = np.percentile(latencies, PERCENTILES, method="inverted_cdf")
        figures |= {f"p{rank}_ms": rounded(value) for rank, value in zip(PERCENTILES, percentiles, strict=True)}
        figures["max_ms"] = rounded(latencies.max())
    return figures
