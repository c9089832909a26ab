from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.datasets.images import AnnotatedImage, BoxAnnotation
from training.detector.data import Batches, bgr_tensor, plan_batches, resize, resized_size
from training.detector.recipe import demo, stage2, stage3

pytestmark = pytest.mark.detectron2


def annotation(*box: int, class_id: int = 0) -> BoxAnnotation:
    return BoxAnnotation(box, class_id)


@pytest.mark.parametrize(
    ("size", "short_side", "max_side", "expected"),
    [
        ((960, 540), 256, 4000, (455, 256)),
        ((960, 540), 608, 4000, (1081, 608)),
        ((800, 800), 320, 4000, (320, 320)),
        ((100, 1000), 200, 800, (80, 800)),
    ],
)
def test_resized_size(size: tuple[int, int], short_side: int, max_side: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, short_side, max_side) == expected


def test_resized_size_is_detectron2s() -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    rng = np.random.default_rng(0)
    for height, width, short_side, max_side in rng.integers([20, 20, 200, 400], [2000, 2000, 800, 1400], (300, 4)):
        expected = ResizeShortestEdge.get_output_shape(int(height), int(width), int(short_side), int(max_side))
        assert resized_size(height, width, short_side, max_side) == expected


def test_plan_keeps_kinds_apart_and_sees_everything_each_epoch() -> None:
    kinds = [False] * 5 + [True] * 7
    plan = plan_batches(kinds, batch_size=3, iterations=10, rng=np.random.default_rng(0))
    assert len(plan) == 10
    assert all(len({kinds[i] for i in batch}) == 1 for batch in plan)
    assert sorted(chain(*plan[:5])) == list(range(12))
    assert sorted(chain(*plan[5:])) == list(range(12))
    assert plan == plan_batches(kinds, batch_size=3, iterations=10, rng=np.random.default_rng(0))


def test_channels_are_blue_green_red() -> None:
    assert bgr_tensor(np.array([[[1, 2, 3]]], np.uint8)).flatten().tolist() == [3, 2, 1]


def test_resize_takes_height_and_width() -> None:
    assert resize(np.zeros((10, 20, 3), np.uint8), (5, 40)).shape == (5, 40, 3)


def test_boxes_follow_the_garment_through_scale_and_flip(tmp_path: Path) -> None:
    import cv2

    pixels = np.zeros((200, 100, 3), np.uint8)
    pixels[40:120, 10:50] = 255
    cv2.imwrite(str(tmp_path / "0.png"), pixels)
    picture = AnnotatedImage(
        "1",
        "0",
        tmp_path / "0.png",
        None,
        (annotation(0, 0, 1, 1, class_id=1), annotation(10, 40, 50, 120, class_id=2)),
    )
    recipe = replace(demo(), iterations=8, batch_size=1)
    batches = Batches([picture], recipe, seed=3)
    sides = set()
    for inputs in (batches[i] for i in range(8)):
        image, instances = inputs[0]["image"], inputs[0]["instances"]
        height, width = image.shape[1:]
        assert instances.gt_classes.tolist() == [2]  # the other box is too small
        assert instances.image_size == (height, width)
        x0, y0, x1, y1 = instances.gt_boxes.tensor[0].round().int().tolist()
        assert image[:, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() == 255
        assert image[:, :, : x0 - 3].max() == 0 and image[:, :, x1 + 3 :].max() == 0
        assert image[:, : y0 - 3].max() == 0 and image[:, y1 + 3 :].max() == 0
        sides.add(x0 < width / 4)
    assert sides == {True, False}  # some were flipped, some not


def test_a_batch_depends_on_seed_and_iteration_only(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "0.png"), np.random.default_rng(0).integers(0, 255, (60, 50, 3)).astype(np.uint8))
    picture = AnnotatedImage("1", "0", tmp_path / "0.png", None, (annotation(5, 5, 40, 40),))
    recipe = replace(demo(), iterations=4, batch_size=1)
    first, again = Batches([picture], recipe, seed=1)[2][0], Batches([picture], recipe, seed=1)[2][0]
    assert first["image"].equal(again["image"])
    assert first["instances"].gt_boxes.tensor.equal(again["instances"].gt_boxes.tensor)


def test_stages_see_other_batches() -> None:
    """Stages 2 and 3 are alike in batch size and sizes; with one plan the third would repeat the second."""
    pictures = [AnnotatedImage("1", str(number), Path(), None, ()) for number in range(50)]
    plans = [Batches(pictures, replace(stage(), iterations=25), seed=0).plan for stage in (stage2, stage3)]
    assert plans[0] != plans[1]


def test_processes_share_what_one_would_see(tmp_path: Path) -> None:
    import cv2

    pictures = []
    for number in range(7):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.random.default_rng(number).integers(0, 255, (60, 50, 3)))
        pictures.append(AnnotatedImage("1", str(number), tmp_path / f"{number}.png", None, ()))
    recipe = replace(demo(), iterations=2, batch_size=4)
    whole = Batches(pictures, recipe, seed=1)
    shares = [Batches(pictures, recipe, seed=1, rank=rank, num_processes=2) for rank in range(2)]
    for iteration, sizes in enumerate([(4, 2, 2), (3, 2, 2)] if len(whole.plan[0]) == 4 else [(3, 2, 2), (4, 2, 2)]):
        batch, first, second = whole[iteration], shares[0][iteration], shares[1][iteration]
        assert (len(batch), len(first), len(second)) == sizes
        expected = [*batch, *batch[: 4 - len(batch)]]  # the epoch's last batch repeats its first picture
        assert all(a["image"].equal(b["image"]) for a, b in zip([*first, *second], expected, strict=True))


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 8 cannot be split evenly over 3"):
        Batches([AnnotatedImage("1", "0", Path(), None, ())], demo(), seed=0, num_processes=3)
