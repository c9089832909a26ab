from pathlib import Path

import numpy as np
import pytest

from benchmarks.baseline import agreement, crop_to_template, run_baseline
from benchmarks.harness.eager import EagerNetworks
from export.config import demo
from livematch import Client, Features, LocalServer, read_frames
from training.embedder.templates import ASPECT_RATIOS


def test_boxes_are_the_same_from_an_overlap_of_nine_tenths_on() -> None:
    """Of the pipeline's two boxes in the frame, one overlaps by 95 %, the other by 80 %."""
    embedding = np.array([0.6, 0.8], np.float32)
    row = {"clip": "clips/a.mp4", "frame": 80, "box": [0.0, 0.0, 10.0, 20.0], "embedding": [0.0, 1.0]}
    features = Features(
        sources=["a", "a", "a"],
        names=[""] * 3,
        frame_indices=np.array([80, 80, 100], np.int32),
        boxes=np.array([[0, 0, 10, 16], [0, 0, 10, 19], [0, 0, 10, 20]], np.float32),
        scores=np.ones(3, np.float32),
        embeddings=np.stack([embedding[::-1], embedding, embedding]),
        model_identity="demo",
    )
    other_frame, far = {**row, "frame": 120}, {**row, "box": [50.0, 50.0, 60.0, 60.0]}
    found = agreement([row, other_frame, far], features)
    assert (found["num_baseline_boxes"], found["num_pipeline_boxes"], found["num_same_boxes"]) == (3, 3, 1)
    assert found["min_cosine"] == pytest.approx(0.8)


def test_crops_have_the_template_of_their_ratio() -> None:
    config = demo()
    image = np.arange(200 * 200 * 3, dtype=np.uint8).reshape(200, 200, 3)
    for ratio in ASPECT_RATIOS:
        width, height = config.templates[ratio]
        assert crop_to_template(image, [3.7, 4.2, 3.7 + 80 * ratio, 84.2], config).shape == (height, width, 3)
    assert crop_to_template(image, [5.0, 5.0, 5.2, 5.3], config).ndim == 3  # thinner than a pixel


@pytest.mark.triton
def test_baseline_and_pipeline_find_the_same(demo_world: Path, triton_server: LocalServer, tmp_path: Path) -> None:
    """The same boxes, and embeddings that differ only because the two video decoders round differently."""
    networks = EagerNetworks(demo(), checkpoints=Path(__file__).parents[2] / "training" / "demo" / "checkpoints")
    clip = sorted((demo_world / "video").glob("*.mp4"))[0]
    frames = range(80, 160, 40)
    _, rows = run_baseline(networks, [clip], frames, tmp_path)
    assert {"detections.json", "embedder_b7.json", "features.json"} <= {path.name for path in tmp_path.iterdir()}
    with Client(triton_server.url) as client:
        recognitions = [(index, client.recognize_frame(pixels)) for index, pixels in read_frames(clip, frames)]
    features = Features(
        sources=[clip.stem for _, recognition in recognitions for _ in recognition.scores],
        names=["" for _, recognition in recognitions for _ in recognition.scores],
        frame_indices=np.array([index for index, recognition in recognitions for _ in recognition.scores], np.int32),
        boxes=np.concatenate([recognition.boxes for _, recognition in recognitions]),
        scores=np.concatenate([recognition.scores for _, recognition in recognitions]),
        embeddings=np.concatenate([recognition.embeddings for _, recognition in recognitions]),
        model_identity="demo",
    )
    alike = agreement(rows, features)
    assert alike["num_same_boxes"] >= 1
    assert abs(alike["num_baseline_boxes"] - alike["num_same_boxes"]) <= 1
    assert alike["min_cosine"] > 0.98
