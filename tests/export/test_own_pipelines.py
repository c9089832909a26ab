"""Pipelines with other numbers and kinds of embedders, from the pipeline file to features, against PyTorch."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import livematch
from export.build import build
from export.config import PipelineConfig, demo, load_pipeline
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.parity import reference
from livematch.local.local_server import LocalServer
from training.embedder.model import DEMO

pytestmark = pytest.mark.triton

SEED = 5
NUM_CLASSES = 4
EFFICIENTNET = {"backbone": "test_efficientnet", "backbone_options": DEMO["b6"].backbone_options}
RESNET = {"backbone": "resnet10t"}
SEVERAL = {
    "a": EFFICIENTNET | {"embedding_size": 128},
    "b": EFFICIENTNET | {"embedding_size": 64, "gem_learnable": True},
    "c": {"backbone": "test_resnet", "embedding_size": 96},
    "d": {"backbone": "test_convnext", "embedding_size": 256, "gem_p": 1.0},
    "e": {"backbone": "test_byobnet", "embedding_size": 32, "mean": (127.5,) * 3},
    "f": EFFICIENTNET | {"embedding_size": 448},
}


@pytest.mark.parametrize(
    ("crops", "embedders", "embedding_size"),
    [
        pytest.param("96x96", {"only": RESNET | {"embedding_size": 1536}}, 1536, id="1", marks=pytest.mark.slow),
        pytest.param("96x64", {"a": SEVERAL["b"], "b": RESNET | {"embedding_size": 192}}, 256, id="2"),
        pytest.param("XS", SEVERAL, 1024, id="6", marks=pytest.mark.slow),
    ],
)
def test_a_pipeline_with_other_embedders_is_served(
    crops: str, embedders: dict[str, Any], embedding_size: int, tmp_path: Path
) -> None:
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    config = write_pipeline(tmp_path / "mine.json", crops, embedders)
    build(config, tmp_path / "repository", random_seed=SEED)
    pixels = np.random.default_rng(2).integers(0, 256, (9, 6, 3), np.uint8).repeat(50, axis=0).repeat(50, axis=1)
    photo = tmp_path / "images" / "item" / "1.png"
    photo.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(photo)
    with LocalServer(tmp_path / "repository") as server, livematch.Client(server.url) as client:
        assert client.embedding_size == embedding_size and client.model_identity.startswith("mine-")
        assert client.class_names == ("hat", "shirt", "skirt", "shoe")
        found = client.recognize_image(photo)
        livematch.embed_images(client, tmp_path / "images", tmp_path / "features.parquet")
    features = livematch.read_features(tmp_path / "features.parquet")
    np.testing.assert_array_equal(features.embeddings, found.embeddings)
    assert features.labels == found.labels.tolist() == expected_labels(config, pixels)
    assert len(set(features.labels)) > 1
    for box, embedding in zip(found.boxes, found.embeddings, strict=True):
        assert float(torch.from_numpy(embedding.copy()) @ expected_embedding(config, pixels, box)) > 0.99999


def write_pipeline(path: Path, crops: str, embedders: dict[str, Any]) -> PipelineConfig:
    """Write and read the demo's pipeline with other crops and embedders, and a detector of NUM_CLASSES classes."""
    detector = replace(demo().detector_config, num_classes=NUM_CLASSES)
    image = replace(demo().image, min_score=0.6)  # untrained networks seldom score higher
    pipeline = replace(
        demo(), name="mine", detector=detector, class_names=("hat", "shirt", "skirt", "shoe"), image=image
    )
    values = dataclasses.asdict(pipeline) | {"crops": crops, "embedders": embedders}
    path.write_text(json.dumps(values))
    return load_pipeline(path)


def expected_labels(config: PipelineConfig, pixels: np.ndarray) -> list[str]:
    """Return the classes of the garments in uint8 [H,W,3], by the network in PyTorch."""
    prepared = reference.prepare(pixels[None], config, "image")
    detector = build_detector_graph(None, config=config.detector_config, random_seed=SEED)
    with torch.inference_mode():
        _, scores, _, labels = detector(*(torch.from_numpy(prepared[name]) for name in ("pixels", "image_size")))
    return [config.labels[label] for label in labels[0, scores[0] > config.image.min_score]]


def expected_embedding(config: PipelineConfig, pixels: np.ndarray, box: np.ndarray) -> torch.Tensor:
    """Return the embedding of one box of uint8 [H,W,3], by the networks in PyTorch."""
    x0, y0, x1, y1 = box.astype(np.int32)
    ratio = min(config.templates, key=lambda ratio: abs(ratio - (x1 - x0) / (y1 - y0)))
    crop = reference.crop(pixels[None], np.array([[x0, y0, x1, y1]]), np.array(config.templates[ratio]))
    parts = []
    for position, embedder in enumerate(config.embedder_models.values(), start=1):
        network = build_embedder(None, config=embedder, random_seed=SEED + position)
        normalised = (crop - np.float32(embedder.mean)) / np.float32(embedder.std)
        with torch.inference_mode():
            parts.append(functional.normalize(network(torch.from_numpy(normalised).permute(0, 3, 1, 2)))[0])
    return functional.normalize(torch.cat(parts), dim=0)
