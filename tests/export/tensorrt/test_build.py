"""Building engines, as far as that runs without TensorRT."""

import ast
import importlib.util
import inspect
import json
import sys
from pathlib import Path

import pytest

from export.config import production
from export.parity import runners
from export.tensorrt import build as tensorrt
from export.tensorrt.profiles import profiles

needs_no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    onnx_path = tmp_path / "embedder_b6" / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    onnx_path.write_bytes(b"a graph")
    return tmp_path


@needs_no_tensorrt
def test_without_tensorrt_one_line_and_exit_code_2(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tensorrt.main(["--repository", str(repository), "--models", "embedder_b6"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "export.tensorrt: TensorRT cannot be imported (No module named 'tensorrt'); try --dry-run"
    ]


def test_without_a_gpu_one_line_and_exit_code_2(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", AnyTensorRT())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tensorrt.main(["--repository", str(repository), "--models", "embedder_b6"]) == 2
    assert capsys.readouterr().err.splitlines() == ["export.tensorrt: PyTorch sees no GPU; try --dry-run"]


def test_dry_run_prints_the_command_of_each_engine(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--repository", str(repository), "--models", "embedder_b6", "--workspace-gb", "2", "--dry-run"]
    assert tensorrt.main(arguments) == 0
    head, command = capsys.readouterr().out.splitlines()
    assert head.endswith("1 profiles")
    assert command.startswith("trtexec --onnx=") and "--stronglyTyped --noTF32 --memPoolSize=workspace:2048M" in command
    assert command.count("--profile=") == 1
    assert "--minShapes=crops:1x200x100x3 --optShapes=crops:8x290x290x3 --maxShapes=crops:32x400x400x3" in command
    assert not (repository / "embedder_b6" / "1" / "model.plan").exists()


def test_missing_onnx_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tensorrt.main(["--repository", str(tmp_path), "--models", "detector", "--dry-run"]) == 2
    assert "model.onnx" in capsys.readouterr().err


def test_an_engine_of_another_graph_profile_or_version_is_not_current(repository: Path) -> None:
    onnx_path = repository / "embedder_b6" / "1" / "model.onnx"
    plan_path = onnx_path.with_name("model.plan")
    found = profiles("embedder_b6", production())
    wanted = tensorrt.identity(onnx_path, found) | {"tensorrt": "10.9.0"}
    assert not tensorrt.is_current(plan_path, wanted)
    plan_path.write_bytes(b"an engine")
    assert not tensorrt.is_current(plan_path, wanted)
    plan_path.with_name("model.plan.json").write_text(json.dumps(wanted))
    assert tensorrt.is_current(plan_path, wanted)
    assert not tensorrt.is_current(plan_path, wanted | {"tensorrt": "10.10.0"})
    assert not tensorrt.is_current(plan_path, tensorrt.identity(onnx_path, []))
    onnx_path.write_bytes(b"another graph")
    assert not tensorrt.is_current(plan_path, tensorrt.identity(onnx_path, found))


class AnyTensorRT:
    """Has every attribute, and every call returns another such object."""

    def __getattr__(self, name: str) -> "AnyTensorRT":
        return AnyTensorRT()

    def __call__(self, *arguments: object) -> "AnyTensorRT":
        return AnyTensorRT()

    def __int__(self) -> int:
        return 1


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class BuilderConfig(AnyTensorRT):
    """IBuilderConfig's methods for the timing cache, as documented."""

    def __init__(self) -> None:
        self.cache: Cache | None = None

    def add_optimization_profile(self, profile: object) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> Cache | None:
        return None if content == b"cut off" else Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and cache.content == b"of another GPU":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Cache | None:
        return self.cache


class TensorRT(AnyTensorRT):
    """Builds the engine `b"an engine"`."""

    __version__ = "10.9.0"
    IProgressMonitor = object

    def Builder(self, logger: object) -> AnyTensorRT:
        return Builder()


class Builder(AnyTensorRT):
    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_serialized_network(self, network: object, config: BuilderConfig) -> bytes:
        config.cache.content += b" and more"
        return b"an engine"


@pytest.mark.parametrize(
    ("content", "written"),
    [
        *((None, b" and more"), (b"ours", b"ours and more")),
        *((b"of another GPU", b" and more"), (b"cut off", b" and more")),
    ],
)
def test_timing_cache_is_extended_or_replaced(
    content: bytes | None, written: bytes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", TensorRT())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    path = repository / "folder" / "timing.cache"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    arguments = ["--repository", str(repository), "--models", "embedder_b6", "--timing-cache", str(path)]
    assert tensorrt.main(arguments) == 0
    assert path.read_bytes() == written
    plan_path = repository / "embedder_b6" / "1" / "model.plan"
    assert plan_path.read_bytes() == b"an engine"
    path.write_bytes(b"not read")
    assert tensorrt.main(arguments) == 0  # up to date
    assert path.read_bytes() == b"not read"


CLASSES = (  # whose methods build.py and runners.py call; the same in the documentation of TensorRT 10 and 11
    *("Builder", "IBuilderConfig", "IOptimizationProfile", "ITimingCache", "OnnxParser", "ParserError"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "IProgressMonitor"),
)
OBJECTS = {"builder", "config", "cache", "profile", "parser", "error", "_runtime", "_engine", "_context"}


def attributes() -> tuple[set[str], set[str]]:
    """Return what build.py and runners.py use: dotted names of the module, and member names of its objects."""
    dotted, members = set(), set()
    parts = (tensorrt.build_engine, tensorrt._use_timing_cache, tensorrt._progress_monitor, runners.TensorRTRunner)
    for part in parts:
        for node in ast.walk(ast.parse(inspect.getsource(part))):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if name.startswith("trt."):
                    dotted.add(name.removeprefix("trt."))
                elif name.removeprefix("self.").split(".")[0] in OBJECTS and name.removeprefix("self.").count(".") == 1:
                    members.add(node.attr)
    return dotted, members


def test_nothing_is_used_that_tensorrt_11_removed() -> None:
    dotted, members = attributes()
    assert {"Builder", "OnnxParser", "BuilderFlag.TF32", "Runtime"} <= dotted
    assert {"build_serialized_network", "set_shape", "get_error", "node_name", "execute_async_v3"} <= members
    assert not {"BuilderFlag.FP16", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"} & dotted
    assert not {"supports_model", "set_output_type", "build_engine", "max_workspace_size", "execute_async_v2"} & members


@pytest.mark.tensorrt
def test_everything_used_exists() -> None:
    trt = pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    dotted, members = attributes()
    for name in dotted:
        value = trt
        for part in name.split("."):
            value = getattr(value, part)
    assert not {name for name in members if not any(hasattr(getattr(trt, kind), name) for kind in CLASSES)}
