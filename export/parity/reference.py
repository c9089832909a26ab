"""Compute in PyTorch, or with detectron2 or a user's ONNX file itself, what the exported files must compute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from export.config import OnnxEmbedderSettings, PipelineConfig
from export.graphs.detector import DetectorGraph
from export.onnx.files import CANNOT_RUN, explain, open_session
from export.parity.compare import Arrays, Detections
from export.signature import PADDING_MULTIPLE
from training.detector.config import DetectorConfig
from training.embedder.model import Embedder, EmbedderConfig

Pixels = np.ndarray[Any, Any]

Embed = Callable[[Pixels], Pixels]
"""A function that maps crops uint8 [n, h, w, 3] RGB to unit vectors float32 [n, D]."""

Detect = Callable[[Sequence[torch.Tensor]], list[Detections]]
"""A function that detects objects in resized images, float32 [3, h, w] BGR, 0..255."""


def prepare(image: np.ndarray[Any, Any], config: PipelineConfig, kind: str) -> Arrays:
    """Return the outputs of `prepare_<kind>` for an image uint8 [1, H, W, 3], computed in PyTorch."""
    height, width = image.shape[1:3]
    short_side = config.kind(kind).short_side_px
    factor = short_side / min(height, width)
    sides = [short_side if side == min(height, width) else factor * side for side in (height, width)]
    if max(sides) > config.max_side_px:
        sides = [side * (config.max_side_px / max(sides)) for side in sides]
    new_height, new_width = (max(1, int(side + 0.5)) for side in sides)
    rgb = torch.from_numpy(image).permute(0, 3, 1, 2)
    resized = functional.interpolate(rgb, (new_height, new_width), mode="bilinear", antialias=True)
    pixels = normalize(resized.flip(1).float(), config.detector_config)
    padded = functional.pad(pixels, (0, -new_width % PADDING_MULTIPLE, 0, -new_height % PADDING_MULTIPLE))
    return {
        "pixels": padded.numpy(),
        "image_size": np.array([[new_height, new_width]], np.float32),
        "scale": np.array([[new_height / height, new_width / width]], np.float32),
        "min_score": np.array([[config.kind(kind).min_score]], np.float32),
    }


def normalize(image: torch.Tensor, config: DetectorConfig) -> torch.Tensor:
    """Return the pixels that the detector takes for BGR pixels float32 [..., 3, h, w] in 0..255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.pixel_mean_bgr, config.pixel_std_bgr))
    return (image - mean) / std


def crop(image: np.ndarray[Any, Any], boxes: np.ndarray[Any, Any], size: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the output of `crop`, uint8 [n, h, w, 3], for the inputs in `export.signature`, computed in PyTorch."""
    width, height = size.tolist()
    parts = [torch.from_numpy(image[:, y0:y1, x0:x1]).permute(0, 3, 1, 2).float() for x0, y0, x1, y1 in boxes.tolist()]
    resized = [functional.interpolate(part, (height, width), mode="bilinear") for part in parts]
    return torch.cat(resized).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def pad(images: Sequence[torch.Tensor], config: DetectorConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the detector's inputs for images [3, h, w]: pixels [B, 3, H, W] and image_size [B, 2]."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (-(-sizes.amax(dim=0) // PADDING_MULTIPLE) * PADDING_MULTIPLE).tolist()
    pixels = torch.zeros(len(images), 3, height, width)
    for target, image in zip(pixels, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = normalize(image, config)
    return pixels, sizes.float()


def graph_detector(graph: DetectorGraph) -> Detect:
    """Return a function that detects with the PyTorch graph."""

    @torch.inference_mode()
    def detect(images: Sequence[torch.Tensor]) -> list[Detections]:
        boxes, scores, counts, labels = graph(*pad(images, graph.config))
        return [
            (boxes[i, :count], scores[i, :count], labels[i, :count]) for i, count in enumerate(counts[:, 0].tolist())
        ]

    return detect


def detectron2_detector(graph: DetectorGraph) -> Detect:
    """Return a function that detects with detectron2's own model and the graph's weights."""
    from training.detector.model import build_detector  # detectron2 is optional

    model = build_detector(graph.config).eval()
    model.load_state_dict(graph.state_dict(), strict=True)

    @torch.inference_mode()
    def detect(images: Sequence[torch.Tensor]) -> list[Detections]:
        instances = model.inference([{"image": image} for image in images], do_postprocess=False)
        return [(found.pred_boxes.tensor, found.scores, found.pred_classes) for found in instances]

    return detect


def pytorch_embedder(embedder: Embedder) -> Embed:
    """Return a function that embeds with a network in PyTorch."""

    @torch.inference_mode()
    def embed(crops: Pixels) -> Pixels:
        embeddings: Pixels = functional.normalize(embedder(torch.from_numpy(_planes(crops, embedder.config)))).numpy()
        return embeddings

    return embed


def onnx_embedder(path: Path, settings: OnnxEmbedderSettings) -> Embed:
    """Return a function that embeds with the network in an ONNX file, as its author would run it in ONNX Runtime.

    It gets one crop at a time, repeated to a batch where the file takes only batches of one size. So a network whose
    result depends on the other crops of a batch does not match.
    """
    session = open_session(path)
    image = session.get_inputs()[0]
    output = settings.output or session.get_outputs()[0].name
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    dtype = np.float16 if image.type == "tensor(float16)" else np.float32

    def run(pixels: Pixels) -> Pixels:
        with explain(CANNOT_RUN, path):
            features: Pixels = session.run([output], {image.name: pixels})[0]
        return features

    def embed(crops: Pixels) -> Pixels:
        pixels = _planes(crops, settings).astype(dtype)
        features = np.concatenate([run(pixel[None].repeat(batch, axis=0))[:1] for pixel in pixels])
        embeddings: Pixels = functional.normalize(torch.from_numpy(features).float()).numpy()
        return embeddings

    return embed


def _planes(crops: Pixels, settings: EmbedderConfig | OnnxEmbedderSettings) -> Pixels:
    """Return the pixels that an embedder takes, float32 [n, 3, h, w]."""
    mean, std = (np.array(values, np.float32) for values in (settings.mean, settings.std))
    return np.ascontiguousarray(((crops - mean) / std).transpose(0, 3, 1, 2))
