"""Which item goes to which clip, of all that come into question: each to its nearest, or the best for all at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from heapq import heappop, heappush

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

    Of equal sums, an item stays without a clip rather than displace one that came before it.

    Returns:
        Pairs of item and clip; pairs at `limit` or more are never taken.
    """
    limit = min(limit, 4.0 * len(edges) + 1)  # from here on the most pairs possible have the largest sum
    gains: dict[int, dict[int, int]] = defaultdict(dict)
    for (item, clip), distance in edges.items():
        gain = round(limit / _UNIT) - round(distance / _UNIT)
        if gain > 0:
            gains[item][clip] = gain
    pairs = _JointPairs(gains)
    for item in gains:
        pairs.enter(item)
    return list(pairs.clip_of.items())


class _JointPairs:
    """The best pairs of the items that have entered so far, by successive shortest paths.

    Prices prove that they are the best (duality of linear programs): none is negative, a possible pair gains no more
    than its item's and its clip's price together, a taken one just as much, and what is in no pair has the price 0.
    Gains are whole numbers of _UNIT, because rounding would break that.
    """

    def __init__(self, gains: Mapping[int, Mapping[int, int]]) -> None:
        self.clip_of: dict[int, int] = {}
        self._item_of: dict[int, int] = {}
        self._gains = gains
        self._item_price: dict[int, int] = {}
        self._clip_price: dict[int, int] = defaultdict(int)

    def enter(self, new_item: int) -> None:
        """Turn over the alternating path that loses least of the new item's price, by Dijkstra's algorithm.

        It ends at a free clip, or at an item that is left without one: another, or the new one itself.
        """
        price = max(0, *(gain - self._clip_price[clip] for clip, gain in self._gains[new_item].items()))
        self._item_price[new_item] = price
        least_loss, end = price, None
        loss_at: dict[int, int] = {}
        loss_with: dict[int, int] = {}
        reached_from: dict[int, int] = {}  # clip: the item it was reached from
        heap: list[tuple[int, int, int]] = []
        item, loss = new_item, 0
        while True:
            loss_at[item] = loss
            loss_without = loss + self._item_price[item]
            if loss_without < least_loss:
                least_loss, end = loss_without, self.clip_of[item]
            for clip, gain in self._gains[item].items():
                next_loss = loss_without + self._clip_price[clip] - gain
                if clip not in reached_from and next_loss < price:
                    heappush(heap, (next_loss, clip, item))
            while heap and heap[0][1] in reached_from:
                heappop(heap)
            if not heap or heap[0][0] > least_loss:
                break
            loss, clip, item = heappop(heap)
            loss_with[clip], reached_from[clip] = loss, item
            if clip not in self._item_of:
                least_loss, end = loss, clip
                break
            item = self._item_of[clip]
        for item, loss in loss_at.items():
            self._item_price[item] -= least_loss - loss
        for clip, loss in loss_with.items():
            self._clip_price[clip] += least_loss - loss
        if end is not None:
            self._turn_over(end, reached_from)

    def _turn_over(self, clip: int, reached_from: Mapping[int, int]) -> None:
        """Pair the clip at the end of a path with the item before it, and so on to the new item."""
        if clip in self._item_of:
            del self.clip_of[self._item_of[clip]]
        left: int | None = clip
        while left is not None:
            clip, item = left, reached_from[left]
            left = self.clip_of.get(item)
            self.clip_of[item], self._item_of[clip] = clip, item


def _first_nearest(choices: Iterable[tuple[int, int, float]]) -> dict[int, int]:
    """The nearest partner of each chooser, the first of equals; choices are (chooser, partner, distance)."""
    best: dict[int, tuple[int, float]] = {}
    for chooser, partner, distance in choices:
        if chooser not in best or distance < best[chooser][1]:
            best[chooser] = partner, distance
    return {chooser: partner for chooser, (partner, _) in best.items()}
