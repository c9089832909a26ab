"""Which item goes to which clip, of all that come into question: each to its nearest, or the best for all at once."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

_UNIT = 1e-12  # of distances and gains: they are rounded to as much

Edges = Mapping[tuple[int, int], float]
"""(item, clip) to the distance of the pair, for all pairs that come into question."""


def assign_nearest(edges: Edges) -> list[tuple[int, int]]:
    """Each item takes its nearest clip, and each clip keeps the nearest of the items that took it; ties to the first.

    Returns:
        Pairs of item and clip.
    """
    clip_of = _first_nearest((item, clip, distance) for (item, clip), distance in edges.items())
    item_of = _first_nearest((clip, item, edges[item, clip]) for item, clip in clip_of.items())
    return [(item, clip) for clip, item in item_of.items()]


def assign_jointly(edges: Edges, limit: float) -> list[tuple[int, int]]:
    """The pairs with the largest sum of limit - distance, each item and each clip in one pair at most.

    Items enter one after another. Each time the best alternating path from the new item is turned over: it ends at a
    free clip, or at an item that is left without one. This keeps the pairs optimal for the items so far (Bellman-Ford
    on the residual graph; no positive cycles, because they are optimal, and gains are whole numbers of _UNIT, because
    rounding would make some).

    Returns:
        Pairs of item and clip; pairs at `limit` or more are never taken.
    """
    limit = min(limit, 4.0 * len(edges) + 1)  # from here on the most pairs possible have the largest sum
    gain_of = {edge: round(limit / _UNIT) - round(distance / _UNIT) for edge, distance in edges.items()}
    clips_of: dict[int, list[int]] = defaultdict(list)
    for (item, clip), gain in gain_of.items():
        if gain > 0:
            clips_of[item].append(clip)
    clip_of: dict[int, int] = {}
    item_of: dict[int, int] = {}
    for new_item in clips_of:
        gain_at = {new_item: 0}
        reached_from: dict[int, int] = {}  # clip: the item it was reached from
        gain_with: dict[int, int] = {}
        waiting = deque([new_item])
        while waiting:
            item = waiting.popleft()
            for clip in clips_of[item]:
                gain = gain_at[item] + gain_of[item, clip]
                if clip_of.get(item) == clip or gain <= gain_with.get(clip, -math.inf):
                    continue
                gain_with[clip], reached_from[clip] = gain, item
                if clip in item_of:
                    owner = item_of[clip]
                    gain_at[owner] = gain - gain_of[owner, clip]
                    waiting.append(owner)
        ends = [(gain, clip) for clip, gain in gain_with.items() if clip not in item_of]
        ends += [(gain, clip_of[item]) for item, gain in gain_at.items() if item != new_item]
        best_gain, clip = max(ends, key=lambda end: end[0], default=(0, -1))
        if best_gain <= 0:
            continue
        if clip in item_of:
            del clip_of[item_of[clip]]
        while True:
            item = reached_from[clip]
            left = clip_of.get(item)
            clip_of[item], item_of[clip] = clip, item
            if left is None:
                break
            clip = left
    return list(clip_of.items())


def _first_nearest(choices: Iterable[tuple[int, int, float]]) -> dict[int, int]:
    """The nearest partner of each chooser, the first of equals; choices are (chooser, partner, distance)."""
    best: dict[int, tuple[int, float]] = {}
    for chooser, partner, distance in choices:
        if chooser not in best or distance < best[chooser][1]:
            best[chooser] = partner, distance
    return {chooser: partner for chooser, (partner, _) in best.items()}
