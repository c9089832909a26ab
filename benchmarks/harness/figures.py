"""Interleave measurements that are compared, and round and summarise their figures."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import reduce
from operator import getitem
from typing import Any, TypeVar

T = TypeVar("T")
Figures = dict[str, Any]
"""JSON of what was measured."""


def rounded(value: float, digits: int = 4) -> float:
    """Round to `digits` significant digits; measurements are not more precise than that."""
    return float(f"{value:.{digits}g}")


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes; unlike `timeit`, with the garbage collector, as in use."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def alternate(turn: int, **actions: Callable[[], T]) -> dict[str, T]:
    """Call every action once, in the given order in even rounds and in reverse in odd ones; return results by name."""
    results = {name: actions[name]() for name in (actions if turn % 2 == 0 else reversed(actions))}
    return {name: results[name] for name in actions}


def each(rounds: Iterable[Any], *path: str) -> list[float]:
    """Return one value of each round: the one at this path of keys."""
    return [reduce(getitem, path, turn) for turn in rounds]


def median(rounds: Iterable[Any], *path: str) -> float:
    """Return the median over the rounds of the value at this path of keys."""
    return rounded(statistics.median(each(rounds, *path)))
