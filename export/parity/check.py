"""Checks that an ONNX file matches its PyTorch source numerically, at sizes that were not traced."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.onnx.files import precision_of
from export.parity.compare import (
    DETECTOR_LIMITS,
    MAX_CROP_DIFFERENCE,
    MAX_EMBEDDING_DIFFERENCE,
    MAX_MEAN_PIXELS_DIFFERENCE,
    MAX_PIXELS_DIFFERENCE,
    MIN_EMBEDDING_COSINE,
    MIN_MATCHED_SHARE_MADE_UP,
    Arrays,
    DetectorLimits,
    ParityError,
    Report,
    check_limit,
    compare_detections,
)
from export.parity.inputs import Pictures, demo_batches, smooth_images
from export.parity.reference import crop, detect_by_detectron2, detect_by_graph, pad, prepare
from export.signature import MODELS
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig


def run_onnx(path: Path, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def check_signature(path: Path, model: str) -> None:
    """Compares the names, dtypes and fixed dimensions of a file's tensors with export/signature.py."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtypes = {"FP32": "tensor(float)", "UINT8": "tensor(uint8)", "INT32": "tensor(int32)", "INT64": "tensor(int64)"}
    signature = MODELS[model]
    for expected, present in (
        (signature.inputs, session.get_inputs()),
        (signature.outputs, session.get_outputs()),
    ):
        wanted = {tensor.name: (dtypes[tensor.dtype], tensor.dims) for tensor in expected}
        found = {
            tensor.name: (tensor.type, tuple(-1 if isinstance(dim, str | None) else dim for dim in tensor.shape))
            for tensor in present
        }
        if wanted != found:
            raise ParityError(f"{path}: tensors {found} are not the signature's {wanted}")


def check_prepare(path: Path, config: PipelineConfig, kind: str) -> Report:
    check_signature(path, f"prepare_{kind}")
    largest = mean = 0.0
    for image in smooth_images():
        found = run_onnx(path, {"image": image})
        expected = prepare(image, config, kind)
        for name in ("image_size", "scale", "min_score"):
            if not np.array_equal(found[name], expected[name]):
                raise ParityError(f"{path}: {name} {found[name]} for image {image.shape} is not {expected[name]}")
        difference = np.abs(found["pixels"] - expected["pixels"])
        largest, mean = max(largest, float(difference.max())), max(mean, float(difference.mean()))
    check_limit(path, "largest difference of pixels", largest, MAX_PIXELS_DIFFERENCE)
    check_limit(path, "mean difference of pixels", mean, MAX_MEAN_PIXELS_DIFFERENCE)
    return {"max_pixels_difference": largest, "mean_pixels_difference": mean}


def check_crop(path: Path) -> Report:
    check_signature(path, "crop")
    largest = 0
    for image in smooth_images():
        height, width = image.shape[1:3]
        boxes = np.array([[0, 0, width, height], [1, 1, 3, 4], [width - 1, height - 1, width, height]], np.int32)
        for size in ((40, 160), (116, 116), (33, 17)):
            feeds = {"image": image, "boxes": boxes, "size": np.array(size)}
            found = run_onnx(path, feeds)["crops"]
            largest = max(largest, int(np.abs(found.astype(int) - crop(**feeds)).max()))
    check_limit(path, "largest difference of crops", largest, MAX_CROP_DIFFERENCE)
    return {"max_crops_difference": largest}


def check_embedder(
    path: Path,
    checkpoint: Path | None,
    *,
    sizes: Iterable[tuple[int, int]],
    batch_sizes: Sequence[int] = (1, 2, 3, 4),
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
) -> Report:
    """`sizes` are (height, width) of crops, and each takes the next batch size in turn.

    Compares noise, a smooth picture, all black and all white, again and again until the batch is full.
    """
    check_signature(path, "embedder_b5a")
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    largest, cosine = 0.0, 1.0
    for (height, width), num_crops in zip(sizes, cycle(batch_sizes), strict=False):
        noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(noise[:4, :3]).resize((width, height)))
        kinds = cycle([noise, smooth, np.zeros_like(noise), np.full_like(noise, 255)])
        crops = np.stack(list(islice(kinds, num_crops)))
        found = run_onnx(path, {"crops": crops})["embedding"]
        pixels = (crops - np.float32(embedder.config.mean)) / np.float32(embedder.config.std)
        with torch.inference_mode():
            expected = functional.normalize(embedder(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()
        largest = float(np.maximum(largest, np.abs(found - expected).max()))  # NaN stays, and is in no limit
        cosine = float(np.minimum(cosine, (found * expected).sum(axis=1).min()))
    if precision_of(path) == "fp32":
        check_limit(path, "largest difference of embedding", largest, MAX_EMBEDDING_DIFFERENCE)
    else:
        check_limit(path, "1 - cosine of embedding", 1 - cosine, 1 - MIN_EMBEDDING_COSINE)
    return {"max_embedding_difference": largest, "min_embedding_cosine": cosine}


def check_detector(
    path: Path,
    checkpoint: Path | None,
    *,
    config: DetectorConfig | None = None,
    random_seed: int | None = None,
    backbone: str | None = None,
    batches: Iterable[Pictures] | None = None,
    reference: str = "graph",
    limits: DetectorLimits | None = None,
) -> Report:
    """Counts the detections that both sides have, image by image; errors are those of matched detections.

    A network that detects nothing cannot be compared, which is an error too.

    Args:
        batches: images to compare on, a batch each; by default photos of the demo world and noise, in true sizes that
            differ within a batch.
        reference: "detectron2" itself, or "graph" for the PyTorch graph that was exported.
        limits: by default those of the file's precision; random weights in half precision need only
            MIN_MATCHED_SHARE_MADE_UP.
    """
    check_signature(path, "detector")
    precision = precision_of(path)
    if limits is None:
        limits = DETECTOR_LIMITS[precision]
        if precision == "fp16" and random_seed is not None:
            limits = replace(limits, min_matched_share=MIN_MATCHED_SHARE_MADE_UP)
    graph = build_detector_graph(checkpoint, config=config, random_seed=random_seed, backbone=backbone)
    detect = {"detectron2": detect_by_detectron2, "graph": detect_by_graph}[reference](graph)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, num_matched, num_all = [], 0, 0
    for pictures in demo_batches() if batches is None else batches:
        pixels, image_size = pad(list(pictures.values()), graph.config)
        boxes, scores, counts = session.run(None, {"pixels": pixels.numpy(), "image_size": image_size.numpy()})
        for index, (name, expected) in enumerate(zip(pictures, detect(list(pictures.values())), strict=True)):
            count = int(counts[index, 0])
            found = torch.from_numpy(boxes[index, :count]), torch.from_numpy(scores[index, :count])
            matched, box_error, score_error = compare_detections(found, expected, limits)
            larger = max(count, len(expected[1]))
            images.append(
                {
                    "image": name,
                    "num_detections": count,
                    "num_expected": len(expected[1]),
                    "matched_share": matched / larger if larger else 1.0,
                    "max_box_error_px": box_error,
                    "max_score_error": score_error,
                }
            )
            num_matched, num_all = num_matched + matched, num_all + larger
    if not num_all:
        raise ParityError(f"{path}: nothing was detected in the pictures to compare on")
    share = num_matched / num_all
    check_limit(path, "share of detections not matched", 1 - share, 1 - limits.min_matched_share)
    return {
        "precision": precision,
        "reference": reference,
        "num_detections": num_all,
        "matched_share": share,
        "images": images,
    }
