"""Configs that lie as JSON beside a checkpoint."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self


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
