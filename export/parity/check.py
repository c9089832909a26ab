"""Check that an ONNX file matches its PyTorch source numerically, at sizes that were not traced."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.onnx.files import precision_of
from export.parity import compare
from export.parity.compare import Arrays, Detections, DetectorLimits, ParityError, Report
from export.parity.inputs import Images, detector_batches, smooth_images
from export.parity.reference import crop, detectron2_detector, graph_detector, pad, prepare
from export.signature import CROP, PREPARE, Signature, detector_signature, embedder_signature
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig


def open_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    """Return a function that runs an ONNX file on the CPU: inputs by name to outputs by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


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
    sizes: Iterable[tuple[int, int]],
    batch_sizes: Sequence[int] = (1, 2, 3, 4),
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
    crop_size: tuple[int, int] | None = None,
) -> Report:
    """Compare the embeddings of random crops with PyTorch's.

    Args:
        path: the ONNX file; the limit depends on its precision.
        sizes: height and width of the crops, one batch each.
        batch_sizes: the number of crops in each batch; repeated if there are more sizes.
        crop_size: the only (height, width) that the file takes, None if it takes any.

    The other arguments, and the errors besides ParityError, are those of `build_embedder`.
    """
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    check_signature(path, embedder_signature(embedder.config.embedding_size, crop_size))
    run = open_onnx(path)
    largest, cosine = 0.0, 1.0
    for (height, width), num_crops in zip(sizes, cycle(batch_sizes), strict=False):
        crops = _random_crops(height, width, num_crops)
        found = run({"crops": crops})["embedding"]
        mean, std = (np.array(values, np.float32) for values in (embedder.config.mean, embedder.config.std))
        pixels = torch.from_numpy((crops - mean) / std).permute(0, 3, 1, 2)
        with torch.inference_mode():
            expected = functional.normalize(embedder(pixels)).numpy()
        # np.maximum and np.minimum keep NaN, which then fails the check
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
        cosine = float(np.minimum(cosine, (found * expected).sum(axis=1).min()))
    if precision_of(path) == "fp32":
        compare.require_at_most(compare.MAX_EMBEDDING_DIFFERENCE, largest, "largest difference of embedding", path)
    else:
        compare.require_at_most(1 - compare.MIN_EMBEDDING_COSINE, 1 - cosine, "1 - cosine of embedding", path)
    return {"max_embedding_difference": largest, "min_embedding_cosine": cosine}


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
