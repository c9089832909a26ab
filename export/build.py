"""Builds a complete model repository: configs, Python models and an ONNX file for every graph and network.

python -m export.build --config demo --checkpoints training/demo/checkpoints --output build/demo
python -m export.build --config production --random-weights 0 --output build/production

Every ONNX file is compared with PyTorch before it counts as built. A stamp beside it says what it was made of, so that
a second run keeps whatever is up to date.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import onnx
import onnxruntime
import onnxscript
import timm
import torch
import torchvision

from export.config import CONFIGS, PipelineConfig
from export.graphs.crop import build_crop
from export.graphs.prepare import build_prepare
from export.onnx import files as onnx_files
from export.onnx.export import export_detector, export_embedder
from export.onnx.precision import PRECISIONS
from export.parity.check import check_crop, check_detector, check_embedder, check_prepare
from export.parity.compare import Report
from export.signature import EMBEDDERS, KINDS, MODELS
from export.triton.model_config import REPOSITORY, write_files
from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig

_ROOT = Path(__file__).parents[1]
_PACKAGES = (torch, torchvision, timm, onnx, onnxscript, onnxruntime)
_SOURCE_FOLDERS = ("export/graphs", "export/onnx", "export/parity", "training/detector", "training/embedder")
"""The code behind every ONNX file; a change to any of it exports them all again."""


@dataclass(frozen=True)
class Artifact:
    """One ONNX file."""

    model: str
    write: Callable[[Path], None]
    check: Callable[[Path], Report]
    inputs: tuple[bytes, ...]  # what it is made from: a checkpoint's files, or the graph itself

    def stamp(self) -> str:
        """Changes whenever the file has to be made again."""
        versions = [f"{package.__name__} {package.__version__}" for package in _PACKAGES]
        code = [path.read_bytes() for folder in _SOURCE_FOLDERS for path in sorted((_ROOT / folder).glob("*.py"))]
        return _digest([*self.inputs, *code, *(version.encode() for version in versions)])


def build(
    config: PipelineConfig,
    output: Path,
    *,
    checkpoints: Path | None = None,
    random_seed: int | None = None,
    precision: str = "fp32",
) -> str:
    """Writes the repository to `output`, its networks in "fp32" or "fp16", and returns its model identity.

    Raises ValueError for checkpoints that do not fit themselves or `config`, FileNotFoundError for missing ones,
    ParityError for a file that computes something else.
    """
    if (checkpoints is None) == (random_seed is None):
        raise ValueError("either a folder of checkpoints or a random seed")
    artifacts = [*_graphs(config), *_networks(config, checkpoints, random_seed, precision)]
    write_files(config, output)
    copy_python_models(output)
    for artifact in artifacts:
        _bring_up_to_date(artifact, output / artifact.model / "1" / "model.onnx")
    files = [output / artifact.model / "1" / "model.onnx" for artifact in artifacts]
    files += sorted((REPOSITORY / "crop_and_embed" / "1").glob("*.py"))
    templates = repr(config.templates).encode()  # outside the files, like crop_and_embed, but part of the embeddings
    identity = f"{config.name}-{_digest([templates, *(file.read_bytes() for file in files)])[:12]}"
    write_files(config, output, model_identity=identity)
    return identity


def copy_python_models(output: Path) -> None:
    """Copies what is not generated: the code of the models that are written in Python."""
    for model in (name for name, signature in MODELS.items() if signature.kind == "python"):
        for source in (REPOSITORY / model / "1").glob("*.py"):
            shutil.copyfile(source, output / model / "1" / source.name)


def _graphs(config: PipelineConfig) -> Iterator[Artifact]:
    graphs = {f"prepare_{kind}": build_prepare(config, kind) for kind in KINDS} | {"crop": build_crop()}
    checks = {f"prepare_{kind}": partial(check_prepare, config=config, kind=kind) for kind in KINDS}
    for model, graph in graphs.items():
        yield Artifact(
            model,
            write=partial(onnx_files.save, graph),
            check=checks.get(model, check_crop),
            inputs=(graph.SerializeToString(deterministic=True),),
        )


def _networks(
    config: PipelineConfig, checkpoints: Path | None, random_seed: int | None, precision: str
) -> Iterator[Artifact]:
    networks = {"detector": config.detector, **{name: config.embedder(name) for name in EMBEDDERS}}
    for position, (model, network) in enumerate(networks.items()):
        if checkpoints is None:
            weights = {"checkpoint": None, "config": network, "random_seed": random_seed + position}
            inputs = (repr(weights).encode(),)
        else:
            weights = {"checkpoint": checkpoints / f"{model}.pth"}
            inputs = tuple((checkpoints / f"{model}{suffix}").read_bytes() for suffix in (".pth", ".json"))
            _check_settings(model, checkpoints / f"{model}.json", config)
        if model == "detector":
            write, check = export_detector, check_detector
        else:
            write = export_embedder
            check = partial(check_embedder, sizes=config.crop_sizes)
        yield Artifact(
            model,
            write=lambda path, write=write, weights=weights: write(output=path, precision=precision, **weights),
            check=partial(check, **weights),
            inputs=(*inputs, precision.encode()),
        )


def _check_settings(model: str, path: Path, config: PipelineConfig) -> None:
    """Raises ValueError if the checkpoint that the JSON is of was trained for another pipeline."""
    if model == "detector":
        found, expected = asdict(DetectorConfig.load(path)), asdict(config.detector)
    else:
        found, expected = {"template": EmbedderConfig.load(path).template}, {"template": config.template_set}
    faults = [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]
    if faults:
        raise ValueError(f"{path} does not fit the config {config.name!r}: {', '.join(faults)}")


def _bring_up_to_date(artifact: Artifact, path: Path) -> None:
    stamp_path = path.with_name(f"{path.name}.stamp")
    stamp = artifact.stamp()
    if path.exists() and stamp_path.exists() and stamp_path.read_text() == stamp:
        return
    unchecked = path.with_name("model.unchecked.onnx")  # stays if the check fails, and so does the file in use
    artifact.write(unchecked)
    report = artifact.check(unchecked)
    for made_before in (stamp_path, path.with_name("model.plan"), path.with_name("model.plan.json")):
        made_before.unlink(missing_ok=True)
    unchecked.replace(path)
    stamp_path.write_text(stamp)
    print(json.dumps({"model": artifact.model, "size_bytes": path.stat().st_size, **report}), flush=True)


def _digest(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), required=True)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoints", type=Path, metavar="DIR", help="detector.pth, embedder_b5a.pth, …")
    weights.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the networks")
    arguments = parser.parse_args(argv)
    try:
        identity = build(
            CONFIGS[arguments.config](),
            arguments.output,
            checkpoints=arguments.checkpoints,
            random_seed=arguments.random_weights,
            precision=arguments.precision,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"export.build: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"model_identity": identity, "output": str(arguments.output)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
