"""Decide which items a world has and which of them each clip shows, before anything is drawn."""

from dataclasses import dataclass

import numpy as np

MAX_ITEMS_PER_CLIP = 4
"""With more, the first item would be over before frame 80, the first that livematch embeds by default."""

FIRST_UNSHOWN, FIRST_FOREIGN = 630_000, 810_000
"""Numbers of the first item that no clip shows, and of the first garments that belong to no item.

`item_designs` draws them like the items, which are counted from 0. Multiples of 9, so that no family is split.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Holds what a world consists of.

    items: the items' numbers.
    clips: by video id, the numbers of the items that the clip shows, in this order.
    one_to_one: whether each item has one clip, which shows nothing else and has the item's id.
    """

    items: tuple[int, ...]
    clips: dict[str, tuple[int, ...]]
    one_to_one: bool


def plan_world(seed: int, *, num_items: int, clips_per_item: int, items_per_clip: int, num_distractors: int) -> Plan:
    """Return the plan of a world; see `training.demo.world.render_world` for arguments and errors."""
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}, but a world needs at least one item")
    if clips_per_item < 1:
        raise ValueError(f"clips_per_item is {clips_per_item}, but every item is shown at least once")
    if not 1 <= items_per_clip <= min(MAX_ITEMS_PER_CLIP, num_items):
        limits = f"1 to {MAX_ITEMS_PER_CLIP}, and at most num_items, {num_items}"
        raise ValueError(f"items_per_clip is {items_per_clip}, but a clip shows {limits}")
    if num_distractors < 0:
        raise ValueError(f"num_distractors is {num_distractors}, which is negative")
    if clips_per_item == items_per_clip == 1 and not num_distractors:
        own_clips: dict[str, tuple[int, ...]] = {item_id(item): (item,) for item in range(num_items)}
        return Plan(items=tuple(range(num_items)), clips=own_clips, one_to_one=True)
    shown = _shown(np.random.default_rng([seed, 0, 6]), num_items, clips_per_item, items_per_clip)
    clips = [tuple(shown[start : start + items_per_clip]) for start in range(0, len(shown), items_per_clip)]
    for start in range(FIRST_FOREIGN, FIRST_FOREIGN + num_distractors * items_per_clip, items_per_clip):
        clips.append(tuple(range(start, start + items_per_clip)))
    return Plan(
        items=(*range(num_items), *range(FIRST_UNSHOWN, FIRST_UNSHOWN + num_distractors)),
        clips={f"v{number + 1:06d}": items for number, items in enumerate(clips)},
        one_to_one=False,
    )


def item_id(item: int) -> str:
    return f"{item + 1:06d}"


def _shown(rng: np.random.Generator, num_items: int, clips_per_item: int, items_per_clip: int) -> list[int]:
    """Return every item `clips_per_item` times; to be cut into clips, in none of which an item occurs twice.

    All items are shown once in random order, then all once more, and so on. An order that would repeat an item in the
    clip that the previous one left incomplete is drawn again.
    """
    shown: list[int] = []
    while len(shown) < num_items * clips_per_item:
        order = rng.permutation(num_items).tolist()
        incomplete = shown[len(shown) - len(shown) % items_per_clip :]
        if not set(incomplete) & set(order[: items_per_clip - len(incomplete)]):
            shown += order
    return shown
