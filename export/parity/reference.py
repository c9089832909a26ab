"""What the exported files must compute, in PyTorch and in detectron2 itself."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from export.config import PipelineConfig
from export.graphs.detector import DetectorGraph
from export.parity.compare import Arrays, Detected
from export.signature import PADDING_MULTIPLE
from training.detector.config import DetectorConfig


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


def pad(pictures: Sequence[torch.Tensor], config: DetectorConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the detector's inputs: pixels [B, 3, H, W], image_size [B, 2]."""
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    height, width = (-(-sizes.amax(dim=0) // PADDING_MULTIPLE) * PADDING_MULTIPLE).tolist()
    pixels = torch.zeros(len(pictures), 3, height, width)
    for target, picture in zip(pixels, pictures, strict=True):
        target[:, : picture.shape[1], : picture.shape[2]] = picture - torch.tensor(config.pixel_mean_bgr).view(3, 1, 1)
    return pixels, sizes.float()


def detect_by_graph(graph: DetectorGraph) -> Callable[[Sequence[torch.Tensor]], Detected]:
    @torch.inference_mode()
    def detect(pictures: Sequence[torch.Tensor]) -> Detected:
        boxes, scores, counts = graph(*pad(pictures, graph.config))
        return [(boxes[i, :count], scores[i, :count]) for i, count in enumerate(counts[:, 0].tolist())]

    return detect


def detect_by_detectron2(graph: DetectorGraph) -> Callable[[Sequence[torch.Tensor]], Detected]:
    from training.detector.model import build_detector  # detectron2 is optional

    model = build_detector(graph.config).eval()
    model.load_state_dict(graph.state_dict(), strict=True)

    @torch.inference_mode()
    def detect(pictures: Sequence[torch.Tensor]) -> Detected:
        instances = model.inference([{"image": picture} for picture in pictures], do_postprocess=False)
        return [(found.pred_boxes.tensor, found.scores) for found in instances]

    return detect
