"""Compare networks as they are served, on a GPU or in half precision, with float32 ONNX files on the CPU.

Both get garment photos and smooth noise at the sizes that occur in serving: the detector at those of photos and frames,
the embedders at every template. `python -m export.parity engines` runs the comparison.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from export.config import PipelineConfig, repository_pipeline
from export.parity import compare
from export.parity.compare import Arrays, Report
from export.parity.inputs import garment_photos, smooth_noise
from export.parity.reference import prepare
from export.parity.runners import Runner, open_runner
from export.tensorrt.library import EngineError

_LIMITS = compare.DETECTOR_LIMITS["fp16"]
_SIZES = (("image", 800, 800), ("image", 800, 1000), ("frame", 960, 540), ("frame", 540, 960))  # kind, height, width


def check_engines(engine: str, repository: Path, reference: Path) -> Report:
    """Compare all networks; "is_passed" in the report tells whether every limit holds.

    Args:
        engine: one of `export.parity.runners.RUNNERS`, which runs the networks in `repository`.
        repository: the model repository to check.
        reference: a repository of the same checkpoints in float32.

    Raises the errors of `open_runner`, and EngineError if a network fails to run.
    """
    config = repository_pipeline(repository)
    report: Report = {"engine": engine, "models": {}}
    for model in config.networks:
        found = open_runner(engine, repository, model, config)
        expected = open_runner("onnxruntime-cpu", reference, model, config)
        check = _check_detector if model == "detector" else _check_embedder
        try:
            report["models"][model] = check(found, expected, config)
        except RuntimeError as error:  # from PyTorch, for example for lack of GPU memory
            raise EngineError(f"{engine} failed on {model}: {error}") from error
    report["is_passed"] = all(part["is_passed"] for part in report["models"].values())
    return report


def detector_feeds(config: PipelineConfig) -> Iterator[Arrays]:
    """Yield inputs of the detector with two images each, or one if it admits no more: photos and noise of each size."""
    photos = garment_photos()
    max_batch = config.serving_of("detector").max_batch
    for index, (kind, height, width) in enumerate(_SIZES):
        first = 2 * (index % 2)
        for images in (photos[first : first + 2], smooth_noise(index).expand(2, -1, -1, -1)):
            resized = functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
            rgb = resized.flip(1).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            prepared = prepare(rgb.numpy(), config, kind)
            sizes = prepared["image_size"].repeat(2, axis=0)
            for chunk in (slice(0, 2),) if max_batch > 1 else (slice(0, 1), slice(1, 2)):
                yield {"pixels": prepared["pixels"][chunk], "image_size": sizes[chunk]}


def embedder_feeds(config: PipelineConfig) -> Iterator[Arrays]:
    """Yield crops of each template, at most a batch at once: middles of photos, smooth and white noise, and black."""
    max_batch = config.serving.embedder.max_batch
    middles = garment_photos()[:, :, 50:350, 100:300]
    for seed, (height, width) in enumerate(config.crop_sizes):
        parts = [middles, smooth_noise(seed)]
        smooth = torch.cat([functional.interpolate(part, (height, width), mode="bilinear") for part in parts])
        white = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
        crops = torch.cat([smooth, white, torch.zeros(1, 3, height, width)])
        pixels = crops.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for start in range(0, len(pixels), max_batch):
            yield {"crops": pixels[start : start + max_batch]}


def _check_detector(found: Runner, expected: Runner, config: PipelineConfig) -> Report:
    num_matched = num_all = 0
    for feeds in detector_feeds(config):
        outputs, expected_outputs = found(feeds), expected(feeds)
        for image in range(len(feeds["pixels"])):
            pair = compare.detections_of(outputs, image), compare.detections_of(expected_outputs, image)
            num_matched += compare.compare_detections(*pair, _LIMITS)[0]
            num_all += max(len(scores) for _, scores, _ in pair)
    fraction = num_matched / num_all if num_all else 0.0  # without detections there is no evidence
    is_passed = fraction >= _LIMITS.min_matched_fraction
    return {"num_detections": num_all, "matched_share": fraction, "is_passed": is_passed}


def _check_embedder(found: Runner, expected: Runner, config: PipelineConfig) -> Report:
    cosines = [
        (found(feeds)["embedding"] * expected(feeds)["embedding"]).sum(axis=1).min() for feeds in embedder_feeds(config)
    ]
    lowest = float(np.min(cosines))  # NaN if any is, which then fails the check
    return {"min_embedding_cosine": lowest, "is_passed": lowest >= compare.MIN_EMBEDDING_COSINE}
