"""What a run of either training, the detector's and the embedders', holds to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_identity(identity: Mapping[str, Any], saved: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError, naming what differs, if the run saved at `path` is not this run, that is of its identity."""
    differing = [
        f"{name} {saved.get(name)!r}, here {value!r}" for name, value in identity.items() if saved.get(name) != value
    ]
    if differing:
        raise ValueError(f"{path} is of another run and cannot be resumed: {'; '.join(differing)}")
