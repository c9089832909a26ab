import doctest
import logging
from fractions import Fraction

import numpy as np
import pytest

from livematch import Features, FeaturesError, InputError, MatchOptions
from livematch.matching import vote
from livematch.matching.vote import contending_queries, match
from livematch.types import Pair


def features(rows, **extra) -> Features:
    """Return features of rows (source, name, frame_index, score, embedding); the box of row i is (i, 0, i + 1, 2)."""
    sources, names, frame_indices, scores, embeddings = zip(*rows, strict=True)
    boxes = [(i, 0, i + 1, 2) for i in range(len(rows))]
    return Features(
        sources=list(sources),
        names=list(names),
        frame_indices=np.array(frame_indices),
        boxes=np.array(boxes),
        scores=np.array(scores),
        embeddings=np.array(embeddings),
        **({"model_identity": "m"} | extra),
    )


def no_features(size: int) -> Features:
    return Features(
        sources=[],
        names=[],
        frame_indices=np.empty(0),
        boxes=np.empty((0, 4)),
        scores=np.empty(0),
        embeddings=np.empty((0, size)),
        model_identity="m",
    )


def at_distance(d: float, axis: int, size: int = 8) -> list[float]:
    """Return a unit vector at squared distance d from that of `axis`, in the plane of `axis` and the last axis."""
    cosine = 1 - d / 2
    vector = [0.0] * size
    vector[axis] = cosine
    vector[-1] = (1 - cosine**2) ** 0.5
    return vector


def unit(axis: int, size: int = 8) -> list[float]:
    return [float(i == axis) for i in range(size)]


def test_the_example_in_the_docstring():
    assert doctest.testmod(vote) == (0, 4)


def test_hand_calculated_vote():
    gallery = features(
        [
            ("v0", "", 80, 0.96, unit(0)),
            ("v0", "", 100, 0.99, unit(1)),
            ("v1", "", 80, 0.97, unit(2)),
        ]
    )
    # d = .1 .2 .3 .4 .5 .6 .7 .8 .9 1.0 1.1: the quantile's position is 10 * 0.28 = 2.8, so it is .3 + .8 * .1 = .38.
    # Kept are .1 and .2 (v0) and .3 (v1); round(0.5 * 3) = 2 votes are needed, so v0 it is, at (.1 + .2) / 2.
    axes = [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    scores = [0.91, 0.92, 0.999] + [0.95] * 8
    queries = features([("i", str(k), -1, scores[k], at_distance((k + 1) / 10, axes[k])) for k in range(11)])
    (found,) = match(queries, gallery)
    assert (found.video_id, found.item_id, found.num_votes) == ("v0", "i", 2)
    assert found.distance == pytest.approx(0.15, abs=1e-6)
    # Score .92 beats .91, and .999 voted for another clip; of the frames, .99 beats .96.
    assert (found.frame_index, found.pairs) == (100, (Pair("1", (1, 0, 2, 2), (1, 0, 2, 2)),))


@pytest.mark.parametrize(
    ("clips", "distances", "expected"),
    [
        ([0], [0.1], []),  # a single query is never below its own quantile
        ([0, 0], [0.5, 0.5], []),  # nor are equal ones
        ([0, 1], [0.5, 0.6], [[0]]),  # K = 1: round(0.5) = 0 votes, and the one kept has one
        # K = 5: round(2.5) = 2 votes, half to even
        ([0, 0, 1, 1, 2] + [3] * 11, [0.3, 0.3, 0.1, 0.2, 0.05] + [1.0] * 11, [[0, 1], [2, 3]]),
        # K = 4: 2 votes
        ([1, 0, 0, 1] + [3] * 8, [0.2, 0.25, 0.35, 0.4] + [1.0] * 8, [[1, 2], [0, 3]]),
        # n = 26: the quantile's position is 25 * 0.28 = 7 exactly, so the query there is not below it
        ([0] * 26, [k / 10 for k in range(26)], [[0, 1, 2, 3, 4, 5, 6]]),
        # K = 4: nobody has 2 votes
        ([0, 1, 2, 3] + [4] * 8, [0.1, 0.2, 0.3, 0.4] + [1.0] * 8, []),
    ],
)
def test_contending_queries(clips, distances, expected):
    found = contending_queries(np.array(clips), np.array(distances), MatchOptions())
    assert [voters.tolist() for voters in found] == expected


def test_a_clip_gets_the_nearer_item_and_the_limit_is_strict():
    gallery = features([("v", "", 80, 0.9, unit(0)), ("w", "", 80, 0.9, unit(1))])
    queries = features(
        [
            ("far", "0", -1, 0.9, at_distance(0.4, 0)),
            ("far", "1", -1, 0.9, at_distance(0.9, 0)),
            ("near", "0", -1, 0.9, at_distance(0.3, 0)),
            ("near", "1", -1, 0.9, at_distance(0.9, 0)),
            ("other", "0", -1, 0.9, at_distance(1.0, 1)),
            ("other", "1", -1, 0.9, at_distance(1.1, 1)),
        ]
    )
    assert [(m.video_id, m.item_id) for m in match(queries, gallery)] == [("v", "near"), ("w", "other")]
    distance = match(queries, gallery)[1].distance
    assert [m.video_id for m in match(queries, gallery, MatchOptions(limit=distance))] == ["v"]
    assert [m.video_id for m in match(queries, gallery, MatchOptions(limit=np.nextafter(distance, 2)))] == ["v", "w"]


def test_equal_items_and_equal_rows_go_to_the_first():
    gallery = features([("v", "", 80, 0.9, unit(0)), ("v", "", 100, 0.9, unit(0)), ("w", "", 80, 0.9, unit(0))])
    rows = [(item, k, -1, 0.9, at_distance(d, 0)) for item in ("b", "a") for k, d in (("0", 0.2), ("1", 0.3))]
    (found,) = match(features(rows), gallery)
    assert (found.video_id, found.frame_index, found.item_id) == ("v", 80, "b")


@pytest.mark.parametrize("distances", [(0.1, 0.2, 0.3, 1.0), (0.1, 0.2, 0.5, 1.0)])
def test_items_with_the_same_images_in_another_order_tie(distances):
    gallery = features([("v", "", 80, 0.9, unit(0))])
    items = {"b": distances, "a": distances[::-1]}
    rows = [(item, str(d), -1, 0.9, at_distance(d, 0)) for item, ds in items.items() for d in ds]
    (found,) = match(features(rows), gallery, MatchOptions(quantile=0.9))
    assert (found.item_id, found.num_votes) == ("b", 3)


def test_a_match_has_the_title_of_its_item():
    gallery = features([("v0", "", 80, 0.9, unit(0)), ("v1", "", 80, 0.9, unit(1))])
    rows = [(item, name, -1, 0.9, at_distance(int(name) / 10, axis)) for axis, item in enumerate("ab") for name in "12"]
    queries = features(rows, titles=["Red", "Red", "", ""], urls=["https://a.b", "https://a.b", "", ""])
    found = match(queries, gallery)
    assert [(m.item_id, m.title, m.url) for m in found] == [("a", "Red", "https://a.b"), ("b", "", "")]


def test_embeddings_of_any_length_give_the_same_matches():
    rng = np.random.default_rng(0)
    gallery = [("v", "", k, 0.9, rng.normal(size=8)) for k in range(20)]
    queries = [("i", str(k), -1, 0.9, rng.normal(size=8)) for k in range(9)]
    plain = match(features(queries), features(gallery), MatchOptions(limit=4))
    scaled = match(
        features([(*row[:4], row[4] * 7) for row in queries]),
        features([(*row[:4], row[4] * (1 + k)) for k, row in enumerate(gallery)]),
        MatchOptions(limit=4),
    )
    assert len(plain) == 1
    assert scaled[0].distance == pytest.approx(plain[0].distance, abs=1e-6)
    assert (scaled[0].pairs, scaled[0].frame_index) == (plain[0].pairs, plain[0].frame_index)


def test_without_queries_or_gallery_nothing_matches():
    some = features([("v", "", 80, 0.9, unit(0))])
    assert match(no_features(8), some) == []
    assert match(some, no_features(8)) == []


def test_features_of_different_models_or_sizes_are_refused_and_named():
    one = features([("v", "", 80, 0.9, unit(0))], model_identity="demo-1", origin="a.parquet")
    other = features([("v", "", 80, 0.9, unit(0))], model_identity="demo-2", origin="b.parquet")
    with pytest.raises(FeaturesError, match=r"a\.parquet by demo-1 \(8-d\), b\.parquet by demo-2 \(8-d\)"):
        match(one, other)
    short = features([("v", "", 80, 0.9, unit(0, 4))], model_identity="demo-1")
    with pytest.raises(FeaturesError, match=r"8-d.*4-d"):
        match(one, short)


def test_a_missing_model_identity_causes_a_warning(caplog):
    known = features([("v", "", 80, 0.9, unit(0))])
    unknown = features([("v", "", 80, 0.9, unit(0))], model_identity=None)
    with caplog.at_level(logging.WARNING):
        match(known, unknown)
    assert "identity" in caplog.text


@pytest.mark.parametrize(
    "option",
    [
        {"quantile": 1.5},
        {"vote_share": -0.1},
        {"limit": float("nan")},
        {"num_pairs": 0},
    ],
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(InputError, match=next(iter(option))):
        MatchOptions(**option)


def test_further_pairs_come_from_other_votes_for_the_same_frame():
    gallery = features([("v", "", 80, 0.99, unit(0)), ("v", "", 80, 0.9, unit(1)), ("v", "", 100, 0.9, unit(2))])
    axes, scores = [0, 1, 2, 1, 0, 0], [0.91, 0.95, 0.96, 0.93, 0.9, 0.9]
    queries = features([("i", str(k), -1, scores[k], at_distance((k + 1) / 10, axes[k])) for k in range(6)])
    (found,) = match(queries, gallery, MatchOptions(quantile=0.75, num_pairs=3))
    # Kept are 0 to 3. Query 2 has the best score of all; the frame is that of the best box hit, 80, with rows 0 and 1.
    assert [(pair.img_name, pair.frame_box[0]) for pair in found.pairs] == [("2", 0), ("1", 1), ("3", 1)]
    assert len(match(queries, gallery, MatchOptions(quantile=0.75, num_pairs=9))[0].pairs) == 4


def test_only_boxes_of_the_same_label_are_compared():
    """Query "1" is at 0.5 from frame 100, but of another label; of its own label, the nearest is at 0.7."""
    rows = [("v", "", 80, 0.9, at_distance(0.7, 0)), ("w", "", 100, 0.9, at_distance(0.5, 0))]
    gallery = features(rows, labels=["shirt", "dress"])
    queries = [("i", "0", -1, 0.8, unit(1)), ("i", "1", -1, 0.9, unit(0)), ("i", "2", -1, 0.7, unit(0))]
    options = MatchOptions(quantile=0.9, same_label=True)
    (found,) = match(features(queries, labels=["shirt", "shirt", "hat"]), gallery, options)
    assert (found.video_id, found.num_votes, found.pairs[0].img_name) == ("v", 1, "1")
    assert found.distance == pytest.approx(0.7, abs=1e-6)
    (found,) = match(features(queries, labels=["shirt", "shirt", "hat"]), gallery, MatchOptions(quantile=0.9))
    assert (found.video_id, found.distance) == ("w", pytest.approx(0.5, abs=1e-6))


def test_labels_that_occur_on_one_side_only_are_reported(caplog):
    """For example, if the classes were renamed between the two."""
    gallery = features([("v", "", 80, 0.9, unit(0))], labels=["shirt"], origin="b.parquet")
    queries = [("i", "0", -1, 0.8, unit(0)), ("i", "1", -1, 0.9, unit(0)), ("i", "2", -1, 0.7, unit(0))]
    queries = features(queries, labels=["hat", "cap", "hat"], origin="a.parquet")
    assert match(queries, gallery, MatchOptions(same_label=True)) == []
    assert "no box of b.parquet has a label of a.parquet: hat, cap" in caplog.text


@pytest.mark.parametrize("exchange", [False, True])
def test_labels_that_are_unknown_are_not_compared(exchange):
    labelled = features([("i", "0", -1, 0.9, unit(0))], labels=["shirt"], origin="a.parquet")
    unlabelled = features([("v", "", 80, 0.9, unit(0))], labels=[""], origin="b.parquet")
    queries, gallery = (unlabelled, labelled) if exchange else (labelled, unlabelled)
    with pytest.raises(FeaturesError, match=r"b\.parquet: a box of v has no label"):
        match(queries, gallery, MatchOptions(same_label=True))


def slow_match(
    queries: Features, gallery: Features, quantile: float, vote_share: float, limit: float, same_label: bool
) -> list[tuple]:
    """Apply the rule literally, one query and gallery row at a time; the quantile's position is an exact fraction."""
    nearest_row, d = {}, {}
    for k, q in enumerate(queries.embeddings.astype(float)):
        distances = {
            row: 2 - 2 * (q @ g) / np.sqrt((q @ q) * (g @ g))
            for row, g in enumerate(gallery.embeddings.astype(float))
            if not same_label or gallery.labels[row] == queries.labels[k]
        }
        if distances:
            smallest = min(distances.values())
            nearest_row[k] = next(row for row, value in distances.items() if value <= smallest + 1e-12)
            d[k] = max(round(distances[nearest_row[k]], 12), 0.0)
    proposals = []
    for item in dict.fromkeys(queries.sources):
        mine = [k for k, source in enumerate(queries.sources) if source == item and k in d]
        if not mine:
            continue
        ordered = sorted(d[k] for k in mine)
        position = Fraction(str(quantile)) * (len(mine) - 1)
        low = int(position)
        threshold = ordered[low]
        if position > low:
            threshold += float(position - low) * (ordered[low + 1] - ordered[low])
        kept = [k for k in mine if d[k] < threshold]
        votes: dict[str, list[int]] = {}
        for video in dict.fromkeys(gallery.sources):
            voters = [k for k in kept if gallery.sources[nearest_row[k]] == video]
            if voters and len(voters) >= round(vote_share * len(kept)):
                votes[video] = voters
        if not votes:
            continue
        means = {video: round(float(np.mean([d[k] for k in voters])), 11) for video, voters in votes.items()}
        video = min(means, key=lambda v: means[v])
        best_query = max(votes[video], key=lambda k: (queries.scores[k], -k))
        rows = {nearest_row[k] for k in votes[video]}
        best_row = max(rows, key=lambda row: (gallery.scores[row], -row))
        proposals.append((means[video], video, item, best_query, best_row))
    answers = []
    for video in dict.fromkeys(gallery.sources):
        mine = [p for p in proposals if p[1] == video]
        if mine and min(mine, key=lambda p: p[0])[0] < limit:
            answers.append(min(mine, key=lambda p: p[0]))
    return answers


@pytest.mark.parametrize("seed", range(150))
def test_against_the_rule_read_literally(seed):
    rng = np.random.default_rng(seed)
    has_ties = seed % 2
    size = int(rng.integers(2, 12))

    def random_features(num_rows: int, num_sources: int) -> Features:
        if has_ties:  # small integers: many equal directions and distances; few distinct scores
            embeddings = rng.integers(-1, 2, size=(num_rows, size)).astype(np.float32)
            embeddings[~embeddings.any(axis=1)] = 1
            scores = rng.integers(90, 93, size=num_rows) / 100
        else:
            embeddings = rng.normal(size=(num_rows, size)).astype(np.float32)
            scores = rng.random(num_rows)
        sources = [f"s{k}" for k in rng.integers(0, num_sources, size=num_rows)]
        rows = zip(sources, map(str, range(num_rows)), range(num_rows), scores, embeddings, strict=True)
        labels = [f"label {k}" for k in rng.integers(0, 4, size=num_rows)]
        return features(list(rows), labels=labels)

    queries = random_features(int(rng.integers(1, 60)), int(rng.integers(1, 6)))
    gallery = random_features(int(rng.integers(1, 40)), int(rng.integers(1, 5)))
    options = {
        "quantile": float(rng.choice([0.28, 0.5, 0.75])),
        "vote_share": 0.5,
        "limit": 1.12,
        "same_label": seed % 3 == 0,
    }
    found = match(queries, gallery, MatchOptions(**options))
    expected = slow_match(queries, gallery, **options)
    assert [(m.video_id, m.item_id) for m in found] == [answer[1:3] for answer in expected]
    for m, (distance, _, _, query, row) in zip(found, expected, strict=True):
        assert m.distance == pytest.approx(distance, abs=1e-9)
        (pair,) = m.pairs
        assert (pair.img_name, pair.item_box[0]) == (queries.names[query], query)
        assert (m.frame_index, pair.frame_box[0]) == (gallery.frame_indices[row], row)
