"""Runs one network of a model repository in different engines, arrays in and arrays out.

Calls of TensorRT are those documented for 10.x and 11.x alike: Python API, Runtime, ICudaEngine, IExecutionContext.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.config import CUDA_OPTIONS, PipelineConfig
from export.signature import MODELS
from export.tensorrt.build import identity, is_current
from export.tensorrt.profiles import profiles

Arrays = dict[str, np.ndarray]
Runner = Callable[[Arrays], Arrays]

RUNNERS = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
_DTYPES = {"FP32": torch.float32, "INT32": torch.int32}  # of outputs


class UnavailableError(RuntimeError):
    """This machine lacks the engine's library or a GPU; the message is one line."""


def open_runner(engine: str, repository: Path, model: str, config: PipelineConfig) -> Runner:
    """The network `model` in one of RUNNERS.

    Raises:
        UnavailableError: the library or the GPU is missing.
        FileNotFoundError: the ONNX file or the engine is.
        ValueError: the engine was made of another ONNX file, by another TensorRT or for another GPU or other profiles.
        RuntimeError: TensorRT refuses it, for example for lack of memory; the runner raises it, too.
    """
    onnx_path = repository / model / "1" / "model.onnx"
    if not onnx_path.exists():
        raise FileNotFoundError(f"{onnx_path} is not there")
    if engine == "tensorrt":
        return TensorRTRunner(onnx_path, model, config)
    return _onnxruntime(engine, onnx_path)


def _onnxruntime(engine: str, onnx_path: Path) -> Runner:
    provider = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-cpu": "CPUExecutionProvider"}[engine]
    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise UnavailableError(f"ONNX Runtime has no {provider}, only {', '.join(present)}: onnxruntime-gpu is needed")
    options: dict[str, str] = {}
    if engine == "onnxruntime-cuda":
        options = CUDA_OPTIONS
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
    session = onnxruntime.InferenceSession(onnx_path, providers=[(provider, options)])
    if provider not in session.get_providers():  # it only warns, and takes the CPU
        raise UnavailableError(f"{provider} did not start: no GPU, or a CUDA library is missing")
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


class TensorRTRunner:
    """An engine file, run on PyTorch's current GPU."""

    def __init__(self, onnx_path: Path, model: str, config: PipelineConfig) -> None:
        try:
            trt = importlib.import_module("tensorrt")
        except ImportError as error:
            raise UnavailableError(f"TensorRT cannot be imported ({error})") from error
        if not torch.cuda.is_available():
            raise UnavailableError("PyTorch sees no GPU")
        plan_path = onnx_path.with_name("model.plan")
        wanted = identity(onnx_path, profiles(model, config))
        wanted |= {"tensorrt": trt.__version__, "gpu": torch.cuda.get_device_name()}
        if not is_current(plan_path, wanted):
            raise ValueError(f"{plan_path} is missing or not of {onnx_path.name}, TensorRT {trt.__version__}, this GPU")
        self._signature = MODELS[model]
        self._logger = trt.Logger(trt.Logger.WARNING)
        trt.init_libnvinfer_plugins(self._logger, "")
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan_path.read_bytes())
        if self._engine is None:
            raise ValueError(f"{plan_path}: TensorRT cannot read it; its log above says why")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeError(f"{plan_path}: TensorRT made no context, perhaps for lack of memory; its log says why")
        self._stream = torch.cuda.Stream()

    def __call__(self, feeds: Arrays) -> Arrays:
        batch = next(iter(feeds.values())).shape[0]
        profile = self._profile(feeds)
        with torch.cuda.stream(self._stream):
            inputs = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feeds.items()}
            outputs = {
                tensor.name: torch.empty((batch, *tensor.dims[1:]), dtype=_DTYPES[tensor.dtype], device="cuda")
                for tensor in self._signature.outputs
            }
            self._succeed(self._context.set_optimization_profile_async(profile, self._stream.cuda_stream))
            for name, tensor in inputs.items():
                self._succeed(self._context.set_input_shape(name, tuple(tensor.shape)))
            for name, tensor in (inputs | outputs).items():
                self._succeed(self._context.set_tensor_address(name, tensor.data_ptr()))
            self._succeed(self._context.execute_async_v3(self._stream.cuda_stream))
        self._stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    def _profile(self, feeds: Arrays) -> int:
        for index in range(self._engine.num_optimization_profiles):
            ranges = {name: self._engine.get_tensor_profile_shape(name, index) for name in feeds}
            if all(
                low <= side <= high
                for name, array in feeds.items()
                for low, side, high in zip(ranges[name][0], array.shape, ranges[name][2], strict=True)
            ):
                return index
        raise ValueError(f"no profile takes { ({name: array.shape for name, array in feeds.items()}) }")

    @staticmethod
    def _succeed(is_done: bool) -> None:
        if not is_done:
            raise RuntimeError("TensorRT refused a call; its log above says why")
