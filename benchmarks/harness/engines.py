"""Run the ONNX models of a model repository in this process, without a server, to compare the served ones with them.

An image goes through the same models in the same order as in the ensemble, and the time in each model is measured. The
steps between the models (choosing boxes, stacking, joining) are not.
"""

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.config import PipelineConfig
from export.parity.compare import Arrays, detections_of
from export.parity.runners import Runner, open_runner
from export.signature import signatures
from export.tensorrt.library import EngineError
from export.triton.model_config import REPOSITORY
from livematch.errors import LivematchError
from livematch.types import Pixels


@dataclass(frozen=True)
class Call:
    """One run of one model."""

    model: str
    feeds: Arrays
    outputs: Arrays
    elapsed_s: float


class Engines:
    """ONNX Runtime sessions of all models of a repository.

    Args:
        num_threads: CPU threads of each session; 0 for all processors; None for the number that the config serves with.
        device: "cpu" or "cuda", for the networks; crop and prepare always run on the CPU, as in the server.

    Raises:
        LivematchError: ONNX Runtime does not start on the GPU. (Unchecked, it would warn and use the CPU.)
        OSError: an ONNX file is missing.
    """

    def __init__(
        self, repository: Path, config: PipelineConfig, *, num_threads: int | None = None, device: str = "cpu"
    ) -> None:
        self._embedders = list(config.embedder_models)
        self._ratios = np.array(list(config.templates))
        self._sizes = np.array(list(config.templates.values()))  # width, height
        self._detections = _load_detections()
        self._runners: dict[str, Runner] = {}
        for model, signature in signatures(config).items():
            if signature.kind == "network" and device == "cuda":
                try:
                    self._runners[model] = open_runner("onnxruntime-cuda", repository, model, config)
                except EngineError as error:
                    raise LivematchError(f"{model} cannot run on the GPU: {error}") from error
            elif signature.kind in ("graph", "network"):
                threads = config.serving_of(model).num_threads if num_threads is None else num_threads
                self._runners[model] = _cpu_runner(repository / model / "1" / "model.onnx", threads)

    def run(self, model: str, feeds: Arrays) -> Call:
        start_s = time.perf_counter()
        outputs = self._runners[model](feeds)
        return Call(model, feeds, outputs, time.perf_counter() - start_s)

    def recognize(self, kind: str, pixels: Pixels) -> list[Call]:
        """Run one RGB image [H,W,3] through all models, and return the calls in order."""
        prepared, detected = self._detect(kind, pixels)
        calls = [prepared, detected]
        boxes, scores, num_detections = (detected.outputs[name][0] for name in ("boxes", "scores", "num_detections"))
        scale, min_score = (prepared.outputs[name][0] for name in ("scale", "min_score"))
        boxes, _ = self._detections.select(boxes, scores, int(num_detections[0]), scale, float(min_score[0]), pixels)
        crop_boxes = self._detections.to_pixels(boxes, pixels)
        templates = self._detections.nearest_templates(crop_boxes, self._ratios)
        for template in np.unique(templates):
            feeds = {"image": pixels[None], "boxes": crop_boxes[templates == template], "size": self._sizes[template]}
            cropped = self.run("crop", feeds)
            calls.append(cropped)
            calls += [self.run(model, {"crops": cropped.outputs["crops"]}) for model in self._embedders]
        return calls

    def detection_scores(self, kind: str, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return the scores of all detections in an image, before any score limit."""
        _, detected = self._detect(kind, pixels)
        return detections_of(detected.outputs, image=0)[1].numpy()

    def _detect(self, kind: str, pixels: Pixels) -> tuple[Call, Call]:
        prepared = self.run(f"prepare_{kind}", {"image": pixels[None]})
        detected = self.run("detector", {name: prepared.outputs[name] for name in ("pixels", "image_size")})
        return prepared, detected


def open_session(model: Path | bytes, num_threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or the content of one, on the CPU with this number of threads; 0 for all processors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _cpu_runner(path: Path, num_threads: int) -> Runner:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    session = open_session(path, num_threads)
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _load_detections() -> ModuleType:
    """Import crop_and_embed's module that chooses boxes and templates; its folder is a model's, not a package."""
    path = REPOSITORY / "crop_and_embed" / "1" / "detections.py"
    spec = importlib.util.spec_from_file_location("detections", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
