import doctest
from dataclasses import replace

import numpy as np
import pytest

from livematch import CatalogueOptions, Features, FeaturesError, InputError, Recognition, Segment, find_products, match
from livematch.matching import catalogue
from livematch.pipeline.watch import Watcher
from livematch.types import Pair

SIZE = 6


def unit(axis: int) -> list[float]:
    return [float(i == axis) for i in range(SIZE)]


def at_distance(d: float, axis: int) -> list[float]:
    """Return a unit vector at squared distance d from that of `axis`, in the plane of `axis` and the last axis."""
    cosine = 1 - d / 2
    vector = [0.0] * SIZE
    vector[axis], vector[-1] = cosine, (1 - cosine**2) ** 0.5
    return vector


def products(count: int, **extra) -> Features:
    """Return products "p0", "p1", … with one photo each, on one axis each; its box is (axis, 0, axis + 1, 2)."""
    return Features(
        sources=[f"p{axis}" for axis in range(count)],
        names=[f"front{axis}" for axis in range(count)],
        titles=[f"Product {axis}" for axis in range(count)],
        frame_indices=[-1] * count,
        boxes=np.reshape([(axis, 0, axis + 1, 2) for axis in range(count)], (-1, 4)),
        scores=[0.9] * count,
        embeddings=np.reshape([unit(axis) for axis in range(count)], (-1, SIZE)),
        **({"model_identity": "m", "selection": "images"} | extra),
    )


def clips(rows, **extra) -> Features:
    """Return features of rows (clip, frame, score, embedding); the box of row i is (i, 0, i + 1, 2)."""
    sources, frame_indices, scores, embeddings = zip(*rows, strict=True)
    return Features(
        sources=list(sources),
        names=[""] * len(rows),
        frame_indices=frame_indices,
        boxes=[(i, 0, i + 1, 2) for i in range(len(rows))],
        scores=scores,
        embeddings=embeddings,
        **({"model_identity": "m", "selection": "frames 0:400:20"} | extra),
    )


def test_the_example_in_the_docstring():
    assert doctest.testmod(catalogue) == (0, 3)


def test_hand_calculated_evidence():
    """Weights of p0 with limit 0.5: 0.8·(1 - 0.1/0.5) = 0.64 in frame 20; 0.5 and 0.9·(1 - 0.2/0.5) = 0.54 in 40."""
    rows = [
        ("v", 0, 0.9, at_distance(0.6, 0)),  # over the limit
        ("v", 20, 0.8, at_distance(0.1, 0)),
        ("v", 40, 0.5, unit(0)),
        ("v", 40, 0.9, at_distance(0.2, 0)),  # the same product in the same frame: the larger weight counts
        ("v", 60, 0.9, at_distance(0.9, 1)),
        ("v", 80, 0.9, at_distance(0.9, 1)),
    ]
    options = CatalogueOptions(limit=0.5, window=3, min_evidence=0.3)
    (found,) = find_products(clips(rows), products(2), options)
    assert (found.video_id, found.item_id, found.title) == ("v", "p0", "Product 0")
    assert found.evidence == pytest.approx((0.64 + 0.54) / 3)
    # In the windows of frames 0-40 and 20-60 the evidence is 0.393, in that of 40-80 only 0.18.
    assert [(s.first_frame, s.last_frame) for s in found.segments] == [(20, 40)]
    assert (found.frame_index, found.num_votes, found.distance) == (20, 2, pytest.approx(0.1))
    assert found.pairs == (Pair("front0", (0, 0, 1, 2), (1, 0, 2, 2)),)


def test_a_clip_shows_several_products_one_after_the_other_and_one_again():
    frames = {0: [0, 20, 40, 200, 220, 240], 1: [80, 100, 120, 140, 160]}
    rows = [("v", index, 1.0, unit(axis)) for axis, indices in frames.items() for index in indices]
    first, second = find_products(clips(rows), products(3), CatalogueOptions(window=4, min_evidence=0.5))
    assert (first.item_id, first.evidence) == ("p1", 1.0)
    assert first.segments == (Segment(80, 160, 1.0),)
    assert (second.item_id, second.evidence) == ("p0", 0.75)
    assert second.segments == (Segment(0, 40, 0.75), Segment(200, 240, 0.75))


def test_a_product_in_two_clips_is_found_in_both():
    """The contest's rule gives each item to one clip, so it takes p1, which is at 0.937, for the second clip."""
    rows = [(clip, index, 0.9, at_distance(d, 0)) for clip, d in (("v", 0.1), ("w", 0.2)) for index in (0, 20, 40, 60)]
    gallery = clips([*rows, ("w", 80, 0.9, at_distance(0.937, 1))])
    found = find_products(gallery, products(2))
    assert [(m.video_id, m.item_id) for m in found] == [("v", "p0"), ("w", "p0")]
    queries = Features(
        sources=["p0"] * 2 + ["p1"] * 2,
        names=list("0101"),
        frame_indices=[-1] * 4,
        boxes=[(0, 0, 1, 1)] * 4,
        scores=[0.9] * 4,
        embeddings=[unit(0), unit(2), unit(1), unit(3)],
        model_identity="m",
    )
    assert [(m.video_id, m.item_id) for m in match(queries, gallery)] == [("v", "p0"), ("w", "p1")]


def test_weak_evidence_is_no_answer():
    often = [("v", index, 0.9, at_distance(1.2, 0)) for index in range(0, 400, 20)]
    once = [("w", index, 0.9, unit(5) if index else unit(0)) for index in range(0, 400, 20)]
    assert find_products(clips([*often, *once]), products(2)) == []


def test_in_a_short_clip_the_window_is_the_clip():
    rows = [("v", 0, 0.9, unit(0)), ("w", 0, 0.9, unit(1)), ("w", 20, 0.9, unit(2))]
    found = find_products(clips(rows), products(3))
    assert [(m.video_id, m.item_id, m.evidence) for m in found] == [
        ("v", "p0", pytest.approx(0.9)),
        ("w", "p1", pytest.approx(0.45)),
        ("w", "p2", pytest.approx(0.45)),
    ]


def test_rows_may_be_in_any_order_and_frames_at_any_distance():
    rows = [("v", index, 0.9, unit(axis)) for index, axis in ((0, 0), (20, 0), (50, 1), (70, 1), (90, 1))]
    shuffled = [rows[k] for k in (3, 0, 4, 2, 1)]
    first, second = find_products(clips(shuffled), products(2), CatalogueOptions(window=3, min_evidence=0.5))
    assert (first.item_id, first.evidence) == ("p0", pytest.approx((0.9 + 0.9) / 3))  # frames 0, 20 and 40
    assert [(s.first_frame, s.last_frame) for s in first.segments] == [(0, 20)]
    assert (second.item_id, second.evidence) == ("p1", pytest.approx((0.9 + 0.9) / 3))  # 50, 60, 70 and 70, 80, 90
    assert [(s.first_frame, s.last_frame) for s in second.segments] == [(50, 90)]


def test_only_boxes_of_the_same_label_are_compared():
    rows = [("v", 0, 0.9, unit(0))]
    found = find_products(
        clips(rows, labels=["shirt"]),
        products(2, labels=["hat", "shirt"]),
        CatalogueOptions(same_label=True, limit=4),
    )
    assert [m.item_id for m in found] == ["p1"]
    with pytest.raises(FeaturesError, match="a box of v has no label"):
        find_products(clips(rows), products(2, labels=["hat", "shirt"]), CatalogueOptions(same_label=True))


def test_exchanged_or_foreign_features_are_refused():
    some = clips([("v", 0, 0.9, unit(0))])
    with pytest.raises(FeaturesError, match=r"holds images, but a gallery \(clips\) must hold frames"):
        find_products(products(2), products(2))
    with pytest.raises(FeaturesError, match=r"by n .*by m"):
        find_products(some, products(2, model_identity="n"))
    assert find_products(some, products(0)) == []


@pytest.mark.parametrize(
    "option", [{"limit": 0}, {"limit": float("nan")}, {"window": 0}, {"min_evidence": 0}, {"min_evidence": 1.1}]
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        CatalogueOptions(**option)


def random_case(seed: int) -> tuple[Features, Features, CatalogueOptions]:
    rng = np.random.default_rng(seed)
    few = rng.integers(-1, 2, size=(9, SIZE)).astype(np.float32)
    few[~few.any(axis=1)] = 1
    number = int(rng.integers(1, 12))
    items = Features(
        sources=[f"p{k}" for k in rng.integers(0, 5, number)],
        names=[str(k) for k in range(number)],
        frame_indices=[-1] * number,
        boxes=rng.random((number, 4)),
        scores=rng.random(number),
        embeddings=few[rng.integers(0, 9, number)],
        model_identity="m",
    )
    rows = [
        (clip, 20 * index, float(rng.choice([0.5, 0.75, 1.0])), few[rng.integers(0, 9)])
        for clip in ("v", "w")
        for index in range(int(rng.integers(1, 25)))
        for _ in range(int(rng.integers(index == 0, 4)))
    ]
    options = {"limit": 1.5, "window": int(rng.integers(1, 9)), "min_evidence": float(rng.choice([0.1, 0.25, 0.5]))}
    return clips(rows), items, CatalogueOptions(**options)


@pytest.mark.parametrize("seed", range(60))
def test_against_the_rule_read_literally(seed):
    """One window after the other, one box after the other; a frame without boxes may lie before the last one only."""
    gallery, items, options = random_case(seed)
    vectors = [
        features.embeddings / np.linalg.norm(features.embeddings, axis=1)[:, None] for features in (gallery, items)
    ]
    distances = np.round(2 - 2 * vectors[0].astype(float) @ vectors[1].astype(float).T, 6)
    expected = []
    for clip in dict.fromkeys(gallery.sources):
        rows = [row for row, source in enumerate(gallery.sources) if source == clip]
        frames = sorted({int(gallery.frame_indices[row]) for row in rows})
        weights: dict[str, dict[int, float]] = {}
        for row in rows:
            photo = int(distances[row].argmin())
            if distances[row, photo] < options.limit:
                seen = weights.setdefault(items.sources[photo], {})
                weight = gallery.scores[row] * (1 - distances[row, photo] / options.limit)
                seen[int(gallery.frame_indices[row])] = max(seen.get(int(gallery.frame_indices[row]), 0.0), weight)
        grid = range(frames[0], frames[-1] + 1, 20)
        length = min(options.window, len(grid))
        for item_id, seen in weights.items():
            sums = [sum(seen.get(frame, 0.0) for frame in grid[i : i + length]) for i in range(len(grid) - length + 1)]
            if max(sums) / length >= options.min_evidence - 1e-6:
                expected.append((clip, item_id, round(max(sums) / length, 4)))
    found = [(m.video_id, m.item_id, round(m.evidence, 4)) for m in find_products(gallery, items, options)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_is_judged_as_its_clip_is(seed):
    gallery, items, options = random_case(seed)
    rows = [row for row, source in enumerate(gallery.sources) if source == "v"]
    frames = range(0, int(gallery.frame_indices[rows].max()) + 1, 20)
    options = replace(options, window=min(options.window, len(frames)))  # else that of the clip would be shorter
    vectors = gallery.embeddings / np.linalg.norm(gallery.embeddings, axis=1)[:, None]
    watcher = Watcher(items, options)
    decisions = []
    for frame in frames:
        mine = [row for row in rows if gallery.frame_indices[row] == frame]
        found = Recognition(gallery.boxes[mine], gallery.scores[mine], np.array([""] * len(mine)), vectors[mine])
        decisions.append(watcher.decide(frame, frame / 25, found))
    matches = [m for m in find_products(gallery, items, options) if m.video_id == "v"]
    best = max((d.evidence for d in decisions), default=0.0)
    assert best == pytest.approx(matches[0].evidence if matches else 0.0, abs=1e-5)
    assert {d.item_id for d in decisions} - {None} <= {m.item_id for m in matches}
