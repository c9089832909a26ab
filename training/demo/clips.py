"""Live clips: 540 × 960 pixels, 400 frames at 25 frames per second, H.264.

A host shows a garment: holds it up, wears it, and turns around. The host also wears other clothes, other garments hang
in the background, and the user interface of a live stream covers parts of the image. A clip may show several items,
one after the other. In 35 % of these stretches the garment does not appear in the first frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from livematch.media.annotations import Annotation
from training.demo.designs import Design, random_design
from training.demo.photos import dressed_layers, garment_layers, random_outfit, random_skin
from training.demo.scene import Layer, Pose, Scene, light_table, place, room
from training.demo.sprites import SCALE, Sprite, flatten, hands_sprite, hanger_sprite, paint

WIDTH_PX, HEIGHT_PX = 540, 960
NUM_FRAMES, FRAMES_PER_SECOND = 400, 25
ANNOTATED_FRAMES = range(0, NUM_FRAMES, 40)
NOISE_LEVEL = 12


@dataclass(frozen=True)
class Wave:
    """A slow oscillation: mean + reach · sin(2π frame / period + phase)."""

    mean: float
    reach: float
    period: float  # frames
    phase: float

    @classmethod
    def random(cls, rng: np.random.Generator, mean: float, reach: float) -> "Wave":
        return cls(mean, reach, float(rng.uniform(60, 170)), float(rng.uniform(0, 2 * np.pi)))

    def at(self, frame: int) -> float:
        return self.mean + self.reach * float(np.sin(2 * np.pi * frame / self.period + self.phase))


class Showing:
    """The script of one stretch of a clip, frames `start` to `stop` - 1, in which the host shows one item.

    The item's garments are there from frame `begin` on.
    """

    def __init__(self, designs: Sequence[Design], ids: Sequence[int], frames: range, rng: np.random.Generator) -> None:
        self.start, self.stop = frames.start, frames.stop
        self.worn = dressed_layers(designs, ids, rng)
        self.held = garment_layers(designs, ids, rng, worn=False)
        if designs[0].is_upper or designs[0].is_dress:
            self.held.insert(0, Layer(hanger_sprite()))
        self.held.append(Layer(hands_sprite(random_skin(rng), self.held[-1].sprite)))
        self.flat = {id(layers): _flat(layers) for layers in (self.worn, self.held)}
        pause = rng.uniform(50, 175) if rng.uniform() < 0.35 else 0  # of a whole clip, shorter in a part of one
        self.begin = frames.start + int(pause * (len(frames) / NUM_FRAMES))
        self.change = int(rng.uniform(0.35, 0.65) * (self.stop - self.begin)) + self.begin
        self.hold_first = bool(rng.uniform() < 0.5)
        size = rng.uniform(0.78, 1.1)
        self.x = Wave.random(rng, WIDTH_PX * rng.uniform(0.45, 0.55), rng.uniform(10, 45))
        self.y = Wave.random(rng, HEIGHT_PX * rng.uniform(0.50, 0.56), rng.uniform(2, 14))
        self.scale = Wave.random(rng, size, 0.12 * size)
        self.yaw = Wave.random(rng, rng.uniform(-0.15, 0.15), rng.uniform(0.3, 0.9))
        self.roll = Wave.random(rng, 0.0, rng.uniform(0.01, 0.05))
        self.held_x = Wave.random(rng, rng.uniform(-30, 30), rng.uniform(15, 50))
        self.held_y = Wave.random(rng, rng.uniform(-60, 10), rng.uniform(5, 25))
        height = self.flat[id(self.held)].height
        nearer = min(1.5, max(1.0, 300 / height))  # small garments are held closer to the camera
        self.held_scale = rng.uniform(0.85, 1.1) * nearer * min(1.0, 620 / height)

    def parts(self, frame: int, own: list[Layer]) -> list[tuple[list[Layer], Pose]]:
        """Return what is in front of the background in a frame, from back to front; `own`: the host in own clothes."""
        body = Pose(
            x=self.x.at(frame),
            y=self.y.at(frame),
            scale=self.scale.at(frame),
            yaw=self.yaw.at(frame),
            roll=self.roll.at(frame),
        )
        if frame < self.begin:
            return [(own, body)]
        if (frame < self.change) != self.hold_first:
            return [(self.worn, body)]
        held = Pose(
            x=body.x + self.held_x.at(frame),
            y=body.y + self.held_y.at(frame),
            scale=body.scale * self.held_scale,
            pivot=self.flat[id(self.held)].center,
            yaw=0.8 * self.yaw.at(frame + 30),
            roll=3 * body.roll,
        )
        return [(own, body), (self.held, held)]


class Clip:
    """The script of one clip, from which `frame` draws any frame.

    Args:
        items: the designs and instance ids of each item, in the order in which the clip shows them. Each gets an equal
            stretch of the clip; studio, light and the host's own clothes stay the same.
        rng: decides everything else.
    """

    def __init__(self, items: Sequence[tuple[Sequence[Design], Sequence[int]]], rng: np.random.Generator) -> None:
        self.background = _studio(rng)
        own = random_outfit(rng)
        self.own = dressed_layers(own, [0] * len(own), rng)
        self.flat = {id(self.own): _flat(self.own)}
        self.showings = []
        for index, (designs, ids) in enumerate(items):
            stretch = range(NUM_FRAMES * index // len(items), NUM_FRAMES * (index + 1) // len(items))
            self.showings.append(Showing(designs, ids, stretch, rng))
            self.flat |= self.showings[-1].flat
        self.light = light_table(rng, 0.2)
        grain = rng.standard_normal((HEIGHT_PX + 64, WIDTH_PX + 64, 3), np.float32)
        self.noise = (NOISE_LEVEL + rng.uniform(1, 3) * grain).astype(np.uint8)
        levels = np.clip(np.arange(256) - NOISE_LEVEL, 0, 255)
        self.light = self.light[levels]  # subtracts the mean of the noise again
        self.overlays = [_interface(np.random.default_rng([int(rng.integers(1 << 31)), i])) for i in range(4)]

    def frame(self, frame: int) -> np.ndarray:
        """Draw a frame, uint8 [960, 540, 3] BGR."""
        image = self.background.image.copy()
        showing = self._showing(frame)
        now, before = (showing.parts(index, self.own) for index in (frame, max(frame - 1, showing.start)))
        for (layers, pose), (_, earlier) in zip(now, before, strict=False):
            _paint_moving(image, self.flat[id(layers)], pose, earlier)
        return self._through_camera(image, frame)

    def annotations(self, frame: int) -> list[Annotation]:
        scene = self.background.copy()
        for layers, pose in self._showing(frame).parts(frame, self.own):
            scene.draw(layers, pose)
        return scene.annotations()

    def _showing(self, frame: int) -> Showing:
        return next(showing for showing in self.showings if frame < showing.stop)

    def _through_camera(self, image: np.ndarray, frame: int) -> np.ndarray:
        x, y = 29 * frame % 64, 37 * frame % 64  # the same noise, shifted in each frame
        image = cv2.LUT(cv2.add(image, self.noise[y : y + HEIGHT_PX, x : x + WIDTH_PX]), self.light)
        for region, pixels in self.overlays[frame // 60 % len(self.overlays)]:
            paint(image[region], pixels)
        return image


def write_clip(path: Path, clip: Clip, rng: np.random.Generator, *, render_every: int = 1) -> None:
    """Encode the clip as H.264. With `render_every` n, only every n-th frame is drawn, and repeated n times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {
            "preset": "veryfast",
            "crf": str(int(rng.integers(24, 33))),
            "tune": "fastdecode",
            # Without it, x264 uses AVX-512, and gives other bytes in each run and wrong pixels at the right edge.
            "x264-params": "cpu-independent=1",
        }
        frame = None
        for index in range(NUM_FRAMES):
            if index % render_every == 0:
                frame = av.VideoFrame.from_ndarray(clip.frame(index), format="bgr24").reformat(format="yuv420p")
            assert frame is not None
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _paint_moving(image: np.ndarray, sprite: Sprite, pose: Pose, earlier: Pose) -> None:
    """Draw a sprite with motion blur over half its movement since the previous frame (a shutter angle of 180°)."""
    placed = place(sprite, pose, image.shape)
    if placed is None:
        return
    region, pixels = placed
    kernel = round(abs(pose.x - earlier.x)) // 2 + 1, round(abs(pose.y - earlier.y)) // 2 + 1
    paint(image[region], cv2.blur(pixels, kernel) if max(kernel) > 1 else pixels)


def _flat(layers: Sequence[Layer]) -> Sprite:
    return flatten([layer.sprite for layer in layers])


def _studio(rng: np.random.Generator) -> Scene:
    """Return a room, often with a rack of other garments, which are not the ones shown (instance id 0)."""
    scene = Scene.on(room(rng, HEIGHT_PX, WIDTH_PX))
    if rng.uniform() < 0.65:
        y = int(rng.uniform(150, 260))
        cv2.line(scene.image, (0, y), (WIDTH_PX, y), tuple(float(c) for c in rng.uniform(40, 160, 3)), 6)
        for x in rng.choice([30, 100, 440, 510], int(rng.integers(1, 4)), replace=False):
            design = random_design(rng)
            layers = garment_layers([design], [0], rng, worn=False)
            top = layers[0].sprite.top / SCALE
            scene.draw(layers, Pose(x=float(x), y=float(y), scale=rng.uniform(0.36, 0.5), pivot=(240.0, top - 12)))
    return scene


Overlay = list[tuple[tuple[slice, slice], np.ndarray]]


def _interface(rng: np.random.Generator) -> Overlay:
    """Draw the user interface of a live stream: host and viewer count, comments, a product card, hearts.

    Returns the regions of the frame that it covers and their pixels, premultiplied BGRA.
    """
    canvas = np.zeros((HEIGHT_PX, WIDTH_PX, 4), np.uint8)
    _panel(canvas, (14, 40), (220, 88), (40, 40, 40, 150))
    cv2.putText(canvas, "LIVE", (26, 74), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255, 255), 2, cv2.LINE_AA)
    cv2.putText(canvas, f"{rng.integers(1, 90)}k", (120, 74), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (220, 220, 220, 255), 2)
    for row in range(int(rng.integers(2, 5))):
        y = HEIGHT_PX - 70 - 46 * row
        _panel(canvas, (14, y - 28), (14 + int(rng.uniform(110, 270)), y + 8), (20, 20, 20, 110))
        text = " ".join("".join(rng.choice(list("abcdefghiklmnoprstu"), int(rng.integers(2, 6)))) for _ in range(2))
        cv2.putText(canvas, text, (24, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (235, 235, 235, 255), 1, cv2.LINE_AA)
    _panel(canvas, (400, 830), (526, 940), (250, 250, 250, 255))
    cv2.putText(canvas, f"Y{rng.integers(19, 399)}", (414, 922), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (60, 60, 230, 255), 2)
    for _ in range(int(rng.integers(0, 5))):
        center = int(rng.uniform(470, 525)), int(rng.uniform(560, 820))
        cv2.circle(canvas, center, int(rng.uniform(6, 14)), (140, 90, 255, 255), -1, cv2.LINE_AA)
    rows = (np.s_[36:92, 10:224], np.s_[550:960, 396:540], np.s_[740:960, 10:290])
    return [(region, canvas[region].copy()) for region in rows]


def _panel(canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], bgra: tuple[int, int, int, int]) -> None:
    alpha = bgra[3] / 255
    cv2.rectangle(canvas, start, end, (bgra[0] * alpha, bgra[1] * alpha, bgra[2] * alpha, bgra[3]), -1)
