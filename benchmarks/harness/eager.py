"""Run the pipeline's networks in eager PyTorch, with the weights that the model repository was built from."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.graphs.detector import DetectorGraph
from export.graphs.precision import set_precision, to_half
from export.signature import PADDING_MULTIPLE
from livematch.errors import LivematchError
from livematch.types import Pixels
from training.embedder.model import EmbedderConfig

DETECTORS = ("graph", "detectron2")
"""The detectors that can run eagerly: this project's PyTorch graph, and detectron2's model where it is installed."""

FloatArray = npt.NDArray[np.float32]


class EagerNetworks:
    """The detector, run on one image at a time, and the embedders, run on one batch of crops at a time.

    Args:
        checkpoints: folder of the checkpoints; None for random weights, those that `export.build` makes with seed 0.
        detector: one of DETECTORS.
        is_half: compute in float16 the same layers as an export with `--precision fp16`. Not for detectron2.

    Raises:
        LivematchError: there is no GPU, or detectron2 is not installed.
        OSError, ValueError: a checkpoint is missing or does not match its config.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        checkpoints: Path | None,
        detector: str = "graph",
        device: str = "cpu",
        is_half: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise LivematchError("PyTorch finds no CUDA device")
        self.config = config
        self.device = torch.device(device)
        if checkpoints is None:
            self.detector: Any = build_detector_graph(None, config=config.detector_config, random_seed=0)
            self.embedders = {
                model: build_embedder(None, config=embedder, random_seed=position)
                for position, (model, embedder) in enumerate(config.embedder_models.items(), start=1)
                if isinstance(embedder, EmbedderConfig)  # all of ours are
            }
        else:
            self.detector = build_detector_graph(checkpoints / "detector.pth")
            self.embedders = {model: build_embedder(checkpoints / f"{model}.pth") for model in config.embedder_models}
        self._uses_detectron2 = detector == "detectron2"
        if self._uses_detectron2:
            self.detector = build_detectron2(self.detector)
        for network in (self.detector, *self.embedders.values()):
            network.to(self.device)
        if is_half:
            set_precision(self.detector, "fp16")
            for embedder in self.embedders.values():
                to_half(embedder.backbone)
        self._dtype = torch.float16 if is_half else torch.float32

    @torch.inference_mode()
    def detect(self, kind: str, image: Pixels) -> tuple[FloatArray, FloatArray]:
        """Return boxes [k,4] in pixels of an RGB image [H,W,3], and the scores [k], which are above `kind`'s limit."""
        height, width = image.shape[:2]
        settings = self.config.kind(kind)
        scale = min(settings.short_side_px / min(height, width), self.config.max_side_px / max(height, width))
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
        bgr = torch.from_numpy(resized[:, :, ::-1].copy()).to(self.device).permute(2, 0, 1).float()
        if self._uses_detectron2:
            instances = self.detector.inference([{"image": bgr}], do_postprocess=False)[0]
            boxes, scores = instances.pred_boxes.tensor.cpu().numpy(), instances.scores.cpu().numpy()
        else:
            mean = torch.tensor(self.config.detector_config.pixel_mean_bgr, device=self.device).view(3, 1, 1)
            padding = (0, -new_width % PADDING_MULTIPLE, 0, -new_height % PADDING_MULTIPLE)
            pixels = functional.pad(bgr - mean, padding)[None]
            boxes, scores = self.run_graph(pixels, torch.tensor([[float(new_height), float(new_width)]]))
        is_kept = scores > settings.min_score
        boxes = boxes[is_kept] * np.array([width / new_width, height / new_height] * 2, np.float32)
        return np.clip(boxes, 0, np.array([width, height] * 2, np.float32)), scores[is_kept]

    @torch.inference_mode()
    def run_graph(self, pixels: torch.Tensor, image_size: torch.Tensor) -> tuple[FloatArray, FloatArray]:
        """Run the detector graph on prepared pixels [1,3,H,W], and return its boxes [k,4] and scores [k]."""
        with self.device:  # the graph creates its grids on the default device
            boxes, scores, num_detections, _ = self.detector(pixels.to(self.device), image_size.to(self.device))
        num = int(num_detections[0, 0])
        return boxes[0, :num].cpu().numpy(), scores[0, :num].cpu().numpy()

    @torch.inference_mode()
    def embed(self, model: str, crops: Pixels) -> FloatArray:
        """Return unit vectors [n,512] of RGB crops uint8 [n,h,w,3]."""
        settings = self.config.embedder_models[model]
        pixels = torch.from_numpy(crops).to(self.device).float().permute(0, 3, 1, 2)
        mean, std = (torch.tensor(part, device=self.device).view(3, 1, 1) for part in (settings.mean, settings.std))
        pixels = ((pixels - mean) / std).to(self._dtype)
        embeddings: FloatArray = functional.normalize(self.embedders[model](pixels)).cpu().numpy()
        return embeddings


def build_detectron2(graph: DetectorGraph) -> Any:
    """Return detectron2's model with a graph's weights; raise LivematchError where detectron2 is not installed."""
    try:
        from training.detector.model import build_detector
    except ModuleNotFoundError as error:
        raise LivematchError(
            f"this needs detectron2, which is not on the package index (see README): {error}"
        ) from error
    model = build_detector(graph.config)
    model.load_state_dict(graph.state_dict(), strict=True)
    return model.eval()
