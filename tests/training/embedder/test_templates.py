import pytest

from training.embedder.templates import ASPECT_RATIOS, TEMPLATES, nearest_template


def test_every_set_has_a_template_per_ratio() -> None:
    assert all(len(sizes) == len(ASPECT_RATIOS) == 12 for sizes in TEMPLATES.values())
    for sizes in TEMPLATES.values():
        for (width, height), ratio in zip(sizes, ASPECT_RATIOS, strict=True):
            assert width / height == pytest.approx(ratio, rel=0.02)
    assert TEMPLATES["XS"][0] == (40, 160) and TEMPLATES["XS"][7] == (116, 116)


@pytest.mark.parametrize(
    ("width", "height", "index"),
    [
        (1, 100, 0),
        (25, 100, 0),
        (29.2, 100, 0),
        (29.3, 100, 1),
        (100, 100, 7),
        (91, 100, 7),
        (89, 100, 6),
        (900, 100, 11),
    ],
)
def test_nearest_ratio(width: float, height: float, index: int) -> None:
    assert nearest_template(width, height) == index


def test_the_smaller_ratio_wins_a_tie() -> None:
    assert nearest_template(1.125, 1) == 7  # halfway between 1 and 1.25


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5), (float("nan"), 5)])
def test_a_box_without_area_is_refused(width: float, height: float) -> None:
    with pytest.raises(ValueError, match="no aspect ratio"):
        nearest_template(width, height)
