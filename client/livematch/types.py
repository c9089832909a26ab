"""The nouns that the whole package shares: pixels, boxes, recognitions, failures."""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
IntBox = tuple[int, int, int, int]

EMBEDDING_SIZE = 2048
KEY_NAME = "livematch-key"
"""HTTP header of a server's access key; over gRPC "triton-grpc-protocol-" comes before it."""


@dataclass(frozen=True)
class Recognition:
    """The n garments found in one picture, n >= 0, highest score first.

    boxes: float32 [n,4], x0 y0 x1 y1 in pixels of the picture.
    scores: float32 [n], 0..1.
    embeddings: float32 [n,2048], unit length.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Failure:
    """A row of the table; bytes of a file name that are not UTF-8 are replaced by U+FFFD."""

    kind: Literal["image", "video"]
    source: str
    name: str
    stage: Literal["list", "decode", "recognize"]
    reason: str

    def __post_init__(self) -> None:
        for field in ("source", "name", "reason"):
            object.__setattr__(self, field, os.fsencode(getattr(self, field)).decode("utf-8", "replace"))
