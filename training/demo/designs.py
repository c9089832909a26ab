"""What a garment is before it is drawn: kind, cut, colours, pattern and print.

Items come in families of three: a design, the same design with another print, and the same design in another cut.
Colours say nothing inside a family, and three families share them, so a colour histogram cannot tell nine items apart.
"""

from dataclasses import dataclass, replace

import numpy as np

TOPS = ("短袖上衣", "长袖上衣", "背心上衣", "短袖衬衫", "长袖衬衫", "短外套")
DRESSES = ("短袖连衣裙", "长袖连衣裙", "无袖连衣裙")
SKIRTS = ("短裙", "中等半身裙", "长半身裙")
TROUSERS = ("短裤", "中裤", "长裤")
KINDS = TOPS + DRESSES + SKIRTS + TROUSERS

PATTERNS = ("plain", "stripes", "bars", "checks", "dots", "gradient", "blocks", "diamonds", "camouflage", "marl")
PRINT_FAMILIES = (
    ("disc", "heart", "triangle"),
    ("ring", "crescent"),
    ("star", "cross", "flower"),
    ("bolt", "arrow"),
    ("letters", "grid"),
)
"""Motifs by outline; a lookalike's print is of another family, so that it can be told in a small picture too."""

PRINTS = tuple(name for family in PRINT_FAMILIES for name in family)
NECKLINES = ("crew", "vee", "square", "boat")

OTHER_KINDS: dict[str, tuple[str, ...]] = {
    "短袖上衣": ("长袖上衣",),
    "长袖上衣": ("短袖上衣", "背心上衣"),
    "背心上衣": ("长袖上衣",),
    "短袖衬衫": ("长袖衬衫",),
    "长袖衬衫": ("短袖衬衫",),
    "短外套": ("短袖上衣", "背心上衣"),
    "短袖连衣裙": ("长袖连衣裙",),
    "长袖连衣裙": ("短袖连衣裙", "无袖连衣裙"),
    "无袖连衣裙": ("长袖连衣裙",),
    "短裙": ("中等半身裙", "长半身裙"),
    "中等半身裙": ("短裙", "长半身裙"),
    "长半身裙": ("短裙",),
    "短裤": ("长裤", "中裤"),
    "中裤": ("长裤", "短裤"),
    "长裤": ("短裤", "中裤"),
}
"""Kinds that a garment of this kind becomes when its sleeves, legs or hem change, by more than a short sleeve."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """One garment. Colours are BGR; seeds feed the generators of the details, so equal designs look equal."""

    kind: str
    neckline: str
    length: float  # 0..1 within what the kind allows
    width: float  # 0..1, slim to wide
    flare: float  # 0..1
    colors: tuple[tuple[int, int, int], ...]  # base, second, accent
    pattern: str
    pattern_seed: int
    print: str
    print_seed: int

    @property
    def is_upper(self) -> bool:
        return self.kind in TOPS

    @property
    def is_dress(self) -> bool:
        return self.kind in DRESSES


def random_design(rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> Design:
    return Design(
        kind=str(rng.choice(kinds)),
        neckline=str(rng.choice(NECKLINES)),
        length=float(rng.uniform()),
        width=float(rng.uniform()),
        flare=float(rng.uniform()),
        colors=_palette(rng),
        pattern=str(rng.choice(PATTERNS)),
        pattern_seed=int(rng.integers(1 << 31)),
        print=str(rng.choice(PRINTS)),
        print_seed=int(rng.integers(1 << 31)),
    )


def with_other_print(design: Design, rng: np.random.Generator) -> Design:
    """Returns the design with another motif; cut, colours and pattern stay."""
    others = [name for family in PRINT_FAMILIES if design.print not in family for name in family]
    return replace(design, print=str(rng.choice(others)), print_seed=int(rng.integers(1 << 31)))


def with_other_cut(design: Design, rng: np.random.Generator) -> Design:
    """Returns the design with other sleeves, legs or hem, neckline and width; colours, pattern and print stay."""
    return replace(
        design,
        kind=str(rng.choice(OTHER_KINDS[design.kind])),
        neckline=str(rng.choice([name for name in NECKLINES if name != design.neckline])),
        length=(design.length + rng.uniform(0.4, 0.6)) % 1.0,
        width=(design.width + rng.uniform(0.4, 0.6)) % 1.0,
        flare=(design.flare + rng.uniform(0.4, 0.6)) % 1.0,
    )


def item_designs(seed: int, item: int) -> tuple[Design, ...]:
    """Returns the one garment, or the two of a set, of an item; three items in a row make a family."""
    family, member = divmod(item, 3)
    colors = _palette(np.random.default_rng([seed, family // 3, 4]))
    rng = np.random.default_rng([seed, family, 1])
    if rng.uniform() < 0.2:
        upper = replace(random_design(rng, TOPS), colors=colors)
        lower = replace(
            random_design(rng, SKIRTS + TROUSERS),
            colors=colors,
            pattern=upper.pattern,
            pattern_seed=upper.pattern_seed,
        )
        designs = (upper, lower)
    else:
        designs = (replace(random_design(rng), colors=colors),)
    rng = np.random.default_rng([seed, family, 2, member])
    if member == 1:
        return tuple(with_other_print(design, rng) for design in designs)
    if member == 2:
        return tuple(with_other_cut(design, rng) for design in designs)
    return designs


def _palette(rng: np.random.Generator) -> tuple[tuple[int, int, int], ...]:
    """Three BGR colours: a base, a second of other lightness, an accent that stands out from both."""
    hue = rng.uniform()
    value = rng.uniform(0.15, 0.95)
    base = _bgr(hue, rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.3, 0.9)]), value)
    second_value = (value + rng.uniform(0.25, 0.5)) % 1
    second = _bgr((hue + rng.uniform(-0.1, 0.1)) % 1, rng.uniform(0.1, 0.7), second_value)
    accent_value = max((0.15, 0.55, 0.95), key=lambda level: min(abs(level - value), abs(level - second_value)))
    accent = _bgr((hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.5, 1.0), accent_value)
    return base, second, accent


def _bgr(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    chroma = value * saturation
    channels = []
    for offset in (1, 3, 5):  # blue, green, red, by the hexcone formula
        k = (offset + hue * 6) % 6
        channels.append(round(255 * (value - chroma * max(0.0, min(k, 4 - k, 1.0)))))
    return channels[0], channels[1], channels[2]
