"""Find the checkpoints of a pipeline, and read from them what its file leaves open.

A folder of checkpoints holds `detector.pth`, or `.pkl` of detectron2's model zoo, and for each embedder
`embedder_NAME.pth` or, for any network that is not ours, `embedder_NAME.onnx`. Each has a JSON beside it; beside the
detector, it may be detectron2's YAML, `detector.yaml`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.config import OnnxEmbedderConfig, PipelineConfig, load_onnx_settings
from export.onnx.wrap import read_embedding_size
from training.detector.config import DetectorConfig
from training.detector.detectron2_config import read_config
from training.embedder.model import IMAGENET_MEAN, IMAGENET_STD, EmbedderConfig

_WEIGHTS = {"detector": (".pth", ".pkl"), "embedder": (".pth", ".onnx")}
_SETTINGS = {"detector": (".json", ".yaml"), "embedder": (".json",)}


def resolve(config: PipelineConfig, checkpoints: Path) -> PipelineConfig:
    """Return the config with the architectures that the files in a folder of checkpoints describe.

    Raises:
        FileNotFoundError: a checkpoint or its JSON is missing; the message names all of them.
        ValueError: such a file cannot be read, describes what cannot be exported, or contradicts the pipeline; the
            message lists the differences.
    """
    _require_present(config, checkpoints)
    _, settings = find_checkpoint(checkpoints, "detector")
    detector = read_detector_config(settings)
    if config.detector is not None:
        _require_equal(config, settings, vars(detector), vars(config.detector) | {"class_names": detector.class_names})
    embedders: dict[str, EmbedderConfig | OnnxEmbedderConfig | None] = {}
    for name, stated in config.embedders.items():
        weights, settings = find_checkpoint(checkpoints, f"embedder_{name}")
        found: EmbedderConfig | OnnxEmbedderConfig
        if weights.suffix == ".onnx":
            found = read_onnx_embedder(weights, config.crop_sizes)
        else:
            found = EmbedderConfig.load(settings)
        if stated is not None and type(stated) is not type(found):
            raise ValueError(
                f"{weights} is not of the kind that embedders.{name} of the pipeline {config.name!r} describes; "
                "write null there to take it as it is"
            )
        template = {"template": config.crops} if isinstance(found, EmbedderConfig) else {}
        _require_equal(config, settings, vars(found), (vars(stated) if stated else {}) | template)
        embedders[name] = found
    return replace(config, detector=detector, embedders=embedders)


def find_checkpoint(checkpoints: Path, model: str) -> tuple[Path, Path]:
    """Return the paths of a network's weights and of their description; they need not exist.

    Raises ValueError if the folder holds weights of both kinds.
    """
    kind = model.partition("_")[0]
    weights, settings = (
        [checkpoints / f"{model}{suffix}" for suffix in suffixes[kind]] for suffixes in (_WEIGHTS, _SETTINGS)
    )
    if all(path.exists() for path in weights):
        raise ValueError(f"{checkpoints} holds {' and '.join(path.name for path in weights)}; keep one of them")
    found, described = (next(filter(Path.exists, paths), paths[0]) for paths in (weights, settings))
    return found, described


def read_detector_config(path: Path) -> DetectorConfig:
    """Return the config of a detector, in detectron2's YAML or in our JSON.

    Raises FileNotFoundError if it is missing, or a file that it names as `_BASE_`; else as `read_config` does.
    """
    try:
        return read_config(path)
    except FileNotFoundError as error:
        what = "is the model's YAML, with its _BASE_ files beside it, or our JSON"
        raise FileNotFoundError(f"no such file: {error.filename}; give --config-file, which {what}") from error


def read_onnx_embedder(path: Path, sizes: Sequence[tuple[int, int]]) -> OnnxEmbedderConfig:
    """Return the config of an embedder that comes as an ONNX file, with a JSON beside it.

    Raises FileNotFoundError if one of them is missing, and the errors of `load_onnx_settings` and
    `read_embedding_size`.
    """
    settings = load_onnx_settings(path.with_suffix(".json"))
    return OnnxEmbedderConfig(**vars(settings), embedding_size=read_embedding_size(path, settings, sizes))


def _require_present(config: PipelineConfig, checkpoints: Path) -> None:
    """Raise FileNotFoundError, naming all files that are missing, and what the folder holds instead."""
    missing, hints = [], []
    for model in config.networks:
        kind = model.partition("_")[0]
        weights, settings = find_checkpoint(checkpoints, model)
        for path, suffixes in ((weights, _WEIGHTS[kind]), (settings, _SETTINGS[kind])):
            if not path.exists():
                missing.append(" or ".join([str(path.with_suffix(suffixes[0])), *suffixes[1:]]))
        if kind == "embedder" and not weights.exists():
            names = {path.stem for suffix in _WEIGHTS[kind] for path in checkpoints.glob(f"embedder_*{suffix}")}
            hints.append(f"{checkpoints} holds {', '.join(sorted(names)) or 'no embedder'}")
        elif weights.suffix == ".onnx" and not settings.exists():
            example = json.dumps({"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
            hints.append(f"beside an ONNX file, the JSON holds mean and std, RGB in 0..255, such as {example}")
    if missing:
        raise FileNotFoundError("; ".join([f"missing: {', '.join(missing)}", *dict.fromkeys(hints)]))


def _require_equal(config: PipelineConfig, path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    faults = [f"{name} is {found[name]!r}, not {value!r}" for name, value in expected.items() if found[name] != value]
    if faults:
        raise ValueError(f"{path} does not match the pipeline {config.name!r}: {', '.join(faults)}")
