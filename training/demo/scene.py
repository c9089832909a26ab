"""Compose sprites to an image, and annotate the visible box of each garment; backgrounds and light."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from livematch.media.annotations import Annotation
from training.demo.sprites import SCALE, Sprite, paint
from training.demo.textures import smooth_noise

FOCAL_LENGTH = 1600.0
"""Distance of the camera in body pixels; it determines how strongly a turned figure is foreshortened."""

MIN_VISIBLE_FRACTION = 0.3
MIN_SIDE_PX = 24
"""A garment of which less is visible is not annotated, as in the data set."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Position, size and rotation of a sprite in a scene."""

    x: float  # scene pixels, position of the pivot
    y: float
    scale: float  # scene pixels per body pixel
    pivot: tuple[float, float] = (240.0, 400.0)  # body pixels
    yaw: float = 0.0  # radians around the vertical axis; positive shows the figure's left
    roll: float = 0.0  # radians in the image plane

    def matrix(self) -> np.ndarray:
        """Return the homography, float64 [3, 3], from body pixels to scene pixels."""
        to_pivot = np.array([[1, 0, -self.pivot[0]], [0, 1, -self.pivot[1]], [0, 0, 1]])
        turn = np.array([[np.cos(self.yaw), 0, 0], [0, 1, 0], [np.sin(self.yaw) / FOCAL_LENGTH, 0, 1]])
        cosine, sine = self.scale * np.cos(self.roll), self.scale * np.sin(self.roll)
        place = np.array([[cosine, -sine, self.x], [sine, cosine, self.y], [0, 0, 1]])
        matrix: np.ndarray = place @ turn @ to_pivot
        return matrix


@dataclass(frozen=True)
class Layer:
    """A sprite and its annotation. If `label` is None it is not a garment, but still hides what is behind it."""

    sprite: Sprite
    label: str | None = None
    instance_id: int = 0
    display: int = 0


@dataclass
class Scene:
    """An image to draw into, which keeps track of the garment that each pixel shows."""

    image: np.ndarray  # uint8 [H, W, 3] BGR
    owners: np.ndarray  # int16 [H, W]: index into `drawn`, plus 1, of the garment in front; 0: none
    drawn: list[tuple[Layer, Pose, int]] = field(default_factory=list)  # and its area in pixels if nothing hid it

    @classmethod
    def on(cls, background: np.ndarray) -> "Scene":
        return cls(background.copy(), np.zeros(background.shape[:2], np.int16))

    def copy(self) -> "Scene":
        return Scene(self.image.copy(), self.owners.copy(), list(self.drawn))

    def draw(self, layers: Sequence[Layer], pose: Pose) -> None:
        """Draw layers in this order."""
        for layer in layers:
            placed = place(layer.sprite, pose, self.image.shape)
            if placed is None:
                continue
            region, pixels = placed
            paint(self.image[region], pixels)
            covered = pixels[:, :, 3] > 127
            owner = 0
            if layer.label is not None:
                self.drawn.append((layer, pose, _full_area(layer.sprite, pose)))
                owner = len(self.drawn)
            self.owners[region][covered] = owner

    def annotations(self) -> list[Annotation]:
        """Return the visible garments, with boxes around their visible pixels."""
        found = []
        for index, (layer, pose, area) in enumerate(self.drawn):
            visible = (self.owners == index + 1).astype(np.uint8)
            left, top, width, height = cv2.boundingRect(visible)
            if min(width, height) < MIN_SIDE_PX or cv2.countNonZero(visible) < MIN_VISIBLE_FRACTION * area:
                continue
            viewpoint = 0 if abs(pose.yaw) < 0.6 else 2 if pose.yaw > 0 else 3
            box = (left, top, left + width, top + height)
            assert layer.label is not None
            found.append(Annotation(layer.label, viewpoint, layer.display, layer.instance_id, box))
        return found


def place(sprite: Sprite, pose: Pose, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """Return the region of an image of `shape` that a posed sprite covers, and its pixels there; None if outside."""
    height, width = sprite.pixels.shape[:2]
    matrix = pose.matrix() @ np.array(
        [[1 / SCALE, 0, sprite.left / SCALE], [0, 1 / SCALE, sprite.top / SCALE], [0, 0, 1]]
    )
    corners = matrix @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], np.float64)
    xs, ys = corners[0] / corners[2], corners[1] / corners[2]
    x0, x1 = max(0, int(np.floor(xs.min()))), min(shape[1], int(np.ceil(xs.max())) + 1)
    y0, y1 = max(0, int(np.floor(ys.min()))), min(shape[0], int(np.ceil(ys.max())) + 1)
    if x1 <= x0 or y1 <= y0:
        return None
    matrix = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]]) @ matrix
    return (slice(y0, y1), slice(x0, x1)), cv2.warpPerspective(sprite.pixels, matrix, (x1 - x0, y1 - y0))


def _full_area(sprite: Sprite, pose: Pose) -> int:
    opaque = cv2.countNonZero((sprite.pixels[:, :, 3] > 127).astype(np.uint8))
    return round(float(opaque * (pose.scale / SCALE) ** 2 * np.cos(pose.yaw)))


def light_table(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return a lookup table, uint8 [256, 1, 3], for a random exposure, contrast and colour of the light."""
    gains = rng.uniform(1 - strength, 1 + strength) * rng.uniform(1 - 0.6 * strength, 1 + 0.6 * strength, 3)
    gamma = rng.uniform(1 - strength, 1 + strength)
    levels = (np.arange(256) / 255.0) ** gamma
    table: np.ndarray = np.clip(255 * levels[:, None, None] * gains, 0, 255).astype(np.uint8)
    return table


def room(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a random background, uint8 [H, W, 3] BGR: a plain or shaded wall, with or without furniture."""
    wall = np.array(rng.uniform(70, 245) + rng.uniform(-25, 25, 3))
    image: np.ndarray = np.empty((height, width, 3), np.float32)
    image[:] = wall + np.linspace(-1, 1, height)[:, None, None] * rng.uniform(-30, 30)
    if rng.uniform() < 0.6:
        image[round(height * rng.uniform(0.65, 0.9)) :] = rng.uniform(40, 200, 3)
        for _ in range(rng.integers(2, 8)):
            x, y = int(rng.uniform(-0.1, 1) * width), int(rng.uniform(0, 0.9) * height)
            corner = (x + int(rng.uniform(0.05, 0.3) * width), y + int(rng.uniform(0.05, 0.35) * height))
            color = tuple(float(c) for c in rng.uniform(20, 240, 3))
            if rng.uniform() < 0.7:
                cv2.rectangle(image, (x, y), corner, color, -1)
            else:
                cv2.circle(image, (x, y), int(rng.uniform(0.03, 0.12) * width), color, -1)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 9))
    image += rng.uniform(2, 9) * smooth_noise(rng, height, width, rng.uniform(40, 200))[..., None]
    pixels: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return pixels
