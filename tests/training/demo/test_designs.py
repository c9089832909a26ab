from collections import Counter
from dataclasses import replace

from training.datasets.wab import LABELS
from training.demo.designs import KINDS, _bgr, item_designs
from training.demo.textures import _contrasting


def test_designs_depend_on_seed_and_item_only() -> None:
    assert item_designs(5, 4) == item_designs(5, 4)
    assert item_designs(5, 4) != item_designs(6, 4)


def test_lookalikes_share_colors_and_differ_in_print_or_cut() -> None:
    for family in range(40):
        original, other_print, other_cut = (item_designs(9, 3 * family + member) for member in range(3))
        for a, b, c in zip(original, other_print, other_cut, strict=True):
            assert a.print != b.print
            assert b == replace(a, print=b.print, print_seed=b.print_seed)
            assert a.kind != c.kind and a.neckline != c.neckline
            assert (a.colors, a.pattern, a.pattern_seed, a.print, a.print_seed) == (
                c.colors,
                c.pattern,
                c.pattern_seed,
                c.print,
                c.print_seed,
            )


def test_nine_items_share_their_colors() -> None:
    assert list(Counter(item_designs(9, item)[0].colors for item in range(90)).values()) == [9] * 10


def test_kinds_are_labels_of_the_data_set() -> None:
    assert set(KINDS) <= set(LABELS) and len(KINDS) == 15
    assert {design.kind for item in range(300) for design in item_designs(1, item)} == set(KINDS)


def test_some_items_are_sets_of_an_upper_and_a_lower_garment() -> None:
    sets = [designs for designs in (item_designs(2, item) for item in range(0, 300, 3)) if len(designs) == 2]
    assert 8 <= len(sets) <= 35
    assert all(upper.is_upper and not lower.is_upper and not lower.is_dress for upper, lower in sets)


def test_hexcone_colors() -> None:
    assert _bgr(0.0, 1.0, 1.0) == (0, 0, 255)
    assert _bgr(1 / 3, 1.0, 1.0) == (0, 255, 0)
    assert _bgr(0.5, 0.5, 0.8) == (204, 204, 102)


def test_a_prints_second_color_is_told_from_the_cloth_and_from_the_first() -> None:
    for item in range(300):
        base, _, accent = item_designs(3, item)[0].colors
        (gray, *_) = _contrasting(accent, base)
        assert all(abs(gray - sum(color) / 3) > 35 for color in (accent, base))
