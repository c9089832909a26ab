"""Networks as they are served, on a GPU or in half precision, against float32 ONNX files on the CPU.

Both sides get pictures of the demo world and smooth noise, in the sizes that are served: photos and frames for the
detector, each template for the embedders. `python -m export.parity engines` runs it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from export.config import PipelineConfig
from export.parity.compare import DETECTOR_LIMITS, MIN_EMBEDDING_COSINE, Arrays, Report, compare_detections
from export.parity.inputs import noise, photos
from export.parity.reference import prepare
from export.parity.runners import Runner, UnavailableError, open_runner
from export.tensorrt.profiles import ENGINES

_LIMITS = DETECTOR_LIMITS["fp16"]
_SIZES = (("image", 800, 800), ("image", 800, 1000), ("frame", 960, 540), ("frame", 540, 960))  # kind, height, width


def check_engines(engine: str, repository: Path, reference: Path, config: PipelineConfig) -> Report:
    """Compares all networks; "is_passed" in the result says whether every limit holds.

    Args:
        engine: one of `export.parity.runners.RUNNERS`, for the networks in `repository`.
        reference: a repository of the same checkpoints in float32.

    The errors are those of `export.parity.runners.open_runner`.
    """
    report: Report = {"engine": engine, "models": {}}
    for model in ENGINES:
        found = open_runner(engine, repository, model, config)
        expected = open_runner("onnxruntime-cpu", reference, model, config)
        compare = _detector if model == "detector" else _embedder
        report["models"][model] = compare(found, expected, config)
    report["is_passed"] = all(part["is_passed"] for part in report["models"].values())
    return report


def run(engine: str, repository: Path, reference: Path, config: PipelineConfig) -> int:
    """Prints the report of `check_engines`; returns the exit code of `python -m export.parity`."""
    try:
        report = check_engines(engine, repository, reference, config)
    except UnavailableError as error:
        print(f"export.parity: {error}", file=sys.stderr)
        return 2
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"export.parity: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0 if report["is_passed"] else 1


def detector_feeds(config: PipelineConfig) -> Iterator[Arrays]:
    """Two pictures at a time: photos of the demo world, then noise."""
    for seed, (kind, height, width) in enumerate(_SIZES):
        for pictures in (photos(seed).float(), noise(seed).expand(2, -1, -1, -1)):
            resized = functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
            rgb = resized.flip(1).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            prepared = prepare(rgb.numpy(), config, kind)
            yield {"pixels": prepared["pixels"], "image_size": prepared["image_size"].repeat(2, axis=0)}


def embedder_feeds(config: PipelineConfig) -> Iterator[Arrays]:
    """For each template two cuts of a photo of the demo world, smooth noise, white noise and black."""
    for seed, (height, width) in enumerate(config.crop_sizes):
        parts = [photos(seed).float()[:, :, 100:700, 200:600], noise(seed)]
        smooth = torch.cat([functional.interpolate(part, (height, width), mode="bilinear") for part in parts])
        white = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
        crops = torch.cat([smooth, white, torch.zeros(1, 3, height, width)])
        yield {"crops": crops.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()}


def _detector(found: Runner, expected: Runner, config: PipelineConfig) -> Report:
    num_matched = num_all = 0
    for feeds in detector_feeds(config):
        sides = [found(feeds), expected(feeds)]
        for image in range(len(feeds["pixels"])):
            detected = []
            for side in sides:
                count = int(side["num_detections"][image, 0])
                detected.append(tuple(torch.from_numpy(side[name][image, :count]) for name in ("boxes", "scores")))
            num_matched += compare_detections(detected[0], detected[1], _LIMITS)[0]
            num_all += max(len(scores) for _, scores in detected)
    share = num_matched / num_all if num_all else 0.0  # nothing detected proves nothing
    return {"num_detections": num_all, "matched_share": share, "is_passed": share >= _LIMITS.min_matched_share}


def _embedder(found: Runner, expected: Runner, config: PipelineConfig) -> Report:
    cosines = [
        (found(feeds)["embedding"] * expected(feeds)["embedding"]).sum(axis=1).min() for feeds in embedder_feeds(config)
    ]
    lowest = float(np.min(cosines))  # NaN stays, and passes no limit
    return {"min_embedding_cosine": lowest, "is_passed": lowest >= MIN_EMBEDDING_COSINE}
