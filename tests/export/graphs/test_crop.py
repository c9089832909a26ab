from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from export.graphs.crop import build_crop
from export.parity.check import check_crop, check_signature
from export.parity.reference import crop
from export.signature import CROP

HEIGHT, WIDTH = 173, 131
BOXES = np.array(
    [[0, 0, WIDTH, HEIGHT], [5, 7, 6, 8], [20, 30, 120, 60], [130, 0, 131, 173], [0, 172, 131, 173], [60, 60, 63, 150]],
    np.int32,
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(build_crop().SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("size", [(290, 290), (100, 400), (160, 80), (1, 1), (7, 300)])
def test_equals_cv2(session: onnxruntime.InferenceSession, image: np.ndarray, size: tuple[int, int]) -> None:
    crops = session.run(None, {"image": image, "boxes": BOXES, "size": np.array(size)})[0]
    for (x0, y0, x1, y1), found in zip(BOXES, crops, strict=True):
        expected = cv2.resize(image[0, y0:y1, x0:x1], size, interpolation=cv2.INTER_LINEAR)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_equals_pytorch(session: onnxruntime.InferenceSession, image: np.ndarray) -> None:
    feeds = {"image": image, "boxes": BOXES, "size": np.array([33, 65])}
    difference = np.abs(session.run(None, feeds)[0].astype(int) - crop(**feeds))
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_does_not_look_past_the_box(session: onnxruntime.InferenceSession) -> None:
    image = np.zeros((1, 20, 20, 3), np.uint8)
    image[:, 5:10, 5:10] = 200
    crops = session.run(
        None, {"image": image, "boxes": np.array([[5, 5, 10, 10]], np.int32), "size": np.array([64, 64])}
    )
    assert (crops[0] == 200).all()


def test_no_boxes(session: onnxruntime.InferenceSession, image: np.ndarray) -> None:
    crops = session.run(None, {"image": image, "boxes": np.empty((0, 4), np.int32), "size": np.array([8, 9])})[0]
    assert crops.shape == (0, 9, 8, 3)


def test_file_passes_its_own_checks(tmp_path: Path) -> None:
    onnx.save(build_crop(), tmp_path / "crop.onnx")
    check_signature(tmp_path / "crop.onnx", CROP)
    assert check_crop(tmp_path / "crop.onnx")["max_crops_difference"] <= 1
