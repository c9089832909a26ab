"""The ensembles on a real server with the networks of handmade.py; the tests calculate every number they expect."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import livematch
from export.config import PipelineConfig
from livematch.local.local_server import LocalServer
from tests.model_repository import handmade
from tests.model_repository.conftest import Infer
from tests.model_repository.malformed import GRPC, Malformed, detections, send
from training.embedder.templates import nearest_template

pytestmark = pytest.mark.triton


def expected_embedding(image: np.ndarray, box: np.ndarray, config: PipelineConfig) -> np.ndarray:
    """Return [2048] for a box x0 y0 x1 y1, from cv2 and handmade.py's definition of the embedders."""
    height, width = image.shape[1:3]
    x0, y0 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    x1, y1 = max(int(box[2]), x0 + 1), max(int(box[3]), y0 + 1)
    template = list(config.templates.values())[nearest_template(x1 - x0, y1 - y0)]
    crop = cv2.resize(image[0, y0:y1, x0:x1], template, interpolation=cv2.INTER_LINEAR)
    parts = []
    for position in range(4):
        part = np.zeros(512)
        part[:6] = [*crop.mean(axis=(0, 1)), template[1], template[0], 100 * (position + 1)]
        parts.append(part / np.linalg.norm(part))
    return np.concatenate(parts) / 2


def check(
    answer: dict[str, np.ndarray], row: int, image: np.ndarray, num_detections: int, config: PipelineConfig
) -> None:
    """Compare row `row` of a response with the values expected for `image`."""
    height, width = image.shape[1:3]
    boxes = handmade.unit_boxes()[:num_detections] * [width, height, width, height]
    assert answer["num_detections"][row].tolist() == [num_detections]
    found = answer["boxes"][row, :num_detections]
    np.testing.assert_allclose(found, boxes, atol=1e-3)
    np.testing.assert_allclose(answer["scores"][row, :num_detections], handmade.scores()[:num_detections])
    assert answer["labels"][row, :num_detections].tolist() == list(range(num_detections))
    for box, embedding in zip(found, answer["embeddings"][row], strict=False):
        np.testing.assert_allclose(embedding, expected_embedding(image, box, config), atol=3e-3)
    for name in ("boxes", "scores", "labels", "embeddings"):
        assert not answer[name][row, num_detections:].any()


@pytest.mark.parametrize("num_detections", [0, 1, 3, 95])
@pytest.mark.parametrize("model", ["recognize_image", "recognize_frame"])
def test_counts(infer: Infer, config: PipelineConfig, model: str, num_detections: int) -> None:
    image = handmade.make_image(num_detections, seed=num_detections)
    answer = infer(model, image=image)
    assert answer["boxes"].shape == (1, num_detections, 4)
    assert answer["embeddings"].shape == (1, num_detections, 2048)
    check(answer, 0, image, num_detections, config)


def test_no_detections_call_no_embedder(infer: Infer, handmade_server: LocalServer) -> None:
    with triton.InferenceServerClient(handmade_server.url) as client:

        def num_inferences() -> int:
            statistics = client.get_inference_statistics("embedder_b5a")
            return statistics.model_stats[0].inference_count

        before = num_inferences()
        infer("recognize_image", image=handmade.make_image(0))
        assert num_inferences() == before
        infer("recognize_image", image=handmade.make_image(2))
        assert num_inferences() == before + 2


def test_images_of_one_request_are_padded_to_the_largest_count(infer: Infer, config: PipelineConfig) -> None:
    images = [handmade.make_image(count, seed=count) for count in (2, 0, 5)]
    answer = infer("recognize_frame", image=np.concatenate(images))
    assert answer["boxes"].shape == (3, 5, 4)
    for row, (image, count) in enumerate(zip(images, (2, 0, 5), strict=True)):
        check(answer, row, image, count, config)


def test_the_client_names_the_classes(handmade_server: LocalServer, config: PipelineConfig) -> None:
    with livematch.Client(handmade_server.url) as client:
        assert client.class_names == config.class_names
        found = client.recognize_image(handmade.make_image(3)[0])
        assert found.labels.tolist() == ["class 0", "class 1", "class 2"]
        assert [detection.label for detection in found] == found.labels.tolist()
        nothing = client.recognize_image(handmade.make_image(0)[0])
        assert nothing.labels.shape == (0,) and not list(nothing)


def test_wider_crops_leave_the_boxes(handmade_server: LocalServer, config: PipelineConfig) -> None:
    image = handmade.make_image(3)
    with livematch.Client(handmade_server.url, crop_scale=1.2) as client:
        found = client.recognize_image(image[0])
    boxes = handmade.unit_boxes()[:3] * [240, 320, 240, 320]
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    margins = 0.1 * (boxes[:, 2:] - boxes[:, :2])
    wider = np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + margins], axis=1).clip(0, [240, 320, 240, 320])
    for box, embedding in zip(wider, found.embeddings, strict=True):
        np.testing.assert_allclose(embedding, expected_embedding(image, box, config), atol=3e-3)


def test_a_request_may_set_the_minimum_score(handmade_server: LocalServer, infer: Infer) -> None:
    image = handmade.make_image(3)[0]
    for min_score, expected in ((None, 3), (0.5, 3 + handmade.NUM_WEAK), (0.9989, 1), (1, 0)):
        with livematch.Client(handmade_server.url, min_score=min_score) as client:
            assert len(client.recognize_image(image)) == expected
    tensor = triton.InferInput("image", (1, *image.shape), "UINT8")
    tensor.set_data_from_numpy(image[np.newaxis])
    with (
        triton.InferenceServerClient(handmade_server.url) as client,
        pytest.raises(InferenceServerException, match=r"crop_and_embed: min_score is 1\.5, not from 0 to 1"),
    ):
        client.infer("recognize_image", [tensor], parameters={"min_score": "1.5"})


@pytest.mark.parametrize(("height", "width"), [(7, 300), (640, 33), (1, 1), (1000, 1504)])
def test_unusual_sizes(infer: Infer, config: PipelineConfig, height: int, width: int) -> None:
    image = handmade.make_image(4, height, width)
    check(infer("recognize_image", image=image), 0, image, 4, config)


def test_clients_at_once_get_their_own_answers(infer: Infer, config: PipelineConfig) -> None:
    images = [handmade.make_image(seed % 5, 100 + 37 * seed, 400 - 23 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: infer("recognize_frame", image=image), images))
    for seed, (image, answer) in enumerate(zip(images, answers, strict=True)):
        check(answer, 0, image, seed % 5, config)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "'image' data-type is 'FP32'.* expects 'UINT8'"),
        (np.zeros((8, 8, 3), np.uint8), "unexpected shape for input 'image'"),
        (np.zeros((1, 8, 8, 4), np.uint8), "unexpected shape for input 'image'"),
        (np.zeros((9, 8, 8, 3), np.uint8), "batch-size must be <= 8"),
        (np.zeros((1, 0, 0, 3), np.uint8), r"image sides must be 1 to 8192 pixels.*image \[1, 0, 0, 3\]"),
        (np.zeros((1, 8193, 2, 3), np.uint8), r"image sides must be 1 to 8192 pixels.*image \[1, 8193, 2, 3\]"),
    ],
    ids=["dtype", "rank", "channels", "batch", "empty", "too large"],
)
def test_bad_image_is_refused_and_the_next_one_served(
    infer: Infer, config: PipelineConfig, image: np.ndarray, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refusal:
        infer("recognize_image", image=image)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"
    good = handmade.make_image(1)
    check(infer("recognize_image", image=good), 0, good, 1, config)


def test_a_refused_image_leaves_its_neighbours_alone(infer: Infer, config: PipelineConfig) -> None:
    good, bad = handmade.make_image(3), np.zeros((1, 9000, 2, 3), np.uint8)

    def ask(image: np.ndarray) -> dict[str, np.ndarray] | InferenceServerException:
        try:
            return infer("recognize_image", image=image)
        except InferenceServerException as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [good, bad] * 6))
    for answer in answers[::2]:
        check(answer, 0, good, 3, config)
    assert all("9000" in str(answer) for answer in answers[1::2])


def test_a_broken_detectors_boxes_are_named_and_spare_their_neighbours(handmade_server: LocalServer) -> None:
    """Requests sent directly to crop_and_embed, which collects them into batches."""
    rng = random.Random(5)
    good = Malformed("good", detections(rng), "", "crop_and_embed")
    bad = Malformed("bad", detections(rng, box=(1, 2, np.nan, 4)), "", "crop_and_embed")

    def ask(request: Malformed) -> str:
        try:
            return send(request, GRPC, handmade_server.url)
        except AssertionError as answer:
            return str(answer)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, [good, bad] * 8))
    assert outcomes[::2] == ["good was answered"] * 8
    assert outcomes[1::2] == ["crop_and_embed: boxes has [1.0, 2.0, nan, 4.0], which is not finite numbers"] * 8


def test_an_embedding_that_is_not_finite_is_named(handmade_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(handmade_repository, tmp_path / "repository")
    onnx.save(handmade.build_embedder(1, unit=np.nan), repository / "embedder_b5b" / "1" / "model.onnx")
    with LocalServer(repository) as server, livematch.Client(server.url) as client:
        assert len(client.recognize_image(handmade.make_image(0)[0])) == 0
        with pytest.raises(livematch.RequestError, match="crop_and_embed: embedding of embedder_b5b is not finite"):
            client.recognize_image(handmade.make_image(2)[0])


def test_an_embedding_may_be_zero_for_some_embedders_but_not_for_all(
    handmade_repository: Path, config: PipelineConfig, tmp_path: Path
) -> None:
    repository = shutil.copytree(handmade_repository, tmp_path / "repository")
    models = list(config.embedder_models)
    for model in models[1:]:
        onnx.save(handmade.build_zero_embedder(), repository / model / "1" / "model.onnx")
    with LocalServer(repository) as server, livematch.Client(server.url) as client:
        embeddings = client.recognize_image(handmade.make_image(2)[0]).embeddings
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 1], atol=1e-5)
    onnx.save(handmade.build_zero_embedder(), repository / models[0] / "1" / "model.onnx")
    with LocalServer(repository) as server, livematch.Client(server.url) as client:
        assert len(client.recognize_image(handmade.make_image(0)[0])) == 0
        with pytest.raises(livematch.RequestError, match="crop_and_embed: the embedding of a box is zero"):
            client.recognize_image(handmade.make_image(2)[0])


def test_a_failing_embedder_is_named_and_spares_images_without_detections(
    handmade_repository: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(handmade_repository, tmp_path / "repository")
    onnx.save(handmade.build_failing_embedder(on_black=False), repository / "embedder_b6" / "1" / "model.onnx")
    with LocalServer(repository) as server, livematch.Client(server.url) as client:
        assert client.model_identity == "handmade-0"
        with ThreadPoolExecutor(4) as pool:
            empty = [pool.submit(client.recognize_image, handmade.make_image(0)[0]) for _ in range(4)]
            full = [pool.submit(client.recognize_image, handmade.make_image(2)[0]) for _ in range(4)]
        assert [len(answer.result()) for answer in empty] == [0] * 4
        for answer in full:
            with pytest.raises(
                livematch.RequestError, match=r"crop_and_embed: embedding of embedder_b6: .*out of order"
            ):
                answer.result()


def test_a_model_that_fails_its_warm_up_keeps_the_server_from_starting(
    handmade_repository: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(handmade_repository, tmp_path / "repository")
    onnx.save(handmade.build_failing_embedder(on_black=True), repository / "embedder_b6" / "1" / "model.onnx")
    with pytest.raises(livematch.LocalServerError, match=r"^tritonserver .*out of order"):
        LocalServer(repository, log_path=tmp_path / "log").start()
