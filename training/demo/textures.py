"""Draw the pattern of the cloth and the printed motif of a design."""

import string

import cv2
import numpy as np

from training.demo.designs import Design

Image = np.ndarray  # uint8 [H, W, 3] BGR


def draw_pattern(design: Design, left: int, top: int, width: int, height: int, scale: float) -> Image:
    """Return a region of the body frame filled with the cloth of a design.

    `left`, `top`, `width` and `height` are in sprite pixels, `scale` is sprite pixels per body pixel.
    """
    rng = np.random.default_rng(design.pattern_seed)
    base, second, accent = (np.array(color, np.float32) for color in design.colors)
    x = (left + np.arange(width, dtype=np.float32))[None] / scale
    y = (top + np.arange(height, dtype=np.float32))[:, None] / scale
    period = rng.uniform(24, 70)
    fraction = rng.uniform(0.3, 0.6)
    weight = np.zeros((height, width), np.float32)
    match design.pattern:
        case "stripes":
            weight = weight + ((y / period) % 1 < fraction)
        case "bars":
            weight = weight + ((x / period) % 1 < fraction)
        case "checks":
            weight = weight + 0.5 * ((x / period) % 1 < fraction) + 0.5 * ((y / period) % 1 < fraction)
        case "dots":
            dx = (x / period + 0.5 * (np.floor(y / period) % 2)) % 1 - 0.5
            dy = (y / period) % 1 - 0.5
            weight = weight + (dx * dx + dy * dy < (0.5 * fraction + 0.08) ** 2)
        case "gradient":
            weight = weight + np.clip((y - 170) / rng.uniform(250, 500), 0, 1)
        case "blocks":
            weight = weight + ((y > rng.uniform(260, 340)) | (x < rng.uniform(120, 200)))
        case "diamonds":
            weight = weight + (np.abs((x / period) % 1 - 0.5) + np.abs((y / (1.6 * period)) % 1 - 0.5) < 0.4)
        case "camouflage":
            weight = weight + (smooth_noise(rng, height, width, period * scale * 0.5) > rng.uniform(-0.2, 0.2))
        case "marl":
            weight = 0.5 + 0.5 * np.tanh(smooth_noise(rng, height, width, 5 * scale))
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    table = (base + levels * (second - base)).astype(np.uint8)[:, None]
    cloth = cv2.LUT(cv2.merge([(255 * weight).astype(np.uint8)] * 3), table)
    if design.pattern == "checks":
        line = (np.abs((x / period) % 1 - 0.8) < 0.03) | (np.abs((y / period) % 1 - 0.8) < 0.03)
        cloth[line] = accent
    return cloth


def draw_prints(
    cloth: Image, design: Design, positions: list[tuple[float, float, float]], left: int, top: int, scale: float
) -> None:
    """Draw the design's motif into `cloth`, at each position (center x, center y, size) in body pixels."""
    rng = np.random.default_rng(design.print_seed)
    motif, mask = _motif(design, rng)
    for center_x, center_y, size in positions:
        side = max(8, round(size * scale))
        x, y = round(center_x * scale - side / 2) - left, round(center_y * scale - side / 2) - top
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + side, cloth.shape[1]), min(y + side, cloth.shape[0])
        if x1 <= x0 or y1 <= y0:
            continue
        part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        alpha = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)[part][..., None] / np.float32(255)
        color = cv2.resize(motif, (side, side), interpolation=cv2.INTER_AREA)[part]
        cloth[y0:y1, x0:x1] = cloth[y0:y1, x0:x1] * (1 - alpha) + color * alpha


def smooth_noise(rng: np.random.Generator, height: int, width: int, grain: float) -> np.ndarray:
    """Return float32 [H, W] noise of about unit variance, with structures about `grain` pixels wide."""
    noise: np.ndarray = rng.standard_normal((int(height / grain) + 3, int(width / grain) + 3)).astype(np.float32)
    if grain > 32:  # bicubic is slow on a large canvas, and bilinear is good enough for coarse noise
        noise = cv2.resize(noise, (width // 8, height // 8), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


MOTIF_SIDE = 256


def _motif(design: Design, rng: np.random.Generator) -> tuple[Image, np.ndarray]:
    """Return the colours, uint8 [256, 256, 3], and the coverage, uint8 [256, 256], of the design's motif."""
    accent = design.colors[2]
    other = _contrasting(accent, design.colors[0])
    image = np.zeros((MOTIF_SIDE, MOTIF_SIDE, 3), np.uint8)
    mask = np.zeros((MOTIF_SIDE, MOTIF_SIDE), np.uint8)
    outer = _shape(design.print, rng, 118)
    for target, color in ((image, accent), (mask, 255)):
        for polygon in outer:
            cv2.fillPoly(target, [polygon], color, cv2.LINE_AA)
    if design.print == "letters":
        return _outlined(image, mask, other)
    inner_names = [name for name in ("disc", "star", "triangle", "cross", "heart", "bolt") if name != design.print]
    style = rng.integers(3)
    if style == 0:  # another shape on top, in the other colour
        for polygon in _shape(str(rng.choice(inner_names)), rng, 52):
            cv2.fillPoly(image, [polygon], other, cv2.LINE_AA)
            cv2.fillPoly(mask, [polygon], 255, cv2.LINE_AA)
    elif style == 1:  # half of it in the other colour
        image[: MOTIF_SIDE // 2] = np.where(image[: MOTIF_SIDE // 2].any(-1, keepdims=True), other, 0)
    return _outlined(image, mask, other)


def _outlined(image: Image, mask: np.ndarray, color: tuple[int, int, int]) -> tuple[Image, np.ndarray]:
    """Add a thin rim around a motif, so that it stands out on any cloth."""
    grown = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (13, 13)))
    rim = np.full_like(image, color)
    return np.where(mask[..., None] > 127, image, rim), grown


def _contrasting(*colors: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the gray (light, medium or dark) that contrasts most with all of the colours."""
    gray = max((240, 130, 25), key=lambda gray: min(abs(gray - sum(color) / 3) for color in colors))
    return gray, gray, gray


def _shape(name: str, rng: np.random.Generator, radius: float) -> list[np.ndarray]:
    """Return the polygons of a named shape, int32 [n, 2] pixels, centred in the motif."""
    turn = np.arange(96) * (2 * np.pi / 96)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    polygons: list[np.ndarray]
    match name:
        case "disc":
            polygons = [circle * (1.0, rng.uniform(0.6, 1.0))]
        case "ring":
            polygons = [
                np.concatenate([circle, circle[:1], circle[:1] * 0.6, (circle * rng.uniform(0.45, 0.65))[::-1]])
            ]
        case "star":
            points = int(rng.integers(4, 9))
            angles = np.arange(2 * points) * np.pi / points - np.pi / 2
            radii = np.where(np.arange(2 * points) % 2, rng.uniform(0.35, 0.6), 1.0)
            polygons = [np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]]
        case "triangle":
            angles = np.arange(3) * 2 * np.pi / 3 - np.pi / 2 + (np.pi if rng.uniform() < 0.4 else 0)
            polygons = [np.stack([np.cos(angles), np.sin(angles)], 1)]
        case "heart":
            xy = np.stack(
                [16 * np.sin(turn) ** 3, -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn))], 1
            )
            polygons = [xy / 17]
        case "cross":
            arm = rng.uniform(0.18, 0.36)
            bar = np.array([[-1, -arm], [1, -arm], [1, arm], [-1, arm]])
            polygons = [bar, bar[:, ::-1]]
        case "bolt":
            polygons = [
                np.array([[0.1, -1], [-0.6, 0.15], [-0.05, 0.1], [-0.2, 1], [0.6, -0.25], [0.05, -0.2], [0.45, -1]])
            ]
        case "flower":
            petals = int(rng.integers(3, 8))
            polygons = [circle * (0.62 + 0.38 * np.cos(petals * turn))[:, None]]
        case "crescent":
            cut = circle[::-1] * 0.8 + (rng.uniform(0.25, 0.45), 0)
            outside = np.hypot(*cut.T) < 1.0
            polygons = [np.concatenate([circle[20:77], cut[outside]])]
        case "arrow":
            polygons = [np.array([[0, -1], [0.8, -0.1], [0.3, -0.1], [0.3, 1], [-0.3, 1], [-0.3, -0.1], [-0.8, -0.1]])]
        case "grid":
            n = int(rng.integers(2, 4))
            steps = np.linspace(-1 + 1 / n, 1 - 1 / n, n)
            unit = circle if rng.uniform() < 0.5 else np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
            polygons = [unit * (0.7 / n) + (a, b) for a in steps for b in steps]
        case "letters":
            return _letters(rng)
        case _:
            raise ValueError(f"no shape is called {name!r}")
    angle = rng.uniform(-0.5, 0.5)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [np.round(polygon @ rotation.T * radius + MOTIF_SIDE / 2).astype(np.int32) for polygon in polygons]


def _letters(rng: np.random.Generator) -> list[np.ndarray]:
    """Return the outlines of two rows of two thick capital letters."""
    canvas = np.zeros((MOTIF_SIDE, MOTIF_SIDE), np.uint8)
    for row in range(2):
        text = "".join(rng.choice(list(string.ascii_uppercase), 2))
        cv2.putText(canvas, text, (14, 118 + 122 * row), cv2.FONT_HERSHEY_SIMPLEX, 4.9, 255, 22, cv2.LINE_AA)
    contours, _ = cv2.findContours((canvas > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0] for contour in contours]
