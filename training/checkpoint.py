"""Save configs and checkpoints, and resume runs safely; shared by the trainings of the detector and the embedders."""

import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

from livematch.errors import LivematchError
from livematch.files import replace_file

MIN_SCALE = 1.0
"""Smallest useful loss scale in half precision. GradScaler halves the scale whenever a gradient overflows; if
gradients still overflow below this scale, the gradients themselves are wrong."""


MAY_BE_MISSING = {"may_be_missing": True}
"""Metadata of a field that files of earlier versions lack; they are loaded with its default."""


UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What pickle and torch.load raise for damaged files."""


OPTIONS = {
    "iterations": "--iterations",
    "num_epochs": "--epochs",
    "batch_size": "--batch",
    "learning_rate": "--lr",
    "evaluate_every": "--evaluate-every",
    "model.backbone": "--backbone",
    "model.embedding_size": "--embedding-size",
    "model.template": "--image-size",
}
"""The option of a command that sets a field of a run's recipe."""

DATA_DIGESTS = ("data", "crops")
"""Names in a run's identity whose value is a hash of the training data."""


class DivergedError(LivematchError, FloatingPointError):
    """A loss or a gradient is no longer finite; the message says when it happened."""


@dataclass(frozen=True)
class JsonConfig:
    """Base of the config dataclasses that are saved beside a checkpoint. JSON lists are loaded as tuples."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # for pipeline files, which hold such configs, too

    def save(self, path: Path) -> None:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a config. Raises ValueError, naming the file, for invalid JSON and for unknown or missing fields.

        Only fields with the metadata MAY_BE_MISSING may be missing.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: not a {cls.__name__} but a {type(values).__name__}")
        optional = {field.name for field in fields(cls) if field.metadata == MAY_BE_MISSING}
        if differing := names ^ (set(values) | optional):
            raise ValueError(f"{path}: not a {cls.__name__}; fields that differ: {sorted(differing)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` with torch.save; a run that is killed, or a full disk, leaves the previous file intact."""
    with replace_file(path) as temporary, temporary.open("wb") as file:  # given a path, it would store the file's name
        torch.save(state, file)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read a file of torch.save without running any code it contains. Raises ValueError if it cannot be read."""
    with explain_unreadable(path):
        return torch.load(path, map_location=device, weights_only=True)


@contextmanager
def explain_unreadable(path: Path) -> Iterator[None]:
    """Context manager: turn errors about the content of a checkpoint into one ValueError that names the file."""
    try:
        yield
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error


def check_same_run(identity: Mapping[str, Any], saved: object, path: Path) -> None:
    """Raise ValueError, naming each difference, unless the run saved at `path` has the same recipe, seed and data.

    Args:
        identity: everything that influences the losses of the run to resume. A value may be a dictionary.
        saved: the identity stored in the checkpoint.
        path: the checkpoint, named in the message.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path} is not the state of a training: remove the file to train anew")
    before, here = _flatten(saved), _flatten(identity)
    differences = [
        "other images, boxes or identities in --data"
        if name in DATA_DIGESTS
        else f"{OPTIONS.get(name, name)} {before.get(name)!r} (here {value!r})"
        for name, value in here.items()
        if before.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{path} was trained with {'; '.join(differences)}: pass the same to resume it, "
            "or remove the file to train anew"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_gradients(norm: torch.Tensor, scaler: torch.amp.GradScaler, where: str) -> None:
    """Raise DivergedError if the gradient norm is not finite and lowering the loss scale cannot help."""
    if not torch.isfinite(norm) and not (scaler.is_enabled() and scaler.get_scale() >= MIN_SCALE):
        raise DivergedError(f"gradient norm is {norm.item()} {where}")
