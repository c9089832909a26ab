"""The pipeline's networks in eager PyTorch, with the weights that the model repository was built from."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from export.config import PipelineConfig
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.graphs.precision import set_precision, to_half
from export.signature import EMBEDDERS, PADDING_MULTIPLE

DETECTORS = ("graph", "detectron2")
"""The detector that is run eagerly: the project's own PyTorch graph, or the model of detectron2, where installed."""

Pixels = npt.NDArray[np.uint8]


class EagerNetworks:
    """Detector and embedders, one picture or crop at a time.

    Args:
        checkpoints: the demo's; without them the weights are made up from `random_seed`, as `export.build` does.
        detector: one of DETECTORS.
        device: "cpu" or "cuda".
        is_half: float16 where the export with `--precision fp16` has it; of the project's own graph only.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        checkpoints: Path | None,
        random_seed: int = 0,
        detector: str = "graph",
        device: str = "cpu",
        is_half: bool = False,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        path = None if checkpoints is None else checkpoints / "detector.pth"
        made_up = {} if checkpoints else {"config": config.detector, "random_seed": random_seed}
        graph = build_detector_graph(path, **made_up)
        self._uses_detectron2 = detector == "detectron2"
        if self._uses_detectron2:
            from training.detector.model import build_detector

            self.detector = build_detector(graph.config)
            self.detector.load_state_dict(graph.state_dict(), strict=True)
        else:
            self.detector = graph
        self.detector = self.detector.eval().to(self.device)
        if is_half:
            set_precision(self.detector, "fp16")
        self.embedders = {}
        for position, model in enumerate(EMBEDDERS, start=1):
            if checkpoints is None:
                embedder = build_embedder(None, config=config.embedder(model), random_seed=random_seed + position)
            else:
                embedder = build_embedder(checkpoints / f"{model}.pth")
            self.embedders[model] = embedder.eval().to(self.device)
            if is_half:
                to_half(embedder.backbone)
        self._dtype = torch.float16 if is_half else torch.float32

    @torch.inference_mode()
    def detect(self, kind: str, image: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Boxes [k,4] in pixels of the RGB image uint8 [H,W,3], and scores [k], above the kind's limit."""
        height, width = image.shape[:2]
        settings = self.config.kind(kind)
        scale = settings.short_side_px / min(height, width)
        scale = min(scale, self.config.max_side_px / (max(height, width)))
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        resized = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
        bgr = torch.from_numpy(resized[:, :, ::-1].copy()).to(self.device).permute(2, 0, 1).float()
        boxes, scores = self._run_detector(bgr)
        is_kept = scores > settings.min_score
        boxes = boxes[is_kept] * np.array([width / new_width, height / new_height] * 2, np.float32)
        return np.clip(boxes, 0, np.array([width, height] * 2, np.float32)), scores[is_kept]

    def _run_detector(self, bgr: torch.Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        height, width = bgr.shape[1:]
        if self._uses_detectron2:
            found = self.detector.inference([{"image": bgr}], do_postprocess=False)[0]
            return found.pred_boxes.tensor.cpu().numpy(), found.scores.cpu().numpy()
        mean = torch.tensor(self.config.detector.pixel_mean_bgr, device=self.device).view(3, 1, 1)
        pixels = functional.pad(bgr - mean, (0, -width % PADDING_MULTIPLE, 0, -height % PADDING_MULTIPLE))
        return self.run_graph(pixels[None], torch.tensor([[float(height), float(width)]], device=self.device))

    def run_graph(
        self, pixels: torch.Tensor, image_size: torch.Tensor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The graph on the first of prepared pixels [1,3,H,W]; boxes and scores that are there."""
        with self.device:  # the graph makes its grids on the default device
            boxes, scores, num_detections = self.detector(pixels, image_size)
        num = int(num_detections[0, 0])
        return boxes[0, :num].cpu().numpy(), scores[0, :num].cpu().numpy()

    @torch.inference_mode()
    def embed(self, model: str, crops: Pixels) -> npt.NDArray[np.float32]:
        """Unit vectors [n,512] of RGB crops uint8 [n,h,w,3]."""
        settings = self.config.embedder(model)
        pixels = torch.from_numpy(crops).to(self.device).float().permute(0, 3, 1, 2)
        mean, std = (torch.tensor(part, device=self.device).view(3, 1, 1) for part in (settings.mean, settings.std))
        pixels = ((pixels - mean) / std).to(self._dtype)
        return functional.normalize(self.embedders[model](pixels)).cpu().numpy()
