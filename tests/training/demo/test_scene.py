import numpy as np
import pytest

from training.demo.designs import random_design
from training.demo.scene import Layer, Pose, Scene
from training.demo.sprites import SCALE, Sprite, flatten, garment_sprite, paint


def block(color: tuple[int, int, int], left: int, top: int, width: int, height: int) -> Sprite:
    """An opaque rectangle, in body pixels."""
    side = round(height * SCALE), round(width * SCALE)
    return Sprite(np.full((*side, 4), (*color, 255), np.uint8), round(left * SCALE), round(top * SCALE))


def test_paint_blends_premultiplied_colors() -> None:
    target = np.full((1, 1, 3), 200, np.uint8)
    paint(target, np.array([[[50, 0, 0, 128]]], np.uint8))
    assert target[0, 0].tolist() == pytest.approx([50 + 200 * 127 / 255, 200 * 127 / 255, 200 * 127 / 255], abs=1)


def test_pose_maps_the_pivot_and_scales() -> None:
    pose = Pose(x=100, y=50, scale=2.0, pivot=(240, 400))
    assert (pose.matrix() @ (240, 400, 1)).tolist() == [100, 50, 1]
    assert (pose.matrix() @ (250, 395, 1)).tolist() == [120, 40, 1]


def test_turned_figure_is_narrower_and_its_near_side_taller() -> None:
    matrix = Pose(x=0, y=0, scale=1.0, pivot=(0, 0), yaw=0.5).matrix()

    def project(x: float, y: float) -> np.ndarray:
        point = matrix @ (x, y, 1)
        return point[:2] / point[2]

    assert project(100, 0)[0] < 100 * np.cos(0.5) < -project(-100, 0)[0]
    assert project(-100, 100)[1] > 100 > project(100, 100)[1]


def test_annotation_is_the_box_of_what_can_be_seen() -> None:
    scene = Scene.on(np.zeros((200, 200, 3), np.uint8))
    pose = Pose(x=0, y=0, scale=1.0, pivot=(0, 0))
    scene.draw([Layer(block((0, 0, 255), 20, 30, 100, 80), "短裙", 7, 1)], pose)
    scene.draw([Layer(block((255, 0, 0), 0, 0, 60, 200))], pose)  # hides the left 40 columns
    (annotation,) = scene.annotations()
    assert annotation.instance_id == 7 and annotation.display == 1 and annotation.viewpoint == 0
    assert np.abs(np.array(annotation.box) - (60, 30, 120, 110)).max() <= 1
    assert scene.image[50, 100].tolist() == [0, 0, 255] and scene.image[50, 40].tolist() == [255, 0, 0]


def test_what_is_mostly_hidden_is_not_annotated() -> None:
    scene = Scene.on(np.zeros((200, 200, 3), np.uint8))
    pose = Pose(x=0, y=0, scale=1.0, pivot=(0, 0))
    scene.draw([Layer(block((0, 0, 255), 20, 30, 100, 80), "短裙", 7)], pose)
    scene.draw([Layer(block((255, 0, 0), 0, 0, 95, 200))], pose)
    assert scene.annotations() == []


def test_boxes_stay_inside_the_picture() -> None:
    scene = Scene.on(np.zeros((200, 200, 3), np.uint8))
    scene.draw([Layer(block((0, 0, 255), -30, 100, 100, 150), "短裙", 7)], Pose(x=0, y=0, scale=1.0, pivot=(0, 0)))
    x0, y0, x1, y1 = scene.annotations()[0].box
    assert (x0, y1) == (0, 200) and abs(x1 - 70) <= 1 and abs(y0 - 100) <= 1


def test_flatten_looks_like_drawing_one_after_the_other() -> None:
    first, second = block((0, 0, 255), 0, 0, 40, 40), block((255, 0, 0), 20, 10, 40, 40)
    flat = flatten([first, second])
    assert (flat.left, flat.top) == (0, 0)
    assert flat.pixels[30, 15].tolist() == [0, 0, 255, 255]
    assert flat.pixels[30, 45].tolist() == [255, 0, 0, 255]
    assert flat.pixels[0, -1].tolist() == [0, 0, 0, 0]


def test_a_garment_looks_like_itself_with_other_folds() -> None:
    design = random_design(np.random.default_rng(4))
    first, again, other = (garment_sprite(design, seed, worn=False) for seed in (1, 1, 2))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.pixels.shape != other.pixels.shape or not np.array_equal(first.pixels, other.pixels)
    assert abs(first.pixels[..., 3].mean() - other.pixels[..., 3].mean()) < 20
