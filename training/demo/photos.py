"""Product photos: 800 × 800 pixels, the product alone or worn, with varying angles, backgrounds and light."""

from collections.abc import Sequence

import cv2
import numpy as np

from livematch.media.annotations import Annotation
from training.demo.designs import DRESSES, SKIRTS, TOPS, TROUSERS, Design, random_design
from training.demo.scene import Layer, Pose, Scene, light_table, room
from training.demo.sprites import flatten, garment_sprite, mannequin_sprite

SIDE_PX = 800


def garment_layers(
    designs: Sequence[Design], ids: Sequence[int], rng: np.random.Generator, *, worn: bool
) -> list[Layer]:
    """Return the garments in drawing order, each with its own random folds.

    Skirts and trousers are drawn before tops and dresses. Garments that are not for sale (instance id 0) are drawn
    before all others, so that they do not cover what is for sale.
    """
    pairs = sorted(zip(designs, ids, strict=True), key=lambda pair: (pair[1] > 0, pair[0].is_upper or pair[0].is_dress))
    return [
        Layer(garment_sprite(design, int(rng.integers(1 << 31)), worn=worn), design.kind, instance_id, int(worn))
        for design, instance_id in pairs
    ]


def dressed_layers(designs: Sequence[Design], ids: Sequence[int], rng: np.random.Generator) -> list[Layer]:
    """Return a mannequin wearing the garments; random garments of instance id 0 complete the outfit."""
    designs, ids = list(designs), list(ids)
    if not any(design.is_dress for design in designs):
        if not any(design.is_upper for design in designs):
            designs, ids = [*designs, random_design(rng, TOPS)], [*ids, 0]
        if not any(design.kind in SKIRTS + TROUSERS for design in designs):
            designs, ids = [*designs, random_design(rng, SKIRTS + TROUSERS)], [*ids, 0]
    skin = random_skin(rng)
    shade = round(rng.uniform(15, 120))
    mannequin = mannequin_sprite(skin, (shade, shade, round(shade * 1.2)))
    return [Layer(mannequin), *garment_layers(designs, ids, rng, worn=True)]


def random_outfit(rng: np.random.Generator) -> list[Design]:
    if rng.uniform() < 0.25:
        return [random_design(rng, DRESSES)]
    return [random_design(rng, TOPS), random_design(rng, SKIRTS + TROUSERS)]


def random_skin(rng: np.random.Generator) -> tuple[int, int, int]:
    tone = rng.uniform(90, 235)
    return round(tone * 0.78), round(tone * 0.88), round(tone)


def draw_photo(
    designs: Sequence[Design], ids: Sequence[int], index: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Annotation]]:
    """Draw one photo of an item.

    Args:
        designs: the item's garments.
        ids: their instance ids.
        index: number of the photo: photo 0 is plain, photos 2 and 3 are worn, the others are random.
        rng: decides everything else.

    Returns:
        uint8 [800, 800, 3] BGR, and the annotations.
    """
    plain = index == 0 or rng.uniform() < 0.3
    if plain:
        background = np.full((SIDE_PX, SIDE_PX, 3), rng.uniform(215, 255), np.uint8)
    else:
        background = room(rng, SIDE_PX, SIDE_PX)
    scene = Scene.on(background)
    worn = index in (2, 3) or (index > 4 and rng.uniform() < 0.5)
    turned = 0.2 if index in (0, 2) else 0.75
    layers = dressed_layers(designs, ids, rng) if worn else garment_layers(designs, ids, rng, worn=False)
    subject = flatten([layer.sprite for layer in layers if layer.instance_id])
    fill = rng.uniform(0.62, 0.86) if not worn else rng.uniform(0.5, 0.72)
    across = subject.pixels.shape[1] / subject.pixels.shape[0] * subject.height
    pose = Pose(
        x=SIDE_PX * rng.uniform(0.46, 0.54),
        y=SIDE_PX * rng.uniform(0.47, 0.53),
        scale=fill * SIDE_PX / max(subject.height, across),
        pivot=subject.center,
        yaw=rng.uniform(-turned, turned),
        roll=rng.uniform(-0.12, 0.12) if not worn else rng.uniform(-0.04, 0.04),
    )
    if not worn:  # a soft shadow on the wall
        shadow = Scene.on(np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8))
        shadow.draw(layers, pose)
        weight = cv2.blur(cv2.blur((shadow.owners > 0).astype(np.float32), (25, 25)), (25, 25))
        weight = np.roll(weight, (10, 8), (0, 1))[..., None]
        scene.image = (scene.image * (1 - 0.35 * weight)).astype(np.uint8)
    scene.draw(layers, pose)
    image = cv2.LUT(scene.image, light_table(rng, 0.12))
    if index and rng.uniform() < 0.3:
        _banner(image, rng)
    return image, scene.annotations()


def _banner(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a shop's banner with a few words along the upper or lower edge."""
    y = int(rng.choice([0, SIDE_PX - 70]))
    cv2.rectangle(image, (0, y), (SIDE_PX, y + 70), tuple(float(c) for c in rng.uniform(0, 255, 3)), -1)
    words = str(rng.choice(["NEW IN", "SALE 50%", "FREE SHIPPING", "BEST SELLER", "LIMITED"]))
    cv2.putText(image, words, (int(rng.uniform(20, 420)), y + 50), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255, 255, 255), 3)
