from collections import Counter

import pytest

from training.demo.plan import plan_world


def test_one_to_one_by_default() -> None:
    plan = plan_world(5, num_items=3, clips_per_item=1, items_per_clip=1, num_distractors=0)
    assert plan.one_to_one
    assert plan.items == (0, 1, 2)
    assert plan.clips == {"000001": (0,), "000002": (1,), "000003": (2,)}


@pytest.mark.parametrize(
    ("num_items", "clips_per_item", "items_per_clip", "sizes"),
    [
        (5, 2, 2, [2, 2, 2, 2, 2]),  # ceil(5 · 2 / 2) = 5 clips
        (5, 3, 4, [4, 4, 4, 3]),  # ceil(15 / 4) = 4
        (4, 3, 4, [4, 4, 4]),
        (3, 1, 2, [2, 1]),
        (2, 3, 1, [1] * 6),
    ],
)
def test_every_item_is_in_as_many_clips_and_never_twice_in_one(
    num_items: int, clips_per_item: int, items_per_clip: int, sizes: list[int]
) -> None:
    for seed in range(50):
        plan = plan_world(
            seed,
            num_items=num_items,
            clips_per_item=clips_per_item,
            items_per_clip=items_per_clip,
            num_distractors=0,
        )
        assert list(plan.clips) == [f"v00000{number + 1}" for number in range(len(sizes))]
        assert [len(items) for items in plan.clips.values()] == sizes
        assert all(len(set(items)) == len(items) for items in plan.clips.values())
        shown = Counter(item for items in plan.clips.values() for item in items)
        assert shown == dict.fromkeys(range(num_items), clips_per_item)


def test_the_seed_alone_decides_which_items_share_a_clip() -> None:
    plans = [plan_world(seed, num_items=8, clips_per_item=2, items_per_clip=2, num_distractors=0) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_distractors_are_further_items_and_the_last_clips() -> None:
    without, plan = (
        plan_world(1, num_items=4, clips_per_item=1, items_per_clip=2, num_distractors=count) for count in (0, 3)
    )
    assert plan.items == (*without.items, 630_000, 630_001, 630_002)
    assert list(plan.clips.items())[:2] == list(without.clips.items())
    assert list(plan.clips) == ["v000001", "v000002", "v000003", "v000004", "v000005"]
    garments = [item for video_id in ("v000003", "v000004", "v000005") for item in plan.clips[video_id]]
    assert len(set(garments)) == 6 and not set(garments) & set(plan.items)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_items": 0}, "num_items is 0"),
        ({"clips_per_item": 0}, "clips_per_item is 0"),
        ({"items_per_clip": 0}, "items_per_clip is 0"),
        ({"items_per_clip": 5}, "items_per_clip is 5, but a clip shows 1 to 4"),
        ({"num_items": 2, "items_per_clip": 3}, "items_per_clip is 3, .* at most num_items, 2"),
        ({"num_distractors": -1}, "num_distractors is -1"),
    ],
)
def test_numbers_out_of_range(changed: dict[str, int], message: str) -> None:
    numbers = {"num_items": 9, "clips_per_item": 1, "items_per_clip": 1, "num_distractors": 0} | changed
    with pytest.raises(ValueError, match=message):
        plan_world(1, **numbers)
