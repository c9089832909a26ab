"""Build a complete model repository: configs, Python models and an ONNX file for every graph and network.

    python -m export.build --pipeline demo --checkpoints training/demo/checkpoints --output build/demo
    python -m export.build --pipeline my_pipeline.json --checkpoints DIR --output build/mine
    python -m export.build --pipeline production --random-weights 0 --output build/production

Every ONNX file is compared with its source before it is accepted; the exit code is 3 if a limit is exceeded. A stamp
beside each file records what it was built from, so that a second run rebuilds only what has changed.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript
import timm
import torch
import torchvision

from export.checkpoints import find_checkpoint, resolve
from export.config import (
    OnnxEmbedderConfig,
    PipelineConfig,
    add_gpu_memory_option,
    add_pipeline_option,
    load_pipeline,
)
from export.graphs.crop import build_crop
from export.graphs.precision import PRECISIONS
from export.graphs.prepare import build_prepare
from export.onnx import files as onnx_files
from export.onnx.export import export_detector, export_embedder
from export.onnx.wrap import wrap_embedder
from export.parity.check import check_crop, check_detector, check_embedder, check_onnx_embedder, check_prepare
from export.parity.compare import ParityError, Report
from export.signature import KINDS, signatures
from export.triton.model_config import REPOSITORY, write_files
from livematch.cli.commands import EXIT_FAILURES, run_command
from livematch.files import replace_file

_ROOT = Path(__file__).parents[1]
_PACKAGES = (torch, torchvision, timm, onnx, onnxscript, onnxruntime)
_SOURCES = (
    *("export/graphs", "export/onnx", "export/parity", "export/signature.py"),
    *("training/checkpoint.py", "training/detector", "training/embedder"),
)
"""The code that writes and checks ONNX files; changing any of it rebuilds them all.

`export/config.py` is left out: the inputs of each artifact include the values of the config that its file depends on.
"""


@dataclass(frozen=True)
class Artifact:
    """One ONNX file to build."""

    model: str
    write: Callable[[Path], object]
    check: Callable[[Path], Report]
    inputs: tuple[bytes, ...]  # what the file is built from: a checkpoint's files, or the graph itself

    def stamp(self) -> str:
        """Return a digest that changes whenever the file has to be rebuilt."""
        versions = [f"{package.__name__} {package.__version__}" for package in _PACKAGES]
        code = [path.read_bytes() for path in source_files()]
        return _digest([*self.inputs, *code, *(version.encode() for version in versions)])


def source_files() -> list[Path]:
    """Return the Python files that an ONNX file depends on."""
    paths = [_ROOT / source for source in _SOURCES]
    return [file for path in paths for file in ([path] if path.suffix == ".py" else sorted(path.rglob("*.py")))]


def build(
    config: PipelineConfig,
    output: Path,
    *,
    checkpoints: Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
) -> str:
    """Write the repository to `output` and return its model identity, such as "demo-0123456789ab".

    Args:
        config: the pipeline to build, such as `export.config.demo()`.
        output: the repository's folder; it may hold an earlier build.
        checkpoints: a folder as `export.checkpoints` describes it.
        random_seed: the seed of random weights, instead of checkpoints.
        precision: "fp32" or "fp16", the precision of the networks; embedders that come as ONNX files keep theirs.

    Raises:
        ValueError: a checkpoint does not match its JSON or `config`, or the arguments contradict each other.
        FileNotFoundError: a checkpoint is missing.
        ParityError: an ONNX file does not match its PyTorch source; an earlier file is not replaced.
    """
    if (checkpoints is None) == (random_seed is None):
        raise ValueError("give either a folder of checkpoints or a random seed")
    if checkpoints is not None:
        config = resolve(config, checkpoints)
    artifacts = [*_graphs(config), *_networks(config, checkpoints, random_seed, precision)]
    write_files(config, output)
    copy_python_models(config, output)
    for artifact in artifacts:
        _bring_up_to_date(artifact, output / artifact.model / "1" / "model.onnx")
    files = [output / artifact.model / "1" / "model.onnx" for artifact in artifacts]
    files += sorted((REPOSITORY / "crop_and_embed" / "1").glob("*.py"))
    templates = repr(config.templates).encode()  # in no ONNX file, but embeddings depend on them
    identity = f"{config.name}-{_digest([templates, *(file.read_bytes() for file in files)])[:12]}"
    write_files(config, output, model_identity=identity)
    return identity


def copy_python_models(config: PipelineConfig, output: Path) -> None:
    """Copy the code of the models that are written in Python to the model repository `output`."""
    for model in (name for name, signature in signatures(config).items() if signature.kind == "python"):
        for source in (REPOSITORY / model / "1").glob("*.py"):
            shutil.copyfile(source, output / model / "1" / source.name)


def _graphs(config: PipelineConfig) -> Iterator[Artifact]:
    checks = {f"prepare_{kind}": partial(check_prepare, config=config, kind=kind) for kind in KINDS}
    graphs = {f"prepare_{kind}": build_prepare(config, kind) for kind in KINDS}
    for model, graph in (graphs | {"crop": build_crop()}).items():
        content = graph.SerializeToString(deterministic=True)
        yield Artifact(model, partial(onnx_files.save, graph), checks.get(model, check_crop), inputs=(content,))


def _networks(
    config: PipelineConfig, checkpoints: Path | None, random_seed: int | None, precision: str
) -> Iterator[Artifact]:
    for position, model in enumerate(config.networks):
        architecture = config.detector_config if model == "detector" else config.embedder_models[model]
        if isinstance(architecture, OnnxEmbedderConfig):
            yield _onnx_embedder(model, config, architecture, checkpoints)
            if precision != "fp32":
                print(f"export.build: {model} keeps the precision of its ONNX file", file=sys.stderr)
            continue
        weights: dict[str, Any] = {}
        if random_seed is not None:
            checkpoint = None
            weights["config"] = architecture
            weights["random_seed"] = random_seed + position
            inputs = [repr(tuple(weights.values())).encode()]
        else:
            assert checkpoints is not None
            checkpoint, settings = find_checkpoint(checkpoints, model)
            inputs = [checkpoint.read_bytes(), settings.read_bytes()]
            if model == "detector":
                weights["config"] = architecture
        write: Callable[..., object] = export_detector
        check: Callable[..., Report] = check_detector
        if model != "detector":
            write = partial(export_embedder, crop_size=config.only_crop_size)
            check = partial(check_embedder, sizes=config.crop_sizes, crop_size=config.only_crop_size)
        yield Artifact(
            model,
            write=partial(write, checkpoint, precision=precision, **weights),
            check=partial(check, checkpoint=checkpoint, **weights),
            inputs=(*inputs, precision.encode(), repr(config.only_crop_size).encode()),
        )


def _onnx_embedder(
    model: str, config: PipelineConfig, embedder: OnnxEmbedderConfig, checkpoints: Path | None
) -> Artifact:
    if checkpoints is None:
        raise ValueError(f"{model} comes as an ONNX file, which has no random weights; give --checkpoints")
    source, _ = find_checkpoint(checkpoints, model)
    wrapped = wrap_embedder(source, embedder, config.crop_sizes, embedder.embedding_size)
    content = wrapped.SerializeToString(deterministic=True)
    check = partial(
        check_onnx_embedder, source=source, config=embedder, sizes=config.crop_sizes, crop_size=config.only_crop_size
    )
    return Artifact(model, partial(onnx_files.save, wrapped), check, inputs=(content,))


def _bring_up_to_date(artifact: Artifact, path: Path) -> None:
    """Build the file at `path`, unless its stamp shows that nothing has changed."""
    stamp_path = path.with_name(f"{path.name}.stamp")
    stamp = artifact.stamp()
    if path.exists() and stamp_path.exists() and stamp_path.read_text() == stamp:
        return
    with replace_file(path) as unchecked:
        artifact.write(unchecked)
        try:
            report = artifact.check(unchecked)
        except ParityError as error:
            raise ParityError(str(error).replace(str(unchecked), str(path))) from error
        for outdated in (stamp_path, path.with_name("model.plan"), path.with_name("model.plan.json")):
            outdated.unlink(missing_ok=True)
    stamp_path.write_text(stamp)
    print(json.dumps({"model": artifact.model, "size_bytes": path.stat().st_size, **report}), flush=True)


def _digest(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pipeline_option(parser)
    add_gpu_memory_option(parser)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="with detector.pth or .pkl, embedder_….pth or .onnx"
    )
    weights.add_argument(
        "--random-weights", dest="random_seed", type=int, metavar="SEED", help="instead of checkpoints"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the networks; default: %(default)s")
    options = vars(parser.parse_args(argv))
    return run_command("export.build", lambda: _run(**options))


def _run(*, pipeline: Path, gpu_memory: int | None, **options: Any) -> int:
    try:
        identity = build(load_pipeline(pipeline, gpu_memory), **options)
    except ParityError as error:
        print(f"export.build: {error}", file=sys.stderr)
        return EXIT_FAILURES
    print(json.dumps({"model_identity": identity, "output": str(options["output"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
