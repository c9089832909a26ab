"""Draw garments, a mannequin, hands and a hanger as sprites: images with transparency.

All sprites share one coordinate system, the body frame of 480 × 960 body pixels (shoulders at y = 170, waist at 400,
ankles at 880). A mannequin is dressed by drawing a garment over it with the same pose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from training.demo.designs import Design
from training.demo.textures import draw_pattern, draw_prints, smooth_noise

BODY_WIDTH, BODY_HEIGHT = 480, 960
SCALE = 1.5  # sprite pixels per body pixel

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Sprite:
    """A rectangle of the body frame with its content.

    `pixels` is uint8 [h, w, 4] BGRA with colours premultiplied by alpha. `left` and `top` are the position of its first
    pixel in the body frame, in sprite pixels (a body pixel is SCALE sprite pixels).
    """

    pixels: np.ndarray
    left: int
    top: int

    @property
    def center(self) -> tuple[float, float]:
        """The centre in body pixels."""
        height, width = self.pixels.shape[:2]
        return (self.left + width / 2) / SCALE, (self.top + height / 2) / SCALE

    @property
    def height(self) -> float:
        """The height in body pixels."""
        return float(self.pixels.shape[0] / SCALE)


def flatten(sprites: Sequence[Sprite]) -> Sprite:
    """Return one sprite that looks like all of `sprites` drawn in this order."""
    left, top = min(s.left for s in sprites), min(s.top for s in sprites)
    right = max(s.left + s.pixels.shape[1] for s in sprites)
    bottom = max(s.top + s.pixels.shape[0] for s in sprites)
    canvas = np.zeros((bottom - top, right - left, 4), np.uint8)
    for sprite in sprites:
        height, width = sprite.pixels.shape[:2]
        paint(canvas[sprite.top - top :, sprite.left - left :][:height, :width], sprite.pixels)
    return Sprite(canvas, left, top)


def paint(target: np.ndarray, source: np.ndarray) -> None:
    """Draw `source` (premultiplied BGRA) over `target` (BGR or premultiplied BGRA) of the same size, in place."""
    channels = target.shape[2]
    rest = cv2.bitwise_not(source[:, :, 3])
    kept = cv2.multiply(target, cv2.merge([rest] * channels), scale=1 / 255)
    target[:] = cv2.add(kept, source[:, :, :channels])


def garment_sprite(design: Design, seed: int, *, worn: bool) -> Sprite:
    """Draw a garment. Its folds depend on `seed`, so that two images of it differ."""
    mask, seams, hollow = _silhouette(design)
    margin = round(20 * SCALE)
    left, top, width, height = cv2.boundingRect(mask)
    right, bottom = min(left + width + margin, mask.shape[1]), min(top + height + margin, mask.shape[0])
    left, top = max(left - margin, 0), max(top - margin, 0)
    width, height = right - left, bottom - top
    mask = mask[top : top + height, left : left + width]
    cloth = draw_pattern(design, left, top, width, height, SCALE)
    draw_prints(cloth, design, _print_positions(design), left, top, SCALE)
    offset = (-left, -top)
    for seam in seams:
        color = tuple(int(0.55 * c) for c in design.colors[0])
        cv2.polylines(cloth, [_pixels(seam) + offset], False, color, 4, cv2.LINE_AA)
    rng = np.random.default_rng(seed)
    folds = smooth_noise(rng, height, width, 60 * SCALE) + 0.6 * smooth_noise(rng, height, width, 22 * SCALE)
    shade = 1 + (0.09 if worn else 0.05) * folds
    inside = cv2.blur(cv2.blur(mask, (25, 25)), (25, 25)).astype(np.float32) / 255
    shade *= 0.72 + 0.28 * np.clip(2 * inside - 0.9, 0, 1)  # the cloth curves away from the light at its edges
    cloth = cv2.multiply(cloth, cv2.merge([shade] * 3), dtype=cv2.CV_8U)
    if hollow is not None:  # the inside of the back, visible through the neckline
        color = tuple(int(0.4 * c) for c in design.colors[0])
        cv2.fillPoly(cloth, [_pixels(hollow) + offset], color, cv2.LINE_AA)
    sprite = _cropped(_draped(_premultiplied(cloth, mask), rng))
    return Sprite(sprite.pixels, sprite.left + left, sprite.top + top)


def hands_sprite(skin: tuple[int, int, int], garment: Sprite) -> Sprite:
    """Draw two hands that hold a garment by the corners of its upper edge."""
    mask = _canvas()
    rows = np.flatnonzero((garment.pixels[: round(0.2 * garment.pixels.shape[0]), :, 3] > 127).any(0))
    for side, x in ((-1, garment.left + rows[0]), (1, garment.left + rows[-1])):
        center = (int(x) - side * 12, garment.top + round(0.08 * garment.pixels.shape[0]))
        cv2.ellipse(mask, center, (round(17 * SCALE), round(12 * SCALE)), 35 * side, 0, 360, 255, -1, cv2.LINE_AA)
    return _cropped(_premultiplied(_filled(skin), mask))


def mannequin_sprite(skin: tuple[int, int, int], hair: tuple[int, int, int]) -> Sprite:
    """Draw a faceless shop mannequin."""
    color, mask = _filled(skin), _canvas()
    torso = [(146, 172), (334, 172), (318, 300), (306, 400), (326, 490), (240, 540), (154, 490), (174, 400), (162, 300)]
    for polygon in (torso, _leg(-1), _leg(1), _arm(-1, 1.0, 15, 13), _arm(1, 1.0, 15, 13)):
        cv2.fillPoly(mask, [_pixels(polygon)], 255, cv2.LINE_AA)
    cv2.ellipse(mask, _pixel(240, 95), (round(46 * SCALE), round(60 * SCALE)), 0, 0, 360, 255, -1, cv2.LINE_AA)
    cv2.fillPoly(mask, [_pixels([(220, 140), (260, 140), (268, 180), (212, 180)])], 255, cv2.LINE_AA)
    cv2.ellipse(color, _pixel(240, 70), (round(50 * SCALE), round(40 * SCALE)), 0, 180, 360, hair, -1, cv2.LINE_AA)
    edge = 0.7 + cv2.blur(cv2.blur(mask, (21, 21)), (21, 21)).astype(np.float32) * (0.3 / 255)
    color = cv2.multiply(color, cv2.merge([edge] * 3), dtype=cv2.CV_8U)
    return _cropped(_premultiplied(color, mask))


def hanger_sprite() -> Sprite:
    """Draw a clothes hanger whose bar is at the shoulders of a top."""
    mask = _canvas()
    for line in ([(150, 182), (240, 140), (330, 182)], [(240, 140), (240, 112), (256, 100), (244, 86)]):
        cv2.polylines(mask, [_pixels(line)], False, 255, round(6 * SCALE), cv2.LINE_AA)
    return _cropped(_premultiplied(_filled((60, 80, 100)), mask))


def _silhouette(design: Design) -> tuple[np.ndarray, list[Points], Points | None]:
    """Return a mask, uint8 [H, W], of the body frame, the seam lines, and the neckline's opening, if any."""
    mask = _canvas()
    if design.is_upper or design.is_dress:
        polygons, seams, hollow = _upper(design)
    else:
        polygons, seams, hollow = _lower(design), [[(168, 412), (312, 412)]], None
    for polygon in polygons:
        cv2.fillPoly(mask, [_pixels(polygon)], 255, cv2.LINE_AA)
    return mask, seams, hollow


SLEEVES = {
    "短袖上衣": 0.36,
    "长袖上衣": 0.97,
    "背心上衣": 0.0,
    "短袖衬衫": 0.40,
    "长袖衬衫": 0.95,
    "短外套": 0.93,
    "短袖连衣裙": 0.34,
    "长袖连衣裙": 0.92,
    "无袖连衣裙": 0.0,
}
"""Fraction of the arm that a sleeve covers."""


def _upper(design: Design) -> tuple[list[Points], list[Points], Points]:
    loose = 26 * design.width
    sleeve = SLEEVES[design.kind]
    shoulder = 96 + 0.5 * loose if sleeve else 74.0
    if design.is_dress:
        hem_y, hem = 600 + 230 * design.length, 110 + loose + 90 * design.flare
        waist = 66 + 0.5 * loose
    else:
        hem_y, hem = 400 + 110 * design.length, 92 + loose + 20 * design.flare
        waist = 80 + loose
    drop, spread = {"crew": (26, 36), "vee": (78, 34), "square": (52, 46), "boat": (14, 62)}[design.neckline]
    if design.kind in ("短袖衬衫", "长袖衬衫", "短外套"):
        drop, spread = 40, 30
    neck: Points = [(240 + spread, 158), (240, 158 + drop), (240 - spread, 158)]
    if design.neckline == "square":
        neck = [(240 + spread, 158), (240 + spread, 158 + drop), (240 - spread, 158 + drop), (240 - spread, 158)]
    elif design.neckline in ("crew", "boat"):
        turn = np.linspace(0, np.pi, 13)
        neck = [(240 + spread * float(np.cos(t)), 158 + drop * float(np.sin(t))) for t in turn]
    right = [(240 + shoulder, 176), (240 + 86 + loose, 262), (240 + waist, 400), (240 + hem, hem_y)]
    if not design.is_dress:
        right = [(240 + shoulder, 176), (240 + 86 + loose, 262), (240 + hem, hem_y)]
    left = [(480 - x, y) for x, y in right]
    polygons = [neck + left + right[::-1]]
    seams: list[Points] = [neck]
    for side in (-1, 1):
        if sleeve:
            polygons.append(_arm(side, sleeve, 34 + 0.6 * loose, 22 + 0.5 * loose))
            seams.append([(240 + side * (shoulder - 4), 182), (240 + side * (84 + loose), 262)])
    if design.is_dress:
        seams.append([(240 - waist, 400), (240 + waist, 400)])
    if design.kind in ("短袖衬衫", "长袖衬衫"):
        seams += [[(240, 198), (240, hem_y)], [(240 - 34, 158), (222, 214), (240, 198), (258, 214), (240 + 34, 158)]]
    if design.kind == "短外套":
        seams += [
            [(234, 198), (234, hem_y)],
            [(246, 198), (246, hem_y)],
            [(170, 372), (206, 380)],
            [(310, 372), (274, 380)],
        ]
    return polygons, seams, [(240 + spread * 0.9, 152), *neck, (240 - spread * 0.9, 152)]


def _lower(design: Design) -> list[Points]:
    loose = 26 * design.width
    if design.kind in ("短裙", "中等半身裙", "长半身裙"):
        start = {"短裙": 535, "中等半身裙": 640, "长半身裙": 780}[design.kind]
        hem_y, hem = start + 70 * design.length, 96 + loose + 80 * design.flare
        return [
            [
                (168, 394),
                (312, 394),
                (332 + 0.4 * loose, 480),
                (240 + hem, hem_y),
                (240 - hem, hem_y),
                (148 - 0.4 * loose, 480),
            ]
        ]
    start = {"短裤": 560, "中裤": 665, "长裤": 835}[design.kind]
    hem_y, wide = start + 40 * design.length, 30 + 0.8 * loose + 24 * design.flare
    legs: list[Points] = []
    for side in (-1, 1):
        center = 240 + side * (46 + 0.04 * (hem_y - 540))
        inner, outer = 240 + side * 2, 240 + side * (96 + 0.5 * loose)
        legs.append(
            [
                (240, 394),
                (240 + side * 72, 394),
                (outer, 490),
                (center + side * wide, hem_y),
                (center - side * wide, hem_y),
                (inner, 548),
            ]
        )
    return legs


def _print_positions(design: Design) -> list[tuple[float, float, float]]:
    """Return the motif's positions, (center x, center y, size) in body pixels: one on a chest, several elsewhere."""
    rng = np.random.default_rng(design.print_seed + 1)
    if design.is_upper or design.is_dress:
        positions = [(240.0, 300.0, float(rng.uniform(150, 182)))]
        if design.is_dress:
            positions += [(188.0, 520.0, 110.0), (292.0, 520.0, 110.0)]
        return positions
    if design.kind in ("短裙", "中等半身裙", "长半身裙"):
        return [(240.0, 476.0, 140.0), (176.0, 590.0, 112.0), (304.0, 590.0, 112.0), (240.0, 700.0, 140.0)]
    return [
        (190.0, 475.0, 84.0),
        (290.0, 475.0, 84.0),
        (182.0, 600.0, 84.0),
        (298.0, 600.0, 84.0),
        (178.0, 730.0, 84.0),
        (302.0, 730.0, 84.0),
    ]


def _arm(side: int, fraction: float, upper_px: float, lower_px: float) -> Points:
    """Return the outline of an arm, or of a sleeve that covers the upper `fraction` of it."""
    start = np.array([240 + side * 84.0, 186.0])
    along = np.array([side * 62.0, 330.0])
    end = start + fraction * along
    across = np.array([along[1], -along[0]]) / np.hypot(*along)
    half = upper_px + fraction * (lower_px - upper_px)
    points = [start + across * upper_px, end + across * half, end - across * half, start - across * upper_px]
    return [(float(x), float(y)) for x, y in points]


def _leg(side: int) -> Points:
    x = 240 + side * 46.0
    return [(x - 40, 470), (x + 40, 470), (x + 30, 690), (x + 20, 890), (x - 20, 890), (x - 30, 690)]


def _canvas() -> np.ndarray:
    return np.zeros((round(BODY_HEIGHT * SCALE), round(BODY_WIDTH * SCALE)), np.uint8)


def _filled(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((*_canvas().shape, 3), color, np.uint8)


def _pixel(x: float, y: float) -> tuple[int, int]:
    return round(x * SCALE), round(y * SCALE)


def _pixels(points: Sequence[tuple[float, float]]) -> np.ndarray:
    return np.round(np.asarray(points) * SCALE).astype(np.int32)


def _premultiplied(color: np.ndarray, mask: np.ndarray) -> np.ndarray:
    premultiplied = cv2.multiply(color, cv2.merge([mask, mask, mask]), scale=1 / 255)
    return cv2.merge([*cv2.split(premultiplied), mask])


def _draped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort a sprite a little, as cloth hangs differently each time."""
    height, width = pixels.shape[:2]
    shift_x, shift_y = (5 * SCALE * smooth_noise(rng, height, width, 110 * SCALE) for _ in range(2))
    shift_x += np.arange(width, dtype=np.float32)
    shift_y += np.arange(height, dtype=np.float32)[:, None]
    return cv2.remap(pixels, shift_x, shift_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _cropped(canvas: np.ndarray) -> Sprite:
    left, top, width, height = cv2.boundingRect(canvas[:, :, 3])
    return Sprite(np.ascontiguousarray(canvas[top : top + height, left : left + width]), left, top)
