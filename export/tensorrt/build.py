"""Build TensorRT engines, `1/model.plan`, from the ONNX files of a model repository.

python -m export.tensorrt --repository DIR [--models detector …] [--workspace-gb 8] [--timing-cache FILE] [--dry-run]

Networks are strongly typed: an engine has the precision of its ONNX file. `model.plan.json` beside an engine records
from which ONNX file, for which profiles and with which TensorRT and GPU it was built; if any of them has changed, the
engine is rebuilt.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from export.config import CONFIGS
from export.tensorrt.profiles import ENGINES, Profile, profiles
from livematch.cli.commands import run_command
from livematch.errors import LivematchError
from livematch.files import replace_file


class EngineError(LivematchError):
    """The GPU or the library that runs an engine is missing, or the engine fails to run; the message is one line."""


class BuildError(ValueError):
    """TensorRT cannot build an engine from a file; the message lists its errors with the names of the nodes."""


def load_tensorrt(hint: str = "") -> Any:
    """Return the module tensorrt; if it or a GPU is missing, raise EngineError with a message that ends with `hint`."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise EngineError(f"TensorRT cannot be imported ({error}){hint}") from error
    if not torch.cuda.is_available():
        raise EngineError(f"PyTorch sees no GPU{hint}")
    return trt


def trtexec(onnx_path: Path, plan_path: Path, engine_profiles: list[Profile], workspace_gb: float) -> str:
    """Return the equivalent trtexec command line."""
    parts = ["trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--stronglyTyped", "--noTF32"]
    parts.append(f"--memPoolSize=workspace:{workspace_gb * 1024:g}M")
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


def is_current(plan_path: Path, wanted: dict[str, Any]) -> bool:
    """Return whether there is an engine whose JSON has all values of `wanted`, an `identity`."""
    sidecar = plan_path.with_name("model.plan.json")
    if not plan_path.exists() or not sidecar.exists():
        return False
    present = json.loads(sidecar.read_text(encoding="utf-8"))
    return all(present.get(key) == value for key, value in wanted.items())


def _progress_monitor(trt: Any) -> Any:
    class ProgressBars(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT is imported at run time
        def __init__(self) -> None:
            super().__init__()
            self.bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=parent_phase is None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar = self.bars[phase_name]
            bar.update(step + 1 - bar.n)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            self.bars.pop(phase_name).close()

    return ProgressBars()


def _use_timing_cache(config: Any, content: bytes) -> Any:
    """Set and return a timing cache: with this content, or empty if that is damaged or from another GPU or TensorRT."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build_engine(
    trt: Any, onnx_path: Path, engine_profiles: list[Profile], *, workspace_gb: float, timing_cache: bytes
) -> tuple[bytes, bytes]:
    """Return the engine, and the timing cache with the measurements of this build added.

    Raises BuildError, with all errors of the parser, if TensorRT refuses the file.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    # TensorRT 10 needs this flag; 11 has only strongly typed networks, but still accepts it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError("\n".join(f"{onnx_path}: node {error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # the default rounds float32 to 10 bits
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gb * 2**30))
    for item in engine_profiles:
        profile = builder.create_optimization_profile()
        for name, shape in item.inputs.items():
            profile.set_shape(name, shape.minimum, shape.optimum, shape.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{onnx_path}: TensorRT refuses the profile {item.name}")
    cache = _use_timing_cache(config, timing_cache)
    monitor = _progress_monitor(trt)  # kept alive until the build ends
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{onnx_path}: TensorRT built no engine; see its log above")
    return bytes(plan), bytes(cache.serialize())


def _run(arguments: argparse.Namespace) -> int:
    trt = None if arguments.dry_run else load_tensorrt("; try --dry-run")
    for model in arguments.models:
        onnx_path = arguments.repository / model / "1" / "model.onnx"
        plan_path = onnx_path.with_name("model.plan")
        engine_profiles = profiles(model, CONFIGS[arguments.config]())
        wanted = identity(onnx_path, engine_profiles, trt)
        if trt is None:
            print(f"{model}: {onnx_path} -> {plan_path}, {len(engine_profiles)} profiles")
            print(trtexec(onnx_path, plan_path, engine_profiles, arguments.workspace_gb))
        elif is_current(plan_path, wanted):
            print(f"{model}: up to date")
        else:
            for outdated in (plan_path, plan_path.with_name("model.plan.json")):
                outdated.unlink(missing_ok=True)  # so that Triton does not serve it if the build fails
            _write_engine(trt, onnx_path, engine_profiles, wanted, arguments)
    return 0


def _write_engine(
    trt: Any, onnx_path: Path, engine_profiles: list[Profile], wanted: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Build one engine; write it, its JSON and the timing cache."""
    cache_path: Path | None = arguments.timing_cache
    cache = cache_path.read_bytes() if cache_path is not None and cache_path.exists() else b""
    start_s = time.perf_counter()
    plan, cache = build_engine(trt, onnx_path, engine_profiles, workspace_gb=arguments.workspace_gb, timing_cache=cache)
    report = {**wanted, "build_s": time.perf_counter() - start_s}
    contents = {
        onnx_path.with_name("model.plan"): plan,
        onnx_path.with_name("model.plan.json"): (json.dumps(report, indent=2) + "\n").encode(),
    }
    if cache_path is not None:
        contents[cache_path] = cache
    for path, content in contents.items():
        with replace_file(path) as temporary:
            temporary.write_bytes(content)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--models", nargs="+", choices=ENGINES, default=ENGINES, help="default: the detector and all embedders"
    )
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production", help="default: %(default)s")
    parser.add_argument("--workspace-gb", type=float, default=8.0, help="in GiB; default: %(default)s")
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and updated; speeds up the next build"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be built, as trtexec command lines")
    arguments = parser.parse_args(argv)
    return run_command("export.tensorrt", lambda: _run(arguments))
