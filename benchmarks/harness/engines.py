"""The repository's ONNX models in this process, without a server: the bound that serving is measured against.

A picture takes the way that the ensemble takes it, one model after another, and the time in each engine is counted by
itself. What lies between the engines (choosing boxes, stacking, joining) is not counted.
"""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.config import CUDA_OPTIONS, PipelineConfig
from export.signature import EMBEDDERS, MODELS
from export.triton.model_config import REPOSITORY

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Call:
    """One run of one model."""

    model: str
    feeds: Arrays
    outputs: Arrays
    elapsed_s: float


class Engines:
    """Sessions of all ONNX models of a repository.

    Args:
        num_threads: of each session; 0 for all processors; None for what the config serves each model with.
        provider: "CPUExecutionProvider" or "CUDAExecutionProvider"; crop and prepare stay on the CPU, as served.

    Raises:
        RuntimeError: ONNX Runtime lacks the provider, or its libraries; it would go on with the CPU and only warn.
    """

    def __init__(
        self,
        repository: Path,
        config: PipelineConfig,
        *,
        num_threads: int | None = None,
        provider: str = "CPUExecutionProvider",
    ) -> None:
        self._ratios = np.array(list(config.templates))
        self._sizes = np.array(list(config.templates.values()))  # width, height
        self._detections = _load_detections()
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        if provider == "CUDAExecutionProvider":
            onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
        for model, signature in MODELS.items():
            if signature.kind not in ("graph", "network"):
                continue
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = config.serving_of(model).num_threads if num_threads is None else num_threads
            options.inter_op_num_threads = 1
            wanted = provider if signature.kind == "network" else "CPUExecutionProvider"
            providers = [(wanted, CUDA_OPTIONS if wanted == "CUDAExecutionProvider" else {})]
            path = repository / model / "1" / "model.onnx"
            self.sessions[model] = onnxruntime.InferenceSession(path, options, providers=providers)
            if wanted not in self.sessions[model].get_providers():
                have = ", ".join(onnxruntime.get_available_providers())
                raise RuntimeError(f"{model} cannot run on {wanted}: not built in, or libraries missing ({have})")

    def run(self, model: str, feeds: Arrays) -> Call:
        names = [tensor.name for tensor in MODELS[model].outputs]
        start_s = time.perf_counter()
        outputs = self.sessions[model].run(names, feeds)
        elapsed_s = time.perf_counter() - start_s
        return Call(model, feeds, dict(zip(names, outputs, strict=True)), elapsed_s)

    def recognize(self, kind: str, pixels: npt.NDArray[np.uint8]) -> list[Call]:
        """All calls that one picture, uint8 [H,W,3], needs."""
        prepared, detected = self._detect(kind, pixels)
        calls = [prepared, detected]
        found = detected.outputs
        boxes, _ = self._detections.select(
            found["boxes"][0],
            found["scores"][0],
            int(found["num_detections"][0, 0]),
            prepared.outputs["scale"][0],
            float(prepared.outputs["min_score"][0, 0]),
            pixels,
        )
        crop_boxes = self._detections.to_pixels(boxes, pixels)
        templates = self._detections.nearest_templates(crop_boxes, self._ratios)
        for template in np.unique(templates):
            feeds = {"image": pixels[None], "boxes": crop_boxes[templates == template], "size": self._sizes[template]}
            cropped = self.run("crop", feeds)
            calls.append(cropped)
            calls += [self.run(model, {"crops": cropped.outputs["crops"]}) for model in EMBEDDERS]
        return calls

    def detection_scores(self, kind: str, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Scores of all detections of a picture, before any limit."""
        _, detected = self._detect(kind, pixels)
        return detected.outputs["scores"][0, : int(detected.outputs["num_detections"][0, 0])]

    def _detect(self, kind: str, pixels: npt.NDArray[np.uint8]) -> tuple[Call, Call]:
        prepared = self.run(f"prepare_{kind}", {"image": pixels[None]})
        detected = self.run("detector", {name: prepared.outputs[name] for name in ("pixels", "image_size")})
        return prepared, detected


def _load_detections() -> ModuleType:
    """The code of crop_and_embed that chooses boxes and templates, which Triton imports from the model's own folder."""
    path = REPOSITORY / "crop_and_embed" / "1" / "detections.py"
    spec = importlib.util.spec_from_file_location("detections", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
