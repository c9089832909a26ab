from pathlib import Path

import numpy as np
import pytest

from benchmarks.baseline import agreement, cut, read_frame, run_baseline
from benchmarks.harness.eager import EagerNetworks
from export.config import demo
from livematch import Client, Features, LocalServer, read_frames
from training.embedder.templates import ASPECT_RATIOS


def test_crops_have_the_template_of_their_ratio() -> None:
    config = demo()
    image = np.arange(200 * 200 * 3, dtype=np.uint8).reshape(200, 200, 3)
    for ratio in ASPECT_RATIOS:
        width, height = config.templates[ratio]
        assert cut(image, [3.7, 4.2, 3.7 + 80 * ratio, 84.2], config).shape == (height, width, 3)
    assert cut(image, [5.0, 5.0, 5.2, 5.3], config).ndim == 3  # thinner than a pixel


@pytest.mark.triton
def test_both_ways_find_the_same(demo_world: Path, triton_server: LocalServer, tmp_path: Path) -> None:
    """The same boxes, and embeddings as near as two decoders' rounding lets them be."""
    networks = EagerNetworks(demo(), checkpoints=Path(__file__).parents[2] / "training" / "demo" / "checkpoints")
    clip = sorted((demo_world / "video").glob("*.mp4"))[0]
    frames = range(80, 160, 40)
    found = run_baseline(networks, [clip], frames, tmp_path)
    assert {"detections.json", "embedder_b7.json", "features.json"} <= {path.name for path in tmp_path.iterdir()}
    with Client(triton_server.url) as client:
        recognitions = [(index, client.recognize_frame(pixels)) for index, pixels in read_frames(clip, frames)]
    features = Features(
        sources=[clip.stem for _, recognition in recognitions for _ in recognition.scores],
        names=["" for _, recognition in recognitions for _ in recognition.scores],
        frame_indices=np.array([index for index, found in recognitions for _ in found.scores], np.int32),
        boxes=np.concatenate([recognition.boxes for _, recognition in recognitions]),
        scores=np.concatenate([recognition.scores for _, recognition in recognitions]),
        embeddings=np.concatenate([recognition.embeddings for _, recognition in recognitions]),
        model_identity="demo",
    )
    alike = agreement(found["rows"], features)
    assert alike["num_same_boxes"] >= 1
    assert abs(alike["num_baseline_boxes"] - alike["num_same_boxes"]) <= 1
    assert alike["min_cosine"] > 0.98


def test_a_frame_is_the_one_asked_for(demo_world: Path) -> None:
    clip = sorted((demo_world / "video").glob("*.mp4"))[0]
    for index, pixels in read_frames(clip, [80, 220]):
        difference = np.abs(read_frame(clip, index).astype(int) - pixels)
        assert difference.mean() < 3
    with pytest.raises(ValueError, match="has no frame 4000"):
        read_frame(clip, 4000)
