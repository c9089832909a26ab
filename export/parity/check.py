"""Check that an ONNX file matches its PyTorch source numerically, at sizes that were not traced."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from export.parity.compare import (
    DETECTOR_LIMITS,
    MAX_CROP_DIFFERENCE,
    MAX_EMBEDDING_DIFFERENCE,
    MAX_MEAN_PIXELS_DIFFERENCE,
    MAX_PIXELS_DIFFERENCE,
    MIN_EMBEDDING_COSINE,
    MIN_MATCHED_FRACTION_RANDOM,
    Arrays,
    DetectorLimits,
    ParityError,
    Report,
    compare_detections,
    require_at_most,
)
from export.parity.inputs import Images, detector_batches, smooth_images
from export.parity.reference import Detect, crop, detectron2_detector, graph_detector, pad, prepare
from export.signature import MODELS
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig


def open_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    """Return a function that runs an ONNX file on the CPU: inputs by name to outputs by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def check_signature(path: Path, model: str) -> None:
    """Raise ParityError unless a file's tensors have the names, dtypes and fixed dimensions of `export.signature`."""
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
            raise ParityError(f"{path}: tensors are {found}, not {wanted} as in export/signature.py")


def check_prepare(path: Path, config: PipelineConfig, kind: str) -> Report:
    """Compare the resized pixels with PyTorch's, and require equal sizes, scales and scores."""
    check_signature(path, f"prepare_{kind}")
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
    require_at_most(MAX_PIXELS_DIFFERENCE, largest, "largest difference of pixels", path)
    require_at_most(MAX_MEAN_PIXELS_DIFFERENCE, mean, "mean difference of pixels", path)
    return {"max_pixels_difference": largest, "mean_pixels_difference": mean}


def check_crop(path: Path) -> Report:
    """Compare the crops with PyTorch's."""
    check_signature(path, "crop")
    run = open_onnx(path)
    largest = 0
    for image in smooth_images():
        height, width = image.shape[1:3]
        boxes = np.array([[0, 0, width, height], [1, 1, 3, 4], [width - 1, height - 1, width, height]], np.int32)
        for size in ((40, 160), (116, 116), (33, 17)):
            feeds = {"image": image, "boxes": boxes, "size": np.array(size)}
            found = run(feeds)["crops"]
            largest = max(largest, int(np.abs(found.astype(int) - crop(**feeds)).max()))
    require_at_most(MAX_CROP_DIFFERENCE, largest, "largest difference of crops", path)
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
    """Compare the embeddings of random crops with PyTorch's.

    Args:
        path: the ONNX file; the limit depends on its precision.
        sizes: height and width of the crops, one batch each.
        batch_sizes: used one after the other, again from the first after the last.

    The other arguments, and the errors besides ParityError, are those of `build_embedder`.
    """
    check_signature(path, "embedder_b5a")
    run = open_onnx(path)
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    largest, cosine = 0.0, 1.0
    for (height, width), num_crops in zip(sizes, cycle(batch_sizes), strict=False):
        crops = _random_crops(height, width, num_crops)
        found = run({"crops": crops})["embedding"]
        mean, std = (np.array(values, np.float32) for values in (embedder.config.mean, embedder.config.std))
        pixels = torch.from_numpy((crops - mean) / std).permute(0, 3, 1, 2)
        with torch.inference_mode():
            expected = functional.normalize(embedder(pixels)).numpy()
        # np.maximum and np.minimum keep NaN, which no limit admits
        largest = float(np.maximum(largest, np.abs(found - expected).max()))
        cosine = float(np.minimum(cosine, (found * expected).sum(axis=1).min()))
    if precision_of(path) == "fp32":
        require_at_most(MAX_EMBEDDING_DIFFERENCE, largest, "largest difference of embedding", path)
    else:
        require_at_most(1 - MIN_EMBEDDING_COSINE, 1 - cosine, "1 - cosine of embedding", path)
    return {"max_embedding_difference": largest, "min_embedding_cosine": cosine}


def _random_crops(height: int, width: int, num_crops: int) -> np.ndarray[Any, Any]:
    """Return uint8 [num_crops, height, width, 3]: noise, a smooth image, black, white, and again."""
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
    """Count the detections that the file and its source have in common, image by image.

    Args:
        path: the ONNX file.
        batches: images to compare on, by default those of `detector_batches`.
        reference: "graph" for the PyTorch graph that was exported, or "detectron2" for its own model.
        limits: by default those of the file's precision; with random weights, half precision has to match only
            MIN_MATCHED_FRACTION_RANDOM.

    The other arguments are those of `build_detector_graph`.

    Returns:
        The fraction matched over all images, and for each image its counts and the largest errors of the matches.

    Raises:
        ParityError: too few detections match, or there are none to compare.
    """
    check_signature(path, "detector")
    precision = precision_of(path)
    if limits is None:
        limits = DETECTOR_LIMITS[precision]
        if precision == "fp16" and random_seed is not None:
            limits = replace(limits, min_matched_fraction=MIN_MATCHED_FRACTION_RANDOM)
    graph = build_detector_graph(checkpoint, config=config, random_seed=random_seed, backbone=backbone)
    detect = {"detectron2": detectron2_detector, "graph": graph_detector}[reference](graph)
    run = open_onnx(path)
    images, num_matched, num_all = [], 0, 0
    for batch in detector_batches() if batches is None else batches:
        for matched, larger, image in _compare_batch(run, detect, graph.config, batch, limits):
            images.append(image)
            num_matched, num_all = num_matched + matched, num_all + larger
    if not num_all:
        raise ParityError(f"{path}: nothing was detected in the images to compare on")
    fraction = num_matched / num_all
    require_at_most(1 - limits.min_matched_fraction, 1 - fraction, "fraction of detections not matched", path)
    return {
        "precision": precision,
        "reference": reference,
        "num_detections": num_all,
        "matched_share": fraction,
        "images": images,
    }


def _compare_batch(
    run: Callable[[Arrays], Arrays], detect: Detect, config: DetectorConfig, batch: Images, limits: DetectorLimits
) -> Iterator[tuple[int, int, Report]]:
    """Yield the matched detections, the larger of both counts, and the report of each image."""
    pixels, image_size = pad(list(batch.values()), config)
    outputs = run({"pixels": pixels.numpy(), "image_size": image_size.numpy()})
    for index, (name, expected) in enumerate(zip(batch, detect(list(batch.values())), strict=True)):
        count = int(outputs["num_detections"][index, 0])
        boxes, scores = (torch.from_numpy(outputs[output][index, :count]) for output in ("boxes", "scores"))
        matched, box_error, score_error = compare_detections((boxes, scores), expected, limits)
        larger = max(count, len(expected[1]))
        yield (
            matched,
            larger,
            {
                "image": name,
                "num_detections": count,
                "num_expected": len(expected[1]),
                "matched_share": matched / larger if larger else 1.0,
                "max_box_error_px": box_error,
                "max_score_error": score_error,
            },
        )
