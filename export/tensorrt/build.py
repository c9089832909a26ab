"""Builds TensorRT engines, `1/model.plan`, from the ONNX files of a model repository.

python -m export.tensorrt --repository DIR [--models detector …] [--workspace-gb 8] [--timing-cache FILE] [--dry-run]

Networks are strongly typed: the precision is the ONNX file's. An engine whose sidecar `model.plan.json` does not fit
its ONNX file, profiles, TensorRT or GPU any more is built anew. Exit code 2 where TensorRT or a GPU is missing.
"""

import argparse
import dataclasses
import hashlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from export.config import CONFIGS, PipelineConfig
from export.onnx.files import precision_of
from export.tensorrt.profiles import ENGINES, Profile, profiles


class BuildError(ValueError):
    """TensorRT refused a file; the message has its errors with the names of the nodes."""


def trtexec(onnx_path: Path, plan_path: Path, found: list[Profile], workspace_gb: float) -> str:
    """The equivalent command line."""
    parts = ["trtexec", f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--stronglyTyped", "--noTF32"]
    parts.append(f"--memPoolSize=workspace:{workspace_gb * 1024:g}M")
    for index, profile in enumerate(found):
        parts.append(f"--profile={index}")
        for option, field in (("minShapes", "minimum"), ("optShapes", "optimum"), ("maxShapes", "maximum")):
            shapes = (f"{name}:{'x'.join(map(str, getattr(shape, field)))}" for name, shape in profile.inputs.items())
            parts.append(f"--{option}={','.join(shapes)}")
    return " ".join(parts)


def identity(onnx_path: Path, found: list[Profile]) -> dict[str, Any]:
    """What an engine is made from, as far as it is known without TensorRT."""
    digest = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    return {"onnx_sha256": digest, "profiles": json.loads(json.dumps([dataclasses.asdict(item) for item in found]))}


def is_current(plan_path: Path, wanted: dict[str, Any]) -> bool:
    sidecar = plan_path.with_name("model.plan.json")
    if not plan_path.exists() or not sidecar.exists():
        return False
    try:
        present = json.loads(sidecar.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # cut off when the build was killed
        return False
    return all(present.get(key) == value for key, value in wanted.items())


def _progress_monitor(trt: Any) -> Any:
    class ProgressBars(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=parent_phase is None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar = self.bars[phase_name]
            bar.update(step + 1 - bar.n)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self.bars.pop(phase_name).close()

    return ProgressBars()


def _use_timing_cache(config: Any, content: bytes) -> Any:
    """The cache with that content, or an empty one if the content is cut off or of another GPU or TensorRT."""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build_engine(
    trt: Any, onnx_path: Path, found: list[Profile], *, workspace_gb: float, timing_cache: bytes
) -> tuple[bytes, bytes]:
    """Returns the engine and the timing cache with what was measured for it; raises BuildError with all errors."""
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    # TensorRT 11 has strongly typed networks only, 10 needs the flag, and 11 still accepts it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise BuildError("\n".join(f"{onnx_path}: node {error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default, and rounds what is meant to be float32 to 10 bits
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gb * 2**30))
    for item in found:
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
        raise BuildError(f"{onnx_path}: TensorRT built no engine; its log above says why")
    return bytes(plan), bytes(cache.serialize())


def _run(arguments: argparse.Namespace, config: PipelineConfig, trt: Any | None) -> None:
    cache_path: Path | None = arguments.timing_cache
    if cache_path is not None:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        onnx_path = arguments.repository / model / "1" / "model.onnx"
        plan_path = onnx_path.with_name("model.plan")
        found = profiles(model, config)
        wanted = identity(onnx_path, found)
        if trt is None:
            print(f"{model}: {onnx_path} -> {plan_path}, {len(found)} profiles")
            print(trtexec(onnx_path, plan_path, found, arguments.workspace_gb))
            continue
        wanted |= {"tensorrt": trt.__version__, "gpu": torch.cuda.get_device_name()}
        wanted["precision"] = precision_of(onnx_path)
        if is_current(plan_path, wanted):
            print(f"{model}: up to date")
            continue
        sidecar = plan_path.with_name("model.plan.json")
        sidecar.unlink(missing_ok=True)
        plan_path.unlink(missing_ok=True)
        cache = cache_path.read_bytes() if cache_path is not None and cache_path.exists() else b""
        start = time.perf_counter()
        plan, cache = build_engine(trt, onnx_path, found, workspace_gb=arguments.workspace_gb, timing_cache=cache)
        plan_path.write_bytes(plan)
        report = {**wanted, "build_s": time.perf_counter() - start}
        sidecar.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if cache_path is not None:
            cache_path.write_bytes(cache)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="production", help="sizes of the profiles")
    parser.add_argument("--workspace-gb", type=float, default=8.0)
    parser.add_argument("--timing-cache", type=Path, metavar="FILE")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, with trtexec lines")
    arguments = parser.parse_args(argv)
    trt = None
    if not arguments.dry_run:
        try:
            trt = importlib.import_module("tensorrt")
        except ImportError as error:
            print(f"export.tensorrt: TensorRT cannot be imported ({error}); try --dry-run", file=sys.stderr)
            return 2
        if not torch.cuda.is_available():
            print("export.tensorrt: PyTorch sees no GPU; try --dry-run", file=sys.stderr)
            return 2
    try:
        _run(arguments, CONFIGS[arguments.config](), trt)
    except (BuildError, OSError) as error:
        print(f"export.tensorrt: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
