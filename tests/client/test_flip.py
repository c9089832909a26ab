import numpy as np

from livematch import Recognition
from livematch.flip import with_flip


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def test_a_box_takes_the_mean_with_its_mirrored_self():
    picture = np.zeros((50, 100, 3), np.uint8)
    picture[:, 0] = 255  # tells the picture from its mirror image
    upright = Recognition(
        np.array([[10, 0, 30, 40], [60, 0, 90, 40], [0, 45, 5, 50]], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.stack([unit(1, 0), unit(0, 1), unit(1, 1)]),
    )
    # Mirrored at 100: the first box is at 70..90, the second at 10..40; the third has nothing there.
    mirrored = Recognition(
        np.array([[12, 0, 41, 40], [70, 0, 90, 40]], np.float32),
        np.array([0.95, 0.6], np.float32),
        np.stack([unit(1, 0), unit(0, 1)]),
    )
    found = with_flip(lambda pixels: upright if pixels[0, 0, 0] == 255 else mirrored)(picture)
    assert np.array_equal(found.boxes, upright.boxes)
    assert np.array_equal(found.scores, upright.scores)
    assert np.allclose(found.embeddings, unit(1, 1))


def test_nothing_in_the_mirror_changes_nothing():
    box = Recognition(np.ones((1, 4), np.float32), np.ones(1, np.float32), unit(3, 4)[np.newaxis])
    none = Recognition(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 2), np.float32))
    answers = iter([box, none])
    assert with_flip(lambda _: next(answers))(np.zeros((2, 2, 3), np.uint8)) is box
