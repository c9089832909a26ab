"""Run one network of a model repository in TensorRT or ONNX Runtime, on numpy arrays.

The TensorRT calls exist in 10.x and 11.x; see Runtime, ICudaEngine and IExecutionContext in its Python API.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.config import CUDA_OPTIONS, PipelineConfig
from export.parity.compare import Arrays
from export.signature import signatures
from export.tensorrt.build import current_report, identity
from export.tensorrt.library import EngineError, load_tensorrt
from export.tensorrt.profiles import profiles

Runner = Callable[[Arrays], Arrays]

RUNNERS = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
_DTYPES = {"FP32": torch.float32, "INT32": torch.int32}  # of outputs


def open_runner(engine: str, repository: Path, model: str, config: PipelineConfig) -> Runner:
    """Return a function that runs a network: it takes inputs by name, and returns outputs by name.

    Args:
        engine: one of RUNNERS.
        repository: the model repository that holds the network.
        model: one of the pipeline's networks.
        config: the pipeline that the repository was built for.

    Raises:
        EngineError: the library or the GPU is missing, or TensorRT refuses the engine, for example for lack of memory.
            The returned function raises it too.
        FileNotFoundError: the ONNX file is missing.
        ValueError: the engine is missing, or was built for another ONNX file, TensorRT, GPU or set of profiles.
    """
    onnx_path = repository / model / "1" / "model.onnx"
    if not onnx_path.exists():
        raise FileNotFoundError(f"{onnx_path} is missing")
    if engine == "tensorrt":
        return TensorRTRunner(onnx_path, model, config)
    return _onnxruntime(onnx_path, is_on_gpu=engine == "onnxruntime-cuda")


def _onnxruntime(onnx_path: Path, *, is_on_gpu: bool) -> Runner:
    provider = "CUDAExecutionProvider" if is_on_gpu else "CPUExecutionProvider"
    present = onnxruntime.get_available_providers()
    if provider not in present:
        raise EngineError(f"ONNX Runtime has no {provider}, only {', '.join(present)}; install onnxruntime-gpu")
    if is_on_gpu:
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
    session = onnxruntime.InferenceSession(onnx_path, providers=[(provider, CUDA_OPTIONS if is_on_gpu else {})])
    if provider not in session.get_providers():  # ONNX Runtime only warns, and uses the CPU
        raise EngineError(f"{provider} did not start: no GPU, or a CUDA library is missing")
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


class TensorRTRunner:
    """Run an engine file on PyTorch's current GPU."""

    def __init__(self, onnx_path: Path, model: str, config: PipelineConfig) -> None:
        trt = load_tensorrt()
        plan_path = onnx_path.with_name("model.plan")
        if current_report(plan_path, identity(onnx_path, profiles(model, config), trt)) is None:
            raise ValueError(
                f"{plan_path} is missing or was not built for this GPU, TensorRT {trt.__version__} and {onnx_path.name}"
            )
        self._signature = signatures(config)[model]
        self._logger = trt.Logger(trt.Logger.WARNING)
        trt.init_libnvinfer_plugins(self._logger, "")
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan_path.read_bytes())
        if self._engine is None:
            raise ValueError(f"{plan_path}: TensorRT cannot read it; see its log above")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{plan_path}: TensorRT created no context, perhaps for lack of memory; see its log above"
            )
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

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
        """Return the index of the first profile that covers the shapes of the inputs."""
        for index in range(self._engine.num_optimization_profiles):
            ranges = {name: self._engine.get_tensor_profile_shape(name, index) for name in feeds}
            if all(
                low <= side <= high
                for name, array in feeds.items()
                for low, side, high in zip(ranges[name][0], array.shape, ranges[name][2], strict=True)
            ):
                return index
        shapes = {name: array.shape for name, array in feeds.items()}
        raise ValueError(f"no profile of the engine covers the shapes {shapes}")

    @staticmethod
    def _succeed(is_done: bool) -> None:
        if not is_done:
            raise EngineError("TensorRT refused a call; see its log above")
