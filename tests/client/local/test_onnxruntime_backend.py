"""What the Python backend does where Triton places a model on a GPU; the rest of it is tested in a server."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as proto

import livematch

onnxruntime = pytest.importorskip("onnxruntime")

MODEL = Path(livematch.__file__).parent / "local" / "backends" / "onnxruntime" / "model.py"
REPOSITORY = Path(__file__).parents[3] / "model_repository"
CONFIG = """{"max_batch_size": 0, "default_model_filename": "", "parameters": {},
"input": [{"name": "x", "data_type": "TYPE_FP32"}], "output": [{"name": "y", "data_type": "TYPE_FP32"}]}"""


@pytest.fixture
def version(tmp_path: Path) -> Path:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "negate", values[:1], values[1:])
    (tmp_path / "1").mkdir()
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "1" / "model.onnx")
    return tmp_path


@pytest.fixture
def warnings() -> list[str]:
    """What the backend wrote into the server's log."""
    return []


@pytest.fixture
def backend(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    triton = ModuleType("triton_python_backend_utils")
    triton.Logger = SimpleNamespace(log_warn=warnings.append)  # type: ignore[attr-defined]
    triton.triton_string_to_numpy = {"TYPE_FP32": np.float32}.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    specification = importlib.util.spec_from_file_location("onnxruntime_backend", MODEL)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("available", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_a_model_for_a_gpu_that_ends_up_on_the_cpu_says_so(
    version: Path, available: list[str], backend: ModuleType, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without onnxruntime-gpu, and with it but without its CUDA, where onnxruntime falls back without raising."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is built for GPUs")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    arguments = {"model_config": CONFIG, "model_name": "negate", "model_repository": str(version), "model_version": "1"}
    model = backend.TritonPythonModel()
    for kind in ("CPU", "GPU"):
        model.initialize({**arguments, "model_instance_kind": kind, "model_instance_device_id": "0"})
        assert model.session.run(["y"], {"x": np.ones(1, np.float32)})[0].tolist() == [-1]
    (warning,) = warnings
    assert warning.startswith("negate runs on the CPU: ")


def test_cuda_gets_what_the_config_says(backend: ModuleType) -> None:
    assert backend.cuda_options(json.loads(CONFIG)) == {"cudnn_conv_algo_search": "EXHAUSTIVE"}  # as in Triton's own
    text = (REPOSITORY / "embedder_b6" / "configs" / "onnx.pbtxt").read_text(encoding="utf-8")
    message = text_format.Parse(text, proto.ModelConfig())
    config = json.loads(json_format.MessageToJson(message, preserving_proto_field_name=True))
    assert backend.cuda_options(config) == {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
