from itertools import permutations

import numpy as np
import pytest

from livematch.assignment import assign_jointly, assign_nearest


def test_the_nearer_item_keeps_the_clip_and_ties_go_to_the_first():
    edges = {(0, 0): 0.3, (0, 1): 0.3, (1, 0): 0.2, (2, 1): 0.5, (3, 1): 0.5}
    assert sorted(assign_nearest(edges)) == [(1, 0), (2, 1)]


def test_a_chain_is_turned_over():
    # Items 0 and 1 sit on clips 0 and 1; item 2 fits clip 0 only, so both move on by one.
    edges = {(0, 0): 0.1, (0, 1): 0.2, (1, 1): 0.1, (1, 2): 0.2, (2, 0): 0.1}
    assert sorted(assign_jointly(edges, 1.0)) == [(0, 1), (1, 2), (2, 0)]


def test_pairs_at_the_limit_are_not_taken():
    assert assign_jointly({(0, 0): 1.0, (1, 1): 0.9}, 1.0) == [(1, 1)]


@pytest.mark.parametrize("seed", range(60))
def test_against_all_assignments(seed):
    rng = np.random.default_rng(seed)
    num_items, num_clips, limit = 4, 3, 1.0
    distances = rng.random((num_items, num_clips)).round(1 + seed % 3) * 1.3
    is_edge = rng.random((num_items, num_clips)) < 0.6
    edges = {(int(i), int(c)): float(distances[i, c]) for i, c in np.argwhere(is_edge)}
    # Each item gets one of the clips or nothing; pairs that are none, or too far, gain nothing.
    gains = np.where(is_edge, np.maximum(limit - distances, 0), 0)
    gains = np.hstack([gains, np.zeros((num_items, num_items))])
    best = max(sum(gains[range(num_items), clips]) for clips in permutations(range(num_clips + num_items), num_items))
    found = assign_jointly(edges, limit)
    assert len({i for i, _ in found}) == len({c for _, c in found}) == len(found)
    assert sum(limit - edges[pair] for pair in found) == pytest.approx(best)
