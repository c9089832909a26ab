"""Build TensorRT engines, `1/model.plan`, from the ONNX files of a model repository.

python -m export.tensorrt --repository DIR [--models detector …] [--timing-cache FILE] [--dry-run]

Networks are strongly typed: an engine has the precision of its ONNX file. `model.plan.json` beside an engine records
from which ONNX file, for which profiles and with which TensorRT and GPU it was built; if any of them has changed, the
engine is rebuilt. At the end, a table shows the GPU memory that the engines' weights and contexts need in Triton; an
engine that does not fit beside the others of the repository is not written.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from export.config import repository_pipeline
from export.tensorrt.library import is_for_rtx, load_tensorrt, message_log
from export.tensorrt.memory import ModelMemory, require_fit, table
from export.tensorrt.profiles import Profile, profiles
from livematch.cli.commands import run_command
from livematch.files import replace_file

DEFAULT_WORKSPACE_GIB = 8.0
RTX_TARGET = "SM89"
"""The GPUs that TensorRT for RTX compiles for: L4 and RTX 40."""


class BuildError(ValueError):
    """TensorRT cannot build an engine from a file; the message lists its errors with the names of the nodes."""


def trtexec(onnx_path: Path, plan_path: Path, engine_profiles: list[Profile], workspace_gib: float) -> str:
    """Return the equivalent trtexec command line."""
    parts = ["trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--stronglyTyped", "--noTF32"]
    parts.append(f"--memPoolSize=workspace:{workspace_gib * 1024:g}M")
    for index, profile in enumerate(engine_profiles):
        parts.append(f"--profile={index}")
        for option, field in (("minShapes", "minimum"), ("optShapes", "optimum"), ("maxShapes", "maximum")):
            shapes = (f"{name}:{'x'.join(map(str, getattr(shape, field)))}" for name, shape in profile.inputs.items())
            parts.append(f"--{option}={','.join(shapes)}")
    return " ".join(parts)


def identity(onnx_path: Path, engine_profiles: list[Profile], trt: Any = None) -> dict[str, Any]:
    """Return what an engine is built from, as JSON values; TensorRT's version and the GPU only if `trt` is given."""
    digest = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    parts = json.loads(json.dumps([dataclasses.asdict(profile) for profile in engine_profiles]))
    versions = {} if trt is None else {"tensorrt": trt.__version__, "gpu": torch.cuda.get_device_name()}
    return {"onnx_sha256": digest, "profiles": parts, **versions}


def current_report(plan_path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the JSON of an engine if it has all values of `wanted`, an `identity`.

    Returns None if it has not, or if the engine or its JSON is missing, damaged or of an older version.
    """
    try:
        report = json.loads(_report_path(plan_path).read_text(encoding="utf-8"))
        is_whole = plan_path.stat().st_size == report["plan_bytes"]
        is_current = all(report[key] == value for key, value in wanted.items())
        is_complete = len(report["scratch_bytes"]) == len(wanted["profiles"]) and report["weights_bytes"] > 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_whole and is_current and is_complete else None


def _progress_monitor(trt: Any, name: str, is_cancelled: threading.Event) -> Any:
    """Return a monitor that shows one bar, with the phase that TensorRT is in, while stderr is a terminal."""

    class ProgressBar(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT is imported at run time
        def __init__(self) -> None:
            super().__init__()
            self.bar = tqdm(desc=name, disable=None)
            self.phases: list[str] = []  # one within the other

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.append(phase_name)
            if parent_phase is None:
                self.bar.reset(total=num_steps)
            self.bar.set_postfix_str(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.phases[0]:
                self.bar.update(step + 1 - self.bar.n)
            return not is_cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.remove(phase_name)
            if not self.phases:
                self.bar.update((self.bar.total or 0) - self.bar.n)  # TensorRT does not report the last step
                self.bar.close()

    return ProgressBar()


def _use_timing_cache(config: Any, content: bytes) -> Any:
    """Set and return a timing cache: with this content, or empty if that is damaged or from another GPU or TensorRT."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


@dataclass(frozen=True)
class Engine:
    """What a build returns."""

    plan: bytes
    scratch_bytes: list[int]  # of GPU memory, for each profile: what an execution context needs
    weights_bytes: int  # of GPU memory
    timing_cache: bytes | None  # with the measurements of this build added
    messages: list[str]  # TensorRT's warnings and errors


def build_engine(
    trt: Any,
    onnx_path: Path,
    engine_profiles: Sequence[Profile],
    *,
    workspace_gib: float = DEFAULT_WORKSPACE_GIB,
    timing_cache: bytes | None = None,
) -> Engine:
    """Compile an ONNX file.

    Args:
        trt: the module tensorrt, or TensorRT for RTX, which compiles for RTX_TARGET.
        engine_profiles: none for a file whose inputs have fixed shapes.
        workspace_gib: the GPU memory that one layer may use, in GiB.
        timing_cache: the measurements of earlier builds, possibly b""; None for no cache.

    Raises BuildError, with all errors of the parser, if TensorRT refuses the file.
    """
    logger = message_log(trt)
    logger.lines.clear()
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    # TensorRT 10 needs this flag; 11 has only strongly typed networks, but still accepts it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        lines = [
            f"{onnx_path}: node {error.node_name()!r} ({error.node_operator()}): {error.code().name}: {error.desc()}"
            for error in errors
        ]
        raise BuildError("\n".join(" ".join(line.split()) for line in lines))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # the default rounds float32 to 10 bits
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gib * 2**30))
    if is_for_rtx(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, RTX_TARGET), 0)
    for item in engine_profiles:
        profile = builder.create_optimization_profile()
        for name, shape in item.inputs.items():
            profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{onnx_path}: TensorRT refuses the profile {item.name}: {_errors(logger)}")
    cache = None if timing_cache is None else _use_timing_cache(config, timing_cache)
    with _cancelling() as is_cancelled:
        monitor = _progress_monitor(trt, onnx_path.name, is_cancelled)  # kept alive until the build ends
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{onnx_path}: TensorRT built no engine: {_errors(logger)}")
    return Engine(
        plan=bytes(plan),
        scratch_bytes=_scratch_bytes(trt, logger, plan, max(1, len(engine_profiles))),
        weights_bytes=sum(_figures(logger, "Total Weights Memory")) or len(bytes(plan)),  # at most that
        timing_cache=None if cache is None else bytes(cache.serialize()),
        messages=[f"{severity.lower()}: {text}" for severity, text in logger.lines if severity != "INFO"],
    )


@contextmanager
def _cancelling() -> Iterator[threading.Event]:
    """Context manager: set the event on Ctrl-C, and raise KeyboardInterrupt at the end.

    TensorRT swallows exceptions of the Python code that it calls. Does nothing in other threads than the main one,
    because only that gets signals.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
    if event.is_set():
        raise KeyboardInterrupt


def _errors(logger: Any) -> str:
    return "; ".join(text for severity, text in logger.lines if severity.endswith("ERROR")) or "no reason is given"


def _figures(logger: Any, name: str) -> list[int]:
    matches = (re.match(rf"{name}: (\d+) bytes", text) for _, text in logger.lines)
    return [int(match[1]) for match in matches if match]


def _scratch_bytes(trt: Any, logger: Any, plan: Any, num_profiles: int) -> list[int]:
    """Return the memory of a context for each profile: from the builder's log or, where that has less, the engine."""
    found = _figures(logger, "Total Activation Memory")
    if len(found) == num_profiles:
        return found
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    return [int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(num_profiles)]


def _run(arguments: argparse.Namespace) -> int:
    trt = None if arguments.dry_run else load_tensorrt("; try --dry-run")
    config = repository_pipeline(arguments.repository)
    chosen = arguments.models or config.networks
    if unknown := set(chosen) - set(config.networks):
        networks = ", ".join(config.networks)
        raise ValueError(f"{', '.join(sorted(unknown))}: no network of the repository; it has {networks}")
    paths = [arguments.repository / model / "1" / "model.onnx" for model in chosen]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"missing: {', '.join(missing)}")
    memories: list[ModelMemory] = []
    for model in sorted(config.networks, key=chosen.__contains__):  # first those that are only counted
        onnx_path = arguments.repository / model / "1" / "model.onnx"
        plan_path = onnx_path.with_name("model.plan")
        engine_profiles = profiles(model, config)
        if trt is None and model in chosen:
            print(f"{model}: {onnx_path} -> {plan_path}, {len(engine_profiles)} profiles")
            print(trtexec(onnx_path, plan_path, engine_profiles, arguments.workspace_gib))
        if trt is None or not (model in chosen or plan_path.exists()):
            continue
        wanted = identity(onnx_path, engine_profiles, trt)
        report, engine = current_report(plan_path, wanted), None
        if report is None and model not in chosen:
            raise ValueError(f"{plan_path} is outdated; build it too, or remove it")
        if report is None:
            for outdated in (plan_path, _report_path(plan_path)):
                outdated.unlink(missing_ok=True)  # so that Triton does not serve it if the build fails
            report, engine = _build(trt, onnx_path, engine_profiles, wanted, arguments)
        elif model in chosen:
            print(f"{model}: up to date")
        instances = config.serving_of(model).num_instances
        memories.append(
            ModelMemory(model, engine_profiles, report["scratch_bytes"], report["weights_bytes"], instances)
        )
        require_fit(memories, config)
        if engine is not None:
            _write(plan_path, engine, report)
    if memories:
        print(table(memories, config))
    return 0


def _report_path(plan_path: Path) -> Path:
    return plan_path.with_name("model.plan.json")


def _build(
    trt: Any, onnx_path: Path, engine_profiles: list[Profile], wanted: dict[str, Any], arguments: argparse.Namespace
) -> tuple[dict[str, Any], Engine]:
    """Build one engine, print TensorRT's messages and keep its timings; return its JSON and the engine."""
    cache_path: Path | None = arguments.timing_cache
    cache = None
    if cache_path is not None:
        cache_path.parent.mkdir(parents=True, exist_ok=True)  # fails before the build rather than after it
        cache = cache_path.read_bytes() if cache_path.exists() else b""
    start_s = time.perf_counter()
    engine = build_engine(trt, onnx_path, engine_profiles, workspace_gib=arguments.workspace_gib, timing_cache=cache)
    report = {
        **wanted,
        "plan_bytes": len(engine.plan),
        "scratch_bytes": engine.scratch_bytes,
        "weights_bytes": engine.weights_bytes,
        "build_s": time.perf_counter() - start_s,
    }
    for message in engine.messages:
        print(message, file=sys.stderr)
    if cache_path is not None and engine.timing_cache is not None:
        with replace_file(cache_path) as temporary:
            temporary.write_bytes(engine.timing_cache)
    return report, engine


def _write(plan_path: Path, engine: Engine, report: dict[str, Any]) -> None:
    with replace_file(plan_path) as temporary:
        temporary.write_bytes(engine.plan)
    with replace_file(_report_path(plan_path)) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e4:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 10000")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="default: the detector and all embedders")
    parser.add_argument(
        "--workspace-gib",
        type=_positive,
        default=DEFAULT_WORKSPACE_GIB,
        help="the GPU memory that one layer may use; default: %(default)s",
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and updated; speeds up the next build"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be built, as trtexec command lines")
    arguments = parser.parse_args(argv)
    return run_command("export.tensorrt", lambda: _run(arguments))
