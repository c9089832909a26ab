"""Is an ONNX file the same function as its PyTorch source? Compared on sizes that were not traced, with fixed limits.

python -m export.parity detector --onnx model.onnx --checkpoint detector.pth --images DIR
python -m export.parity embedder --onnx model.onnx --checkpoint embedder_b6.pth
python -m export.parity prepare_frame --onnx model.onnx --config demo
python -m export.parity engines --engine tensorrt --repository DIR --reference FLOAT32_DIR     # all networks

A half precision file is known by its weights and has limits of its own; the reference is always computed in float32.
Prints one JSON line with what was measured; exit code 1 if a limit is passed, 2 where an engine or its GPU is missing.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional
from torchvision.ops import box_iou

from export.config import CONFIGS, PipelineConfig
from export.detector import build_detector_graph
from export.detector_graph import DetectorGraph
from export.embedder import build_embedder
from export.onnx_files import precision_of
from export.parity_pictures import Pictures, demo_batches, smooth_images
from export.runners import RUNNERS
from export.signature import MODELS, PADDING_MULTIPLE
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig

Report = dict[str, Any]
Detected = list[tuple[torch.Tensor, torch.Tensor]]  # of each image: boxes float32 [n, 4], scores float32 [n]
Arrays = dict[str, np.ndarray]

MAX_CROP_DIFFERENCE = 1  # grey levels
MAX_PIXELS_DIFFERENCE = 3
MAX_MEAN_PIXELS_DIFFERENCE = 0.05
MAX_EMBEDDING_DIFFERENCE = 1e-5  # of fp32
MIN_EMBEDDING_COSINE = 0.999  # of fp16


@dataclass(frozen=True, kw_only=True)
class DetectorLimits:
    """What counts as the same detection, and which share of them has to be there.

    The share is below 1 because rounding decides which of two equally good boxes survives NMS or is the hundredth.
    """

    min_iou: float
    max_score_error: float
    min_matched_share: float


DETECTOR_LIMITS = {
    "fp32": DetectorLimits(min_iou=0.99, max_score_error=1e-3, min_matched_share=0.995),
    "fp16": DetectorLimits(min_iou=0.95, max_score_error=0.02, min_matched_share=0.98),
}
MIN_MATCHED_SHARE_MADE_UP = 0.85
"""Of half precision with random weights, which leave many more boxes nearly tied than trained ones."""


class ParityError(ValueError):
    """An ONNX file computes something else than its source; the message has the file, the figure and the limit."""


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


def prepare(image: np.ndarray, config: PipelineConfig, kind: str) -> Arrays:
    """What `prepare_<kind>` computes, in PyTorch: image uint8 [1, H, W, 3]."""
    height, width = image.shape[1:3]
    factor = config.kind(kind).short_side_px / min(height, width)
    sides = [
        config.kind(kind).short_side_px if side == min(height, width) else factor * side for side in (height, width)
    ]
    if max(sides) > config.max_side_px:
        sides = [side * (config.max_side_px / max(sides)) for side in sides]
    new_height, new_width = (max(1, int(side + 0.5)) for side in sides)
    rgb = torch.from_numpy(image).permute(0, 3, 1, 2)
    resized = functional.interpolate(rgb, (new_height, new_width), mode="bilinear", antialias=True)
    pixels = resized.flip(1).float() - torch.tensor(config.detector.pixel_mean_bgr).view(3, 1, 1)
    padded = functional.pad(pixels, (0, -new_width % PADDING_MULTIPLE, 0, -new_height % PADDING_MULTIPLE))
    return {
        "pixels": padded.numpy(),
        "image_size": np.array([[new_height, new_width]], np.float32),
        "scale": np.array([[new_height / height, new_width / width]], np.float32),
        "min_score": np.array([[config.kind(kind).min_score]], np.float32),
    }


def crop(image: np.ndarray, boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What `crop` computes, in PyTorch."""
    width, height = size.tolist()
    parts = [torch.from_numpy(image[:, y0:y1, x0:x1]).permute(0, 3, 1, 2).float() for x0, y0, x1, y1 in boxes.tolist()]
    resized = [functional.interpolate(part, (height, width), mode="bilinear") for part in parts]
    return torch.cat(resized).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


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
    _limit(path, "largest difference of pixels", largest, MAX_PIXELS_DIFFERENCE)
    _limit(path, "mean difference of pixels", mean, MAX_MEAN_PIXELS_DIFFERENCE)
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
    _limit(path, "largest difference of crops", largest, MAX_CROP_DIFFERENCE)
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
        _limit(path, "largest difference of embedding", largest, MAX_EMBEDDING_DIFFERENCE)
    else:
        _limit(path, "1 - cosine of embedding", 1 - cosine, 1 - MIN_EMBEDDING_COSINE)
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
    detect = {"detectron2": _detectron2, "graph": _graph}[reference](graph)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images, num_matched, num_all = [], 0, 0
    for pictures in demo_batches() if batches is None else batches:
        pixels, image_size = _pad(list(pictures.values()), graph.config)
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
    _limit(path, "share of detections not matched", 1 - share, 1 - limits.min_matched_share)
    return {
        "precision": precision,
        "reference": reference,
        "num_detections": num_all,
        "matched_share": share,
        "images": images,
    }


def compare_detections(
    found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], limits: DetectorLimits
) -> tuple[int, float, float]:
    """Returns how many expected detections were found, and their largest errors: of a box in pixels, of a score."""
    if not len(found[1]) or not len(expected[1]):
        return 0, 0.0, 0.0
    overlap = box_iou(expected[0], found[0])
    score_error = (expected[1][:, None] - found[1]).abs()
    overlap[score_error > limits.max_score_error] = 0
    best, match = overlap.max(dim=1)
    rows = torch.nonzero(best > limits.min_iou)[:, 0]
    if not len(rows):
        return 0, 0.0, 0.0
    box_error = (expected[0][rows] - found[0][match[rows]]).abs().max()
    return len(rows), float(box_error), float(score_error[rows, match[rows]].max())


def _pad(pictures: Sequence[torch.Tensor], config: DetectorConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the detector's inputs: pixels [B, 3, H, W], image_size [B, 2]."""
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    height, width = (-(-sizes.amax(dim=0) // PADDING_MULTIPLE) * PADDING_MULTIPLE).tolist()
    pixels = torch.zeros(len(pictures), 3, height, width)
    for target, picture in zip(pixels, pictures, strict=True):
        target[:, : picture.shape[1], : picture.shape[2]] = picture - torch.tensor(config.pixel_mean_bgr).view(3, 1, 1)
    return pixels, sizes.float()


def _graph(graph: DetectorGraph) -> Callable[[Sequence[torch.Tensor]], Detected]:
    @torch.inference_mode()
    def detect(pictures: Sequence[torch.Tensor]) -> Detected:
        boxes, scores, counts = graph(*_pad(pictures, graph.config))
        return [(boxes[i, :count], scores[i, :count]) for i, count in enumerate(counts[:, 0].tolist())]

    return detect


def _detectron2(graph: DetectorGraph) -> Callable[[Sequence[torch.Tensor]], Detected]:
    from training.detector.model import build_detector  # detectron2 is optional

    model = build_detector(graph.config).eval()
    model.load_state_dict(graph.state_dict(), strict=True)

    @torch.inference_mode()
    def detect(pictures: Sequence[torch.Tensor]) -> Detected:
        instances = model.inference([{"image": picture} for picture in pictures], do_postprocess=False)
        return [(found.pred_boxes.tensor, found.scores) for found in instances]

    return detect


def _folder(path: Path, config: PipelineConfig) -> Iterator[Pictures]:
    """The folder's JPEG and PNG files one by one, resized as product photos are."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise ParityError(f"{path}: no JPEG or PNG files")
    mean = torch.tensor(config.detector.pixel_mean_bgr).view(3, 1, 1)
    for file in files:
        prepared = prepare(np.asarray(Image.open(file).convert("RGB"))[None].copy(), config, "image")
        height, width = prepared["image_size"][0].astype(int)
        yield {file.name: torch.from_numpy(prepared["pixels"][0, :, :height, :width]) + mean}


def _limit(path: Path, what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ParityError(f"{path}: {what} is {value:.3g}, limit {limit:g}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="model", required=True)
    for model in ("detector", "embedder", "prepare_frame", "prepare_image", "crop"):
        command = commands.add_parser(model)
        command.add_argument("--onnx", type=Path, required=True, metavar="FILE")
        command.add_argument("--config", choices=sorted(CONFIGS), default="production", help="sizes to compare on")
        if model in ("detector", "embedder"):
            command.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
        if model == "detector":
            has_detectron2 = importlib.util.find_spec("detectron2") is not None
            command.add_argument("--backbone", help="of a checkpoint without JSON")
            command.add_argument("--images", type=Path, metavar="DIR", help="default: pictures of the demo world")
            command.add_argument(
                "--reference", choices=("detectron2", "graph"), default="detectron2" if has_detectron2 else "graph"
            )
            for field in fields(DetectorLimits):
                command.add_argument(f"--{field.name.replace('_', '-')}", type=float, help="instead of the precision's")
    command = commands.add_parser("engines", help="networks as served, against float32 ONNX files")
    command.add_argument("--engine", choices=RUNNERS, required=True)
    command.add_argument("--repository", type=Path, required=True, metavar="DIR", help="with the engines")
    command.add_argument("--reference", type=Path, required=True, metavar="DIR", help="built with --precision fp32")
    command.add_argument("--config", choices=sorted(CONFIGS), default="production")
    arguments = parser.parse_args(argv)
    if arguments.model == "engines":
        from export import engine_parity  # it compares with what is in here

        return engine_parity.run(
            arguments.engine, arguments.repository, arguments.reference, CONFIGS[arguments.config]()
        )
    try:
        report = _check(arguments, CONFIGS[arguments.config]())
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"model": arguments.model, **report}))
    return 0


def _check(arguments: argparse.Namespace, config: PipelineConfig) -> Report:
    path: Path = arguments.onnx
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if arguments.model == "crop":
        return check_crop(path)
    if arguments.model.startswith("prepare_"):
        return check_prepare(path, config, arguments.model.removeprefix("prepare_"))
    if arguments.model == "embedder":
        return check_embedder(path, arguments.checkpoint, sizes=config.crop_sizes)
    given = {field.name: getattr(arguments, field.name) for field in fields(DetectorLimits)}
    limits = {name: value for name, value in given.items() if value is not None}
    return check_detector(
        path,
        arguments.checkpoint,
        backbone=arguments.backbone,
        batches=_folder(arguments.images, config) if arguments.images else None,
        reference=arguments.reference,
        limits=replace(DETECTOR_LIMITS[precision_of(path)], **limits),
    )


if __name__ == "__main__":
    sys.exit(main())
