import pytest

from benchmarks.harness.figures import alternate, each, median, rounded


def test_the_order_alternates_but_not_that_of_the_results() -> None:
    calls: list[str] = []
    rounds = [alternate(turn, a=lambda: calls.append("a"), b=lambda: calls.append("b")) for turn in range(3)]
    assert "".join(calls) == "ab" + "ba" + "ab"
    assert [list(turn) for turn in rounds] == [["a", "b"]] * 3


def test_medians_follow_a_path_of_keys() -> None:
    rounds = [{"decoding": {"speedup": speedup}} for speedup in (4.0, 1.23456, 0.5)]
    assert each(rounds, "decoding", "speedup") == [4.0, 1.23456, 0.5]
    assert median(rounds, "decoding", "speedup") == pytest.approx(1.235)


def test_four_digits_are_kept() -> None:
    assert [rounded(value) for value in (123456.0, 0.00123456)] == [123500.0, 0.001235]
    assert rounded(1234.0, 3) == 1230.0
