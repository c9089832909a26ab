"""Is an ONNX file the same function as its PyTorch source? Compared on sizes that were not traced, with fixed limits.

python -m export.parity --model embedder_b6 --onnx model.onnx --checkpoint embedder_b6.pth
python -m export.parity --model prepare_frame --config demo --onnx model.onnx

Prints one JSON line with what was measured; exit code 1 if a limit is passed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional

from export.config import CONFIGS, PipelineConfig
from export.detector import build_detector_graph
from export.embedder import build_embedder
from export.signature import MODELS, PADDING_MULTIPLE
from training.demo.designs import item_designs
from training.demo.photos import draw_photo
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig

Report = dict[str, float]
Arrays = dict[str, np.ndarray]

IMAGE_SIZES = ((113, 97), (97, 201), (640, 360), (5, 700))  # height, width
MAX_CROP_DIFFERENCE = 1  # grey levels
MAX_PIXELS_DIFFERENCE = 3
MAX_MEAN_PIXELS_DIFFERENCE = 0.05
MAX_EMBEDDING_DIFFERENCE = 1e-5
MAX_SCORE_DIFFERENCE = 1e-3
MAX_BOX_DIFFERENCE_PX = 0.1
MIN_MATCHED_DETECTIONS = 0.98  # rounding decides which of two equally good boxes survives NMS


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
    for image in _images():
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
    for image in _images():
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
    sizes: Sequence[tuple[int, int]],
    config: EmbedderConfig | None = None,
    random_seed: int | None = None,
) -> Report:
    """`sizes` are (height, width) of crops."""
    check_signature(path, "embedder_b5a")
    embedder = build_embedder(checkpoint, config=config, random_seed=random_seed)
    largest = 0.0
    for num_crops, (height, width) in enumerate(sizes, start=1):
        crops = np.random.default_rng(height).integers(0, 256, (num_crops % 3 + 1, height, width, 3), np.uint8)
        found = run_onnx(path, {"crops": crops})["embedding"]
        pixels = (crops - np.float32(embedder.config.mean)) / np.float32(embedder.config.std)
        with torch.inference_mode():
            expected = functional.normalize(embedder(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        largest = max(largest, float(np.abs(found - expected.numpy()).max()))
    _limit(path, "largest difference of embedding", largest, MAX_EMBEDDING_DIFFERENCE)
    return {"max_embedding_difference": largest}


def check_detector(
    path: Path, checkpoint: Path | None, *, config: DetectorConfig | None = None, random_seed: int | None = None
) -> Report:
    """Counts the detections that both sides have: same score and same box, within rounding.

    On photos of the demo world and on noise, in batches of different true sizes. A network that detects nothing there
    cannot be compared, which is an error too.
    """
    check_signature(path, "detector")
    graph = build_detector_graph(checkpoint, config=config, random_seed=random_seed)
    num_matched = num_all = 0
    for pictures, height, width in ((_noise(1), 256, 160), (_photos(2), 320, 320), (_photos(3), 288, 352)):
        num_images = len(pictures)
        image_size = torch.tensor([[height, width], [height - 5, width - 31]], dtype=torch.float32)[:num_images]
        pixels = torch.zeros(num_images, 3, height, width)
        for target, picture, (rows, columns) in zip(pixels, pictures, image_size.int().tolist(), strict=True):
            resized = functional.interpolate(picture[None].float(), (rows, columns), mode="bilinear", antialias=True)
            target[:, :rows, :columns] = resized[0] - torch.tensor(graph.config.pixel_mean_bgr).view(3, 1, 1)
        found = run_onnx(path, {"pixels": pixels.numpy(), "image_size": image_size.numpy()})
        with torch.inference_mode():
            boxes, scores, num_detections = (output.numpy() for output in graph(pixels, image_size))
        for image in range(num_images):
            count, found_count = int(num_detections[image, 0]), int(found["num_detections"][image, 0])
            score_gap = np.abs(scores[image, :count, None] - found["scores"][image, None, :found_count])
            box_gap = np.abs(boxes[image, :count, None] - found["boxes"][image, None, :found_count]).max(axis=2)
            is_same = (score_gap <= MAX_SCORE_DIFFERENCE) & (box_gap <= MAX_BOX_DIFFERENCE_PX)
            num_matched += int(is_same.any(axis=1).sum())
            num_all += max(count, found_count)
    if not num_all:
        raise ParityError(f"{path}: nothing was detected in the pictures to compare on")
    share = num_matched / num_all
    _limit(path, "share of detections not matched", 1 - share, 1 - MIN_MATCHED_DETECTIONS)
    return {"num_detections": num_all, "matched_share": share}


def _noise(seed: int) -> torch.Tensor:
    """Smooth noise, float32 [1, 3, 240, 180] BGR."""
    noise = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(noise, (240, 180), mode="bicubic")


def _photos(seed: int) -> torch.Tensor:
    """Two photos of the demo world, uint8 [2, 3, 800, 800] BGR."""
    rng = np.random.default_rng(seed)
    designs = item_designs(seed, 0)
    photos = [draw_photo(designs, range(1, 1 + len(designs)), index, rng)[0] for index in (0, 2)]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)


def _images() -> list[np.ndarray]:
    """Smooth random images, uint8 [1, H, W, 3]; white noise would only measure how rounding falls."""
    images = []
    for height, width in IMAGE_SIZES:
        noise = torch.from_numpy(np.random.default_rng(width).uniform(0, 255, (1, 3, 12, 9)).astype(np.float32))
        smooth = functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255)
        images.append(smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())
    return images


def _limit(path: Path, what: str, value: float, limit: float) -> None:
    if not value <= limit:
        raise ParityError(f"{path}: {what} is {value:.3g}, limit {limit:g}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [name for name, signature in MODELS.items() if signature.kind in ("graph", "network")]
    parser.add_argument("--model", choices=models, required=True)
    parser.add_argument("--onnx", type=Path, required=True, metavar="FILE")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a detector or an embedder")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production", help="sizes to compare on")
    arguments = parser.parse_args(argv)
    if MODELS[arguments.model].kind == "network" and arguments.checkpoint is None:
        parser.error(f"--checkpoint is needed for {arguments.model}")
    config = CONFIGS[arguments.config]()
    try:
        if arguments.model == "crop":
            report = check_crop(arguments.onnx)
        elif arguments.model == "detector":
            report = check_detector(arguments.onnx, arguments.checkpoint)
        elif arguments.model.startswith("prepare_"):
            report = check_prepare(arguments.onnx, config, arguments.model.removeprefix("prepare_"))
        else:
            report = check_embedder(arguments.onnx, arguments.checkpoint, sizes=config.crop_sizes)
    except ParityError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"model": arguments.model, **report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
