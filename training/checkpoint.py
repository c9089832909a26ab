"""Checkpoints of both trainings: configs as JSON beside them, files replaced whole, resumed runs checked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

MIN_SCALE = 1.0
"""Of the loss in half precision. GradScaler halves it at every overflow; below this the gradients are what is wrong."""


def save_whole(state: Mapping[str, Any], path: Path) -> None:
    """Replaces `path` at once, so that a run that is killed, or a full disk, leaves the whole old or new file."""
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def check_identity(identity: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError, naming what differs, if the run saved at `path` is not this run, that is of its identity."""
    differing = [
        f"{name} {saved.get(name)!r}, here {value!r}" for name, value in identity.items() if saved.get(name) != value
    ]
    if differing:
        raise ValueError(f"{path} is of another run and cannot be resumed: {'; '.join(differing)}")


def check_gradients(norm: torch.Tensor, scaler: torch.amp.GradScaler, where: str) -> None:
    """Raises FloatingPointError if the norm of the gradients is not finite and no smaller scale can help."""
    if not torch.isfinite(norm) and not (scaler.is_enabled() and scaler.get_scale() >= MIN_SCALE):
        raise FloatingPointError(f"norm of the gradients is {norm.item()} {where}")


@dataclass(frozen=True)
class JsonConfig:
    """To derive dataclasses from whose fields JSON can hold; its lists come back as tuples."""

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError, naming the file, for what is not JSON and for unknown or missing fields."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: not a {cls.__name__} but a {type(values).__name__}")
        if set(values) != names:
            raise ValueError(f"{path}: not a {cls.__name__}; fields that differ: {sorted(names ^ set(values))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
