"""Triton's `onnxruntime` backend written in Python, for servers that lack the native one.

It serves `<version>/model.onnx` of every model whose config says `backend: "onnxruntime"`. It reads the same parameters
(`intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `cudnn_conv_algo_search`) and the same options of
the accelerator `cuda` as the native backend. An instance that Triton places on a GPU runs there if onnxruntime-gpu and
its CUDA libraries are installed; otherwise it runs on the CPU and logs a warning.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.is_batched = config["max_batch_size"] > 0
        self.inputs = {
            tensor["name"]: pb_utils.triton_string_to_numpy(tensor["data_type"]) for tensor in config["input"]
        }
        self.outputs = [tensor["name"] for tensor in config["output"]]
        path = Path(args["model_repository"], args["model_version"], config["default_model_filename"] or "model.onnx")
        self.session = _open_session(path, config, args)
        self._check("input", self.inputs, self.session.get_inputs())
        self._check("output", self.outputs, self.session.get_outputs())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with one run if the model is batched, otherwise with one run each."""
        groups = [requests] if self.is_batched else [[request] for request in requests]
        return [response for group in groups for response in self._run(group)]

    def _run(self, requests: list[Any]) -> list[Any]:
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        try:
            if len(feeds) == 1:
                return [self._response(self.session.run(self.outputs, feeds[0]))]
            stacked = {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
            ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
            parts = [np.split(output, ends) for output in self.session.run(self.outputs, stacked)]
        except Exception as error:  # every request needs a response, whatever onnxruntime raises
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in feeds[0].items())
            is_input = isinstance(error, InvalidArgument)
            code = pb_utils.TritonError.INVALID_ARG if is_input else pb_utils.TritonError.INTERNAL
            message = f"{self.name}: {error} (inputs: {shapes})"
            # One error object per response: the stub frees it with the response, and would free a shared one twice.
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code)) for _ in requests]
        return [self._response([part[i] for part in parts]) for i in range(len(requests))]

    def _response(self, outputs: list[npt.NDArray[Any]]) -> object:
        tensors = [pb_utils.Tensor(name, output) for name, output in zip(self.outputs, outputs, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def _check(self, kind: str, configured: Iterable[str], in_graph: list[Any]) -> None:
        names = {tensor.name for tensor in in_graph}
        if names != set(configured):
            raise pb_utils.TritonModelException(
                f"{self.name}: the config has the {kind}s {sorted(configured)}, but model.onnx has {sorted(names)}"
            )


def _open_session(path: Path, config: dict[str, Any], args: dict[str, str]) -> onnxruntime.InferenceSession:
    providers: list[Any] = ["CPUExecutionProvider"]
    needs_gpu = args["model_instance_kind"] == "GPU"
    if needs_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels
        device = {"device_id": args["model_instance_device_id"]}
        providers.insert(0, ("CUDAExecutionProvider", cuda_options(config) | device))
    session = onnxruntime.InferenceSession(path, _session_options(config), providers=providers)
    # If CUDA's libraries are missing, onnxruntime falls back to the CPU without raising.
    if needs_gpu and "CUDAExecutionProvider" not in session.get_providers():
        reason = "onnxruntime-gpu, or the CUDA libraries that it was built for, are missing"
        pb_utils.Logger.log_warn(f"{args['model_name']} runs on the CPU: {reason}")
    return session


def cuda_options(config: dict[str, Any]) -> dict[str, str]:
    """Return the options that a model's config sets for onnxruntime's CUDA provider."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    options = {
        key: value for entry in accelerators if entry["name"] == "cuda" for key, value in entry["parameters"].items()
    }
    search = config["parameters"].get("cudnn_conv_algo_search", {"string_value": "0"})["string_value"]
    return options | {"cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")[int(search)]}


def _session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    parameters = {name: int(value["string_value"]) for name, value in config["parameters"].items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = parameters.get("intra_op_thread_count", 0)
    options.inter_op_num_threads = parameters.get("inter_op_thread_count", 0)
    if parameters.get("execution_mode", 0) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    return options
