import time
from collections import Counter

import numpy as np
import pytest

from benchmarks.harness.load import Sample, Send, Window, closed_loop, describe_latency, is_stable, open_loop
from livematch.errors import RequestError


def answered(latency_s: float) -> Sample:
    return Sample(0, 0.0, latency_s, 1)


def window(num_answers: int, latency_s: float) -> Window[None]:
    return Window(1.0, [answered(latency_s)] * num_answers, None, None)


def refusing(duration_s: float) -> Send:
    """Return a `send` that takes `duration_s` for every image and refuses the second."""

    def send(image: int) -> int:
        time.sleep(duration_s)
        if image == 1:
            raise RequestError("refused")
        return 2

    return send


def test_three_windows_within_a_tenth_are_stable() -> None:
    assert is_stable([window(10, 0.1), window(11, 0.1), window(10, 0.105)])
    assert not is_stable([window(10, 0.1), window(11, 0.1)])
    assert not is_stable([window(10, 0.1), window(10, 0.1), window(13, 0.1)])
    assert not is_stable([window(10, 0.1), window(10, 0.1), window(10, 0.15)])
    assert not is_stable([window(10, 0.1), window(10, 0.1), window(0, 0.1)])
    refused = Window(1.0, [answered(0.1)] * 10 + [Sample(0, 0.0, 0.1, 0, "RequestError: no")], None, None)
    assert not is_stable([window(10, 0.1), window(10, 0.1), refused])


def test_percentiles_are_samples_that_occurred() -> None:
    samples = [answered(ms / 1e3) for ms in range(1, 101)] + [Sample(0, 0.0, 9.0, 0, "RequestError: no")]
    figures = describe_latency(samples)
    assert (figures["num_answered"], figures["num_failures"], figures["errors"]) == (100, 1, ["RequestError: no"])
    assert [figures[f"p{percent}_ms"] for percent in (50, 90, 95, 99)] == pytest.approx([50, 90, 95, 99])
    assert figures["mean_ms"] == pytest.approx(50.5)
    assert figures["max_ms"] == pytest.approx(100)


def test_a_closed_loop_keeps_its_number_in_flight_and_reads_counters_at_both_edges() -> None:
    """10 ms per request and 4 in flight make 400 per second, less the time it takes threads to wake up."""
    edges = iter(range(100))
    found, _ = closed_loop(
        lambda image: time.sleep(0.01) or image,
        np.array([5, 6]),
        concurrency=4,
        window_s=0.2,
        max_windows=4,
        read_counters=lambda: next(edges),
    )
    assert 50 < found.rate < 450
    assert {sample.num_boxes for sample in found.answered} == {5, 6}
    assert found.after - found.before == 3
    assert found.duration_s >= 0.6


def test_every_window_has_every_image_equally_often() -> None:
    """The last of three takes 50 times as long: most windows of fixed time would not contain it."""
    found, _ = closed_loop(
        lambda image: time.sleep(0.1 if image == 2 else 0.002) or image,
        np.arange(3),
        concurrency=1,
        window_s=0.01,
        max_windows=3,
        read_counters=lambda: None,
    )
    assert Counter(sample.image for sample in found.answered) == {0: 3, 1: 3, 2: 3}


def test_an_open_loop_counts_from_the_moment_a_request_was_due() -> None:
    """One thread, 20 ms per request and 200 requests per second: the last ones wait for all the others."""

    samples, is_stable = open_loop(
        refusing(0.02), np.array([0, 1]), rate=200.0, duration_s=0.3, num_threads=1, rng=np.random.default_rng(0)
    )
    assert len(samples) == 60
    assert sum(bool(sample.error) for sample in samples) == 30
    assert samples[-1].latency_ms > 60 * 20 - samples[-1].due_s * 1e3 - 1
    assert samples[-1].latency_ms > 10 * samples[0].latency_ms
    assert not is_stable


def test_an_open_loop_with_a_failed_request_is_not_stable() -> None:
    rng = np.random.default_rng(0)
    samples, is_stable = open_loop(
        refusing(0.005), np.array([0, 1]), rate=100.0, duration_s=0.2, num_threads=4, rng=rng
    )
    assert any(sample.error for sample in samples)
    assert not is_stable


def test_arrivals_have_the_exact_rate_and_exponential_gaps() -> None:
    samples, _ = open_loop(
        lambda image: 0, np.array([0]), rate=2000.0, duration_s=0.5, num_threads=2, rng=np.random.default_rng(1)
    )
    gaps_s = np.diff([sample.due_s for sample in samples])
    assert len(samples) == 1000
    assert samples[0].due_s >= 0 and samples[-1].due_s <= 0.5
    assert gaps_s.mean() == pytest.approx(1 / 2000, rel=0.02)
    assert gaps_s.std() == pytest.approx(
        gaps_s.mean(), rel=0.15
    )  # the standard deviation of an exponential distribution is its mean


def broken(image: int) -> int:
    raise MemoryError(f"image {image}")


@pytest.mark.timeout(90)
def test_an_unexpected_error_ends_a_closed_loop() -> None:
    with pytest.raises(MemoryError, match="image 5"):
        closed_loop(broken, np.array([5]), concurrency=2, window_s=0.01, max_windows=3, read_counters=lambda: None)


@pytest.mark.timeout(90)
def test_an_unexpected_error_ends_an_open_loop_early() -> None:
    """Six arrivals, the first after a second, the last after 55."""
    start_s = time.perf_counter()
    rng = np.random.default_rng(0)
    with pytest.raises(MemoryError, match="image 5"):
        open_loop(broken, np.array([5]), rate=0.1, duration_s=60.0, num_threads=8, rng=rng)
    assert time.perf_counter() - start_s < 30
