import math
import time
from itertools import permutations

import numpy as np
import pytest

from livematch.matching.assignment import assign_jointly, assign_nearest


def test_the_nearer_item_keeps_the_clip_and_ties_go_to_the_first():
    edges = {(0, 0): 0.3, (0, 1): 0.3, (1, 0): 0.2, (2, 1): 0.5, (3, 1): 0.5}
    assert sorted(assign_nearest(edges)) == [(1, 0), (2, 1)]


def test_a_chain_is_turned_over():
    # Items 0 and 1 sit on clips 0 and 1; item 2 fits clip 0 only, so both move on by one.
    edges = {(0, 0): 0.1, (0, 1): 0.2, (1, 1): 0.1, (1, 2): 0.2, (2, 0): 0.1}
    assert sorted(assign_jointly(edges, 1.0)) == [(0, 1), (1, 2), (2, 0)]


def test_pairs_at_the_limit_are_not_taken():
    assert assign_jointly({(0, 0): 1.0, (1, 1): 0.9}, 1.0) == [(1, 1)]


def largest_sum(gains):
    """Of all assignments of items to clips, int [items,clips]; pairs that gain nothing are left out."""
    num_items, num_clips = gains.shape
    gains = np.hstack([np.maximum(gains, 0), np.zeros((num_items, num_items), int)])
    return max(gains[range(num_items), clips].sum() for clips in permutations(range(num_clips + num_items), num_items))


def edges_of(distances, is_edge):
    return {(int(i), int(c)): float(distances[i, c]) for i, c in np.argwhere(is_edge)}


@pytest.mark.parametrize("seed", range(60))
def test_against_all_assignments(seed):
    rng = np.random.default_rng(seed)
    hundredths = rng.integers(0, 130, (4, 3))
    is_edge = rng.random((4, 3)) < 0.6
    found = assign_jointly(edges_of(hundredths / 100, is_edge), 1.0)
    assert len({i for i, _ in found}) == len({c for _, c in found}) == len(found)
    assert sum(100 - hundredths[pair] for pair in found) == largest_sum(np.where(is_edge, 100 - hundredths, 0))


@pytest.mark.timeout(60)
def test_near_ties_against_all_assignments():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        steps = rng.integers(0, 5, (4, 3))
        is_edge = rng.random((4, 3)) < 0.8
        found = assign_jointly(edges_of(np.round(0.5 + 1e-12 * steps, 12), is_edge), 1.12)
        gains = 620_000_000_000 - steps
        assert sum(gains[pair] for pair in found) == largest_sum(np.where(is_edge, gains, 0))


def test_equal_sums_go_to_the_first():
    assert assign_jointly({(0, 1): 0.5, (0, 0): 0.5}, 1.0) == [(0, 0)]
    assert assign_jointly({(0, 0): 0.5, (1, 0): 0.5}, 1.0) == [(0, 0)]
    # Item 1 could have clip 0 as well, but item 0 would be left without one.
    assert sorted(assign_jointly({(0, 0): 0.4, (1, 0): 0.2, (1, 1): 0.2}, 1.0)) == [(0, 0), (1, 1)]


def test_thousands_of_items_that_come_into_question_for_several_clips():
    rng = np.random.default_rng(0)
    clips, distances = rng.integers(0, 2000, (2000, 3)), rng.random((2000, 3))
    edges = {(item, int(clip)): distances[item, k] for (item, k), clip in np.ndenumerate(clips)}
    start_s = time.process_time()
    found = assign_jointly(edges, 1.0)
    assert time.process_time() - start_s < 2  # it takes 0.03 s
    assert sum(1 - edges[pair] for pair in found) > sum(1 - edges[pair] for pair in assign_nearest(edges))


@pytest.mark.parametrize("limit", [1e5, math.inf])
def test_a_limit_that_excludes_nothing_gives_the_most_pairs(limit):
    # Two pairs at a distance of 5.9 together, rather than one at 0.
    assert sorted(assign_jointly({(0, 0): 0.0, (0, 1): 3.9, (1, 0): 2.0}, limit)) == [(0, 1), (1, 0)]
