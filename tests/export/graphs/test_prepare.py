import dataclasses

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from export.config import PipelineConfig, demo, production
from export.graphs.prepare import build_prepare
from export.parity.reference import prepare


def session(config: PipelineConfig, kind: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # some tests below make a run fail
    graph = build_prepare(config, kind).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def photo(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: smooth random colours."""
    small = np.random.default_rng(height).integers(0, 256, (12, 9, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def detectron2_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Return the size by ResizeShortestEdge's rule, as documented."""
    scale = short_side * 1.0 / min(height, width)
    new_height, new_width = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_height, new_width) > max_side:
        scale = max_side * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [("frame", 960, 540), ("frame", 540, 960), ("image", 800, 800), ("image", 333, 1000), ("frame", 64, 48)],
)
def test_equals_pillow(kind: str, height: int, width: int) -> None:
    config = production()
    image = photo(height, width)
    pixels, image_size, scale, min_score = session(config, kind).run(None, {"image": image[None]})
    new_height, new_width = detectron2_size(height, width, config.kind(kind).short_side_px, 4000)
    resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
    expected = resized[..., ::-1].transpose(2, 0, 1) - np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    difference = np.abs(pixels[0, :, :new_height, :new_width] - expected)
    assert difference.max() <= 2.001 and difference.mean() < 0.02
    assert pixels.shape[2] % 32 == pixels.shape[3] % 32 == 0
    assert pixels.shape[2] - new_height < 32 and pixels.shape[3] - new_width < 32
    assert not pixels[0, :, new_height:].any() and not pixels[0, :, :, new_width:].any()
    assert image_size.tolist() == [[new_height, new_width]]
    np.testing.assert_allclose(scale, [[new_height / height, new_width / width]], rtol=1e-6)
    assert min_score.tolist() == [[np.float32(config.kind(kind).min_score)]]


def test_sizes_are_detectron2s_for_many_images() -> None:
    """Including sides that are halves before rounding, such as 607 × 1, or are capped by the longest side."""
    config = dataclasses.replace(demo(), max_side_px=400)
    run = session(config, "image").run
    random = np.random.default_rng(1)
    sizes = [*random.integers(1, 700, (60, 2)).tolist(), [64, 65], [640, 641], [256, 315], [128, 147], [5, 600]]
    for height, width in sizes:
        image_size = run(["image_size"], {"image": np.zeros((1, height, width, 3), np.uint8)})[0]
        expected = [max(1, side) for side in detectron2_size(height, width, 320, 400)]
        assert image_size[0].tolist() == expected, (height, width)


def test_equals_pytorch() -> None:
    image = photo(211, 123)[None]
    expected = prepare(image, demo(), "frame")
    names = list(expected)
    found = dict(zip(names, session(demo(), "frame").run(names, {"image": image}), strict=True))
    assert np.abs(found["pixels"] - expected["pixels"]).max() <= 1.001
    for name in ("image_size", "scale", "min_score"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_pixels_are_divided_by_the_standard_deviation_of_their_channel() -> None:
    std = (57.375, 57.12, 58.395)
    scaled = dataclasses.replace(demo(), detector=dataclasses.replace(demo().detector, pixel_std_bgr=std))
    image = photo(211, 123)[None]
    plain, found = (session(config, "image").run(["pixels"], {"image": image})[0] for config in (demo(), scaled))
    np.testing.assert_allclose(found * np.float32(std).reshape(3, 1, 1), plain, rtol=1e-5)
    assert np.abs(found - prepare(image, scaled, "image")["pixels"]).max() <= 1.001 / 57
    operators = [[node.op_type for node in build_prepare(config, "image").graph.node] for config in (demo(), scaled)]
    assert operators[1].count("Div") == operators[0].count("Div") + 1


def test_batch_is_the_same_as_one_by_one() -> None:
    images = np.stack([photo(90, 70), photo(90, 70)[::-1]])
    run = session(demo(), "image").run
    batch = run(None, {"image": images})
    for row in range(2):
        for whole, single in zip(batch, run(None, {"image": images[row : row + 1]}), strict=True):
            np.testing.assert_array_equal(whole[row], single[0])


@pytest.mark.parametrize("shape", [(1, 0, 0, 3), (1, 5, 0, 3), (1, 8193, 1, 3), (1, 1, 8193, 3)])
def test_refuses_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(Exception, match="image sides must be 1 to 8192 pixels"):
        session(production(), "image").run(None, {"image": np.zeros(shape, np.uint8)})


def test_largest_image_passes() -> None:
    outputs = session(demo(), "frame").run(["image_size"], {"image": np.zeros((1, 8192, 1, 3), np.uint8)})
    assert outputs[0].tolist() == [[4000, 1]]
