"""Building engines: with TensorRT for RTX, which needs no GPU, and as far as that runs without any TensorRT."""

import ast
import importlib.util
import inspect
import json
import shutil
import signal
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from export.config import demo, production
from export.parity import runners
from export.tensorrt import build as tensorrt
from export.tensorrt.build import BuildError
from export.tensorrt.library import message_log
from export.tensorrt.profiles import profiles
from export.triton.model_config import write_files

needs_no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    onnx_path = tmp_path / "embedder_b6" / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    onnx_path.write_bytes(b"a graph")
    write_files(production(), tmp_path)
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
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tensorrt.main(["--repository", str(repository), "--models", "embedder_b6"]) == 2
    assert capsys.readouterr().err.splitlines() == ["export.tensorrt: PyTorch sees no GPU; try --dry-run"]


def test_dry_run_prints_the_command_of_each_engine(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--repository", str(repository), "--models", "embedder_b6", "--workspace-gib", "2", "--dry-run"]
    assert tensorrt.main(arguments) == 0
    head, command = capsys.readouterr().out.splitlines()
    assert head.endswith("12 profiles")
    assert command.startswith("trtexec --onnx=") and "--stronglyTyped --noTF32 --memPoolSize=workspace:2048M" in command
    assert command.count("--profile=") == 12
    assert "--minShapes=crops:1x290x290x3 --optShapes=crops:3x290x290x3 --maxShapes=crops:6x290x290x3" in command
    assert not (repository / "embedder_b6" / "1" / "model.plan").exists()


def test_missing_onnx_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(production(), tmp_path)
    assert tensorrt.main(["--repository", str(tmp_path), "--models", "detector", "--dry-run"]) == 2
    assert "model.onnx" in capsys.readouterr().err


def test_an_engine_of_another_graph_profile_or_version_is_not_current(repository: Path) -> None:
    onnx_path = repository / "embedder_b6" / "1" / "model.onnx"
    plan_path = onnx_path.with_name("model.plan")
    report_path = onnx_path.with_name("model.plan.json")
    found = profiles("embedder_b6", production())
    wanted = tensorrt.identity(onnx_path, found) | {"tensorrt": "10.9.0"}
    report = wanted | {"plan_bytes": 9, "scratch_bytes": [1] * 12, "weights_bytes": 1}
    assert tensorrt.current_report(plan_path, wanted) is None
    plan_path.write_bytes(b"an engine")
    assert tensorrt.current_report(plan_path, wanted) is None
    report_path.write_text(json.dumps(report))
    assert tensorrt.current_report(plan_path, wanted) == report
    assert tensorrt.current_report(plan_path, wanted | {"tensorrt": "10.10.0"}) is None
    assert tensorrt.current_report(plan_path, tensorrt.identity(onnx_path, [])) is None
    plan_path.write_bytes(b"an eng")
    assert tensorrt.current_report(plan_path, wanted) is None
    plan_path.write_bytes(b"an engine")
    onnx_path.write_bytes(b"another graph")
    assert tensorrt.current_report(plan_path, tensorrt.identity(onnx_path, found)) is None


@pytest.mark.parametrize("content", ["", "null", "[]", '"text"', "{", '{"plan_bytes": 9}', '{"scratch_bytes": 3}'])
def test_a_damaged_or_old_report_is_not_current(repository: Path, content: str) -> None:
    onnx_path = repository / "embedder_b6" / "1" / "model.onnx"
    plan_path = onnx_path.with_name("model.plan")
    plan_path.write_bytes(b"an engine")
    onnx_path.with_name("model.plan.json").write_text(content)
    wanted = tensorrt.identity(onnx_path, profiles("embedder_b6", production()))
    assert tensorrt.current_report(plan_path, wanted) is None


def build_b6(trt: Any, half_repository: Path, **options: Any) -> tensorrt.Engine:
    path = half_repository / "embedder_b6" / "1" / "model.onnx"
    return tensorrt.build_engine(trt, path, profiles("embedder_b6", demo())[:1], **options)


def test_an_engine_is_built(rtx: Any, half_repository: Path) -> None:
    engine = build_b6(rtx, half_repository)
    assert len(engine.plan) > engine.weights_bytes > 0.9e6
    (scratch_bytes,) = engine.scratch_bytes
    assert 5e6 < scratch_bytes < 50e6
    assert engine.timing_cache is None and engine.messages == []


def test_too_little_workspace_is_named(rtx: Any, half_repository: Path) -> None:
    with pytest.raises(BuildError, match=r"TensorRT built no engine: .*workspace limit"):
        build_b6(rtx, half_repository, workspace_gib=2**-10)


@pytest.mark.parametrize("content", [b"", b"no cache"])
def test_a_timing_cache_may_be_empty_or_damaged(rtx: Any, half_repository: Path, content: bytes) -> None:
    with pytest.warns(DeprecationWarning, match="Timing cache"):  # TensorRT for RTX does not use it
        engine = build_b6(rtx, half_repository, timing_cache=content)
    assert engine.timing_cache and engine.timing_cache != content


def test_the_progress_bar_follows_the_builder(
    rtx: Any, half_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorrt, "tqdm", lambda **options: tqdm(**options | {"disable": False, "mininterval": 0}))
    build_b6(rtx, half_repository)
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("model.onnx: 100%") and "refit" in shown


@pytest.fixture
def as_tensorrt(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command take TensorRT for RTX for TensorRT on a GPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")


@pytest.fixture
def served(half_repository: Path, tmp_path: Path) -> Path:
    for model in ("embedder_b6", "embedder_b7"):
        shutil.copytree(half_repository / model, tmp_path / model)
    shutil.copy(half_repository / "pipeline.json", tmp_path)
    return tmp_path


def arguments(repository: Path, *more: str) -> list[str]:
    return ["--repository", str(repository), "--models", "embedder_b6", "embedder_b7", *more]


@pytest.mark.usefixtures("as_tensorrt")
def test_command_builds_engines_once_and_prints_their_memory(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = served / "embedder_b7" / "1" / "model.plan"
    assert tensorrt.main(arguments(served)) == 0
    built = plan.read_bytes()
    first = capsys.readouterr().out
    assert first.splitlines()[-1].endswith(" of 12.0 GB")
    report = json.loads(plan.with_name("model.plan.json").read_text())
    assert len(report["scratch_bytes"]) == 12 and report["gpu"] == "a GPU"
    marked = b"not built again".ljust(len(built))
    plan.write_bytes(marked)
    assert tensorrt.main(arguments(served)) == 0
    assert plan.read_bytes() == marked
    assert capsys.readouterr().out == f"embedder_b6: up to date\nembedder_b7: up to date\n{first}"


@pytest.mark.usefixtures("as_tensorrt")
def test_engines_that_are_there_count(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.tensorrt.memory.MAX_FRACTION", 0.02)  # 0.32 GB: one fits, both do not
    command = ["--repository", str(served), "--models"]
    assert tensorrt.main([*command, "embedder_b6"]) == 0
    assert tensorrt.main([*command, "embedder_b7"]) == 2
    assert tensorrt.main([*command, "embedder_b6", "embedder_b6"]) == 0


@pytest.mark.usefixtures("as_tensorrt")
def test_an_unknown_network_is_named(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tensorrt.main(["--repository", str(served), "--models", "embedder_b9"]) == 2
    assert "embedder_b9: no network of the repository; it has detector, embedder_b5a" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-3", "nan", "inf", "1e15", "much"])
def test_an_impossible_workspace_is_refused(size: str, served: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        tensorrt.main(arguments(served, "--workspace-gib", size))


@pytest.mark.usefixtures("as_tensorrt")
def test_an_interrupt_ends_the_build_and_leaves_no_engine(served: Path) -> None:
    interrupt = threading.Timer(0.4, signal.raise_signal, [signal.SIGINT])
    build = tensorrt.build_engine

    def start(*everything: Any, **options: Any) -> tensorrt.Engine:
        interrupt.start()
        return build(*everything, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt, "build_engine", start)
        assert tensorrt.main(arguments(served)) == 130
    assert not list(served.rglob("model.plan"))


@pytest.mark.usefixtures("as_tensorrt")
def test_engines_that_do_not_fit_are_not_written(
    served: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tensorrt.memory.MAX_FRACTION", 0.02)  # 0.32 GB: one fits, both do not
    assert tensorrt.main(arguments(served)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the engines need 0.5 GB, more than 0.3 GB (2% of 16 GB); the largest is embedder_b7 with 0.3 GB" in line
    plans = [served / model / "1" / "model.plan" for model in ("embedder_b6", "embedder_b7")]
    assert [plan.exists() for plan in plans] == [True, False]


@pytest.mark.usefixtures("as_tensorrt")
@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
def test_timings_are_kept_even_of_an_engine_that_does_not_fit(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.tensorrt.memory.MAX_FRACTION", 0.0)
    cache = served / "folder" / "timing.cache"
    assert tensorrt.main(arguments(served, "--timing-cache", str(cache))) == 2
    assert cache.stat().st_size > 0
    cache.write_bytes(b"damaged")
    assert tensorrt.main(arguments(served, "--timing-cache", str(cache))) == 2
    assert cache.read_bytes() != b"damaged"


CLASSES = (  # whose methods build.py and runners.py call; the same in the documentation of TensorRT 10 and 11
    *("Builder", "IBuilderConfig", "IOptimizationProfile", "ITimingCache", "OnnxParser", "ParserError"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "IProgressMonitor"),
)
OBJECTS = {
    *("builder", "config", "cache", "profile", "parser", "error", "runtime", "engine"),
    *("_runtime", "_engine", "_context"),
}


def attributes() -> tuple[set[str], set[str]]:
    """Return what build.py and runners.py use: dotted names of the module, and member names of its objects."""
    dotted, members = set(), set()
    parts = (
        *(tensorrt.build_engine, tensorrt._use_timing_cache, tensorrt._progress_monitor, tensorrt._scratch_bytes),
        *(message_log, runners.TensorRTRunner),
    )
    for part in parts:
        for node in ast.walk(ast.parse(inspect.getsource(part))):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                if name.startswith("trt."):
                    dotted.add(name.removeprefix("trt."))
                elif name.removeprefix("self.").split(".")[0] in OBJECTS and name.removeprefix("self.").count(".") == 1:
                    members.add(node.attr)
    return dotted, members


def test_the_calls_are_found() -> None:
    dotted, members = attributes()
    assert {"Builder", "OnnxParser", "BuilderFlag.TF32", "Runtime"} <= dotted
    assert {"build_serialized_network", "set_shape", "get_error", "node_name", "execute_async_v3"} <= members


@pytest.mark.tensorrt
@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx_bindings"])
def test_everything_used_exists(library: str) -> None:
    trt = pytest.importorskip(library, reason=f"{library} is not installed")
    dotted, members = attributes()
    for name in dotted:
        value = trt
        for part in name.split("."):
            value = getattr(value, part)
    assert not {name for name in members if not any(hasattr(getattr(trt, kind), name) for kind in CLASSES)}
