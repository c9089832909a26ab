"""Check that an ONNX file matches its source numerically, at sizes that were not traced."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from export.config import OnnxEmbedderConfig, PipelineConfig
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.onnx.files import open_onnx, precision_of
from export.parity import compare
from export.parity.compare import Detections, DetectorLimits, ParityError, Report
from export.parity.inputs import Images, detector_batches, smooth_images
from export.parity.reference import (
    Embed,
    crop,
    detectron2_detector,
    graph_detector,
    onnx_embedder,
    pad,
    prepare,
    pytorch_embedder,
)
from export.signature import CROP, PREPARE, Signature, detector_signature, embedder_signature
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig


def check_signature(path: Path, signature: Signature) -> None:
    """Raise ParityError unless a file's tensors have the names, dtypes and fixed dimensions of a signature."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    dtypes = {"FP32": "tensor(float)", "UINT8": "tensor(uint8)", "INT32": "tensor(int32)", "INT64": "tensor(int64)"}
    sides = (signature.inputs, session.get_inputs()), (signature.outputs, session.get_outputs())
    for declared, present in sides:
        expected = {tensor.name: (dtypes[tensor.dtype], tensor.dims) for tensor in declared}
        found = {
            tensor.name: (tensor.type, tuple(-1 if isinstance(dim, str | None) else dim for dim in tensor.shape))
            for tensor in present
        }
        if found != expected:
            raise ParityError(f"{path}: tensors are {found}, not {expected} as in export/signature.py")


def check_prepare(path: Path, config: PipelineConfig, kind: str) -> Report:
    """Compare the pixels of `prepare_<kind>` with PyTorch's, and require equal sizes, scales and minimum scores.

    Returns the differences in grey levels. Raises ParityError if one exceeds its limit.
    """
    check_signature(path, PREPARE)
    run = open_onnx(path)
    largest = mean = 0.0
    for image in smooth_images():
        found = run({"image": image})
        expected = prepare(image, config, kind)
        for name in ("image_size", "scale", "min_score"):
            if not np.array_equal(found[name], expected[name]):
                raise ParityError(f"{path}: {name} {found[name]} for image {image.shape} is not {expected[name]}")
        difference = np.abs(found["pixels"] - expected["pixels"])
        largest, mean = max(largest, float(difference.max())), max(mean, float(difference.mean()))
    compare.require_at_most(compare.MAX_PIXELS_DIFFERENCE, largest, "largest difference of pixels", path)
    compare.require_at_most(compare.MAX_MEAN_PIXELS_DIFFERENCE, mean, "mean difference of pixels", path)
    return {"max_pixels_difference": largest, "mean_pixels_difference": mean}


def check_crop(path: Path) -> Report:
    """Compare the crops with PyTorch's; returns the largest difference in grey levels, or raises ParityError."""
    check_signature(path, CROP)
    run = open_onnx(path)
    largest = 0
    for image in smooth_images():
        height, width = image.shape[1:3]
        boxes = np.array([[0, 0, width, height], [1, 1, 3, 4], [width - 1, height - 1, width, height]], np.int32)
        for size in ((40, 160), (116, 116), (33, 17)):
            feeds = {"image": image, "boxes": boxes, "size": np.array(size)}
            found = run(feeds)["crops"]
            largest = max(largest, int(np.abs(found.astype(int) - crop(**feeds)).max()))
    compare.require_at_most(compare.MAX_CROP_DIFFERENCE, largest, "largest difference of crops", path)
    return {"max_crops_difference": largest}


def check_embedder(
    path: Path,
    checkpoint: Path | None,
    *,
    sizes: Sequence[tuple[int, int]],
    batch_sizes: Sequence[int] = (1, 2, 3, 4),
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
    crop_size: tuple[int, int] | None = None,
) -> Report:
    """Compare the embeddings of random crops with PyTorch's.

    Args:
        path: the ONNX file; the limit depends on its precision.
        sizes: height and width of the crops of a batch.
        batch_sizes: the number of crops of a batch; the shorter list of both is repeated.
        crop_size: the only (height, width) that the file takes, None if it takes any.

    The other arguments, and the errors besides ParityError, are those of `build_embedder`.
    """
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    check_signature(path, embedder_signature(embedder.config.embedding_size, crop_size))
    largest, cosine = _compare_embeddings(path, pytorch_embedder(embedder), sizes, batch_sizes)
    if precision_of(path) == "fp32":
        compare.require_at_most(compare.MAX_EMBEDDING_DIFFERENCE, largest, "largest difference of embedding", path)
    else:
        compare.require_at_most(1 - compare.MIN_EMBEDDING_COSINE, 1 - cosine, "1 - cosine of embedding", path)
    return {"max_embedding_difference": largest, "min_embedding_cosine": cosine}


def check_onnx_embedder(
    path: Path,
    source: Path,
    config: OnnxEmbedderConfig,
    *,
    sizes: Sequence[tuple[int, int]],
    batch_sizes: Sequence[int] = (1, 2, 3, 4),
    crop_size: tuple[int, int] | None = None,
) -> Report:
    """Compare the embeddings of a wrapped file with those of `source`, the file that it was made from.

    The other arguments are those of `check_embedder`. Raises ParityError, and ValueError if ONNX Runtime cannot run a
    file at one of the sizes.
    """
    check_signature(path, embedder_signature(config.embedding_size, crop_size))
    largest, cosine = _compare_embeddings(path, onnx_embedder(source, config), sizes, batch_sizes)
    compare.require_at_most(1 - compare.MIN_WRAPPED_COSINE, 1 - cosine, "1 - cosine of embedding", path)
    return {"max_embedding_difference": largest, "min_embedding_cosine": cosine}


def _compare_embeddings(
    path: Path, embed: Embed, sizes: Sequence[tuple[int, int]], batch_sizes: Sequence[int]
) -> tuple[float, float]:
    """Return the largest difference and the smallest cosine between a file's embeddings and those of `embed`."""
    run = open_onnx(path)
    largest, cosine = 0.0, 1.0
    num_batches = max(len(sizes), len(batch_sizes))
    for (height, width), num_crops in islice(zip(cycle(sizes), cycle(batch_sizes), strict=True), num_batches):
        crops = _random_crops(height, width, num_crops)
        expected, found = embed(crops), run({"crops": crops})["embedding"]
        if found.shape != expected.shape:
            raise ParityError(f"{path}: embedding of {crops.shape} is {found.shape}, must be {expected.shape}")
        # np.maximum and np.minimum keep NaN, which then fails the check
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
        # of unit vectors; for two zero vectors, which a network without biases returns for black, this is 1
        cosines = 1 - np.square(found - expected).sum(axis=1) / 2
        cosine = float(np.minimum(cosine, cosines.min()))
    return largest, cosine


def _random_crops(height: int, width: int, num_crops: int) -> np.ndarray[Any, Any]:
    """Return uint8 [num_crops, height, width, 3]: noise, a smooth image, black and white, repeated in this order."""
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:4, :3]).resize((width, height)))
    return np.stack(list(islice(cycle([noise, smooth, np.zeros_like(noise), np.full_like(noise, 255)]), num_crops)))


def check_detector(
    path: Path,
    checkpoint: Path | None,
    *,
    config: DetectorConfig | None = None,
    random_seed: int | None = None,
    backbone: str | None = None,
    batches: Iterable[Images] | None = None,
    reference: str = "graph",
    limits: DetectorLimits | None = None,
) -> Report:
    """Count, for each image, the detections that the file and its source have in common.

    Args:
        path: the ONNX file.
        batches: images to compare on, by default those of `detector_batches`.
        reference: "graph" for the PyTorch graph that was exported, or "detectron2" for detectron2's own model.
        limits: by default those of the file's precision; with random weights in half precision, only the
            fraction MIN_MATCHED_FRACTION_RANDOM of the detections must match.

    The other arguments are those of `build_detector_graph`.

    Returns:
        The fraction that matched over all images, and for each image the counts and the matches' largest errors.

    Raises:
        ParityError: too few detections match, there are none to compare, or `check_signature` fails.
    """
    precision = precision_of(path)
    if limits is None:
        limits = compare.DETECTOR_LIMITS[precision]
        if precision == "fp16" and random_seed is not None:
            limits = replace(limits, min_matched_fraction=compare.MIN_MATCHED_FRACTION_RANDOM)
    graph = build_detector_graph(checkpoint, config=config, random_seed=random_seed, backbone=backbone)
    check_signature(path, detector_signature(graph.config.max_detections))
    detect = {"detectron2": detectron2_detector, "graph": graph_detector}[reference](graph)
    run = open_onnx(path)
    images, num_matched, num_all = [], 0, 0
    for batch in detector_batches() if batches is None else batches:
        pixels, image_size = pad(list(batch.values()), graph.config)
        outputs = run({"pixels": pixels.numpy(), "image_size": image_size.numpy()})
        for index, (name, expected) in enumerate(zip(batch, detect(list(batch.values())), strict=True)):
            image = _compare_image(compare.detections_of(outputs, index), expected, limits)
            num_matched += image.pop("num_matched")
            num_all += max(image["num_detections"], image["num_expected"])
            images.append({"image": name, **image})
    if not num_all:
        raise ParityError(f"{path}: nothing was detected in the images to compare on")
    fraction = num_matched / num_all
    compare.require_at_most(1 - limits.min_matched_fraction, 1 - fraction, "fraction of detections not matched", path)
    report: Report = {"precision": precision, "reference": reference}
    return report | {"num_detections": num_all, "matched_share": fraction, "images": images}


def _compare_image(found: Detections, expected: Detections, limits: DetectorLimits) -> Report:
    num_matched, box_error, score_error = compare.compare_detections(found, expected, limits)
    num_detections, num_expected = len(found[1]), len(expected[1])
    larger = max(num_detections, num_expected)
    return {
        "num_matched": num_matched,
        "num_detections": num_detections,
        "num_expected": num_expected,
        "matched_share": num_matched / larger if larger else 1.0,
        "max_box_error_px": box_error,
        "max_score_error": score_error,
    }
