"""The design of a garment, before it is drawn: kind, cut, colours, pattern and print.

Items come in families of three lookalikes: a design, the same design with a different print, and the same design with
a different cut. All three have the same colours, and three families in a row share them as well, so that a colour
histogram cannot tell these nine items apart.
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
"""Motifs grouped by outline. A lookalike gets a print of a different group, so that they differ in small images too."""

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
"""For each kind, the kinds of its lookalikes: sleeves, legs or hem differ by more than the length of a short sleeve."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design of one garment. The seeds determine the details, so equal designs look the same."""

    kind: str
    neckline: str
    length: float  # 0..1, within the range of the kind
    width: float  # 0..1, slim to wide
    flare: float  # 0..1
    colors: tuple[tuple[int, int, int], ...]  # BGR: base, second, accent
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
    """Return the design with a different motif, and the same cut, colours and pattern."""
    others = [name for family in PRINT_FAMILIES if design.print not in family for name in family]
    return replace(design, print=str(rng.choice(others)), print_seed=int(rng.integers(1 << 31)))


def with_other_cut(design: Design, rng: np.random.Generator) -> Design:
    """Return the design with different sleeves, legs or hem, and the same colours, pattern and print."""
    return replace(
        design,
        kind=str(rng.choice(OTHER_KINDS[design.kind])),
        neckline=str(rng.choice([name for name in NECKLINES if name != design.neckline])),
        length=(design.length + rng.uniform(0.4, 0.6)) % 1.0,
        width=(design.width + rng.uniform(0.4, 0.6)) % 1.0,
        flare=(design.flare + rng.uniform(0.4, 0.6)) % 1.0,
    )


def item_designs(seed: int, item: int) -> tuple[Design, ...]:
    """Return the garment of an item, or the two garments of a set. Items 3k, 3k + 1 and 3k + 2 are a family."""
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
        designs: tuple[Design, ...] = (upper, lower)
    else:
        designs = (replace(random_design(rng), colors=colors),)
    rng = np.random.default_rng([seed, family, 2, member])
    if member == 1:
        return tuple(with_other_print(design, rng) for design in designs)
    if member == 2:
        return tuple(with_other_cut(design, rng) for design in designs)
    return designs


def _palette(rng: np.random.Generator) -> tuple[tuple[int, int, int], ...]:
    """Return BGR colours: a base, a second of different lightness, and an accent that stands out from both."""
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
    for offset in (1, 3, 5):  # blue, green, red by the hexcone formula (HSV to RGB)
        k = (offset + hue * 6) % 6
        channels.append(round(255 * (value - chroma * max(0.0, min(k, 4 - k, 1.0)))))
    return channels[0], channels[1], channels[2]
