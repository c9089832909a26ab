"""Define the types that the whole package shares: pixels, boxes, recognitions, failures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An upright RGB image or frame, uint8 [H,W,3]."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""
IntBox = tuple[int, int, int, int]

KEY_NAME = "livematch-key"
"""HTTP header that carries a server's access key; over gRPC it has the prefix "triton-grpc-protocol-"."""

_NUM_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Detection:
    """Holds one garment of a `Recognition`.

    box: x0, y0, x1, y1 in pixels of the image.
    score: the detector's confidence, 0..1.
    label: name of the box's class, one of `Client.class_names`.
    embedding: float32 [D], unit length; D is the server's `Client.embedding_size`.
    """

    box: Box
    score: float
    label: str
    embedding: npt.NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Recognition:
    """Holds the n >= 0 garments detected in one image or frame, highest score first; iterates over `Detection` items.

    boxes: float32 [n,4], x0 y0 x1 y1 in pixels of the image.
    scores: float32 [n], 0..1.
    labels: names of the boxes' classes, strings [n].
    embeddings: float32 [n,D], unit length.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.str_]
    embeddings: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.embeddings
        for box, score, label, embedding in zip(*columns, strict=True):
            yield Detection(tuple(box), score, label, embedding)

    def __repr__(self) -> str:
        shown = [
            f"{score:.2f} [{' '.join(f'{side:.0f}' for side in box)}]"
            for box, score in zip(self.boxes[:_NUM_SHOWN].tolist(), self.scores.tolist(), strict=False)
        ]
        if len(self) > _NUM_SHOWN:
            shown.append("...")
        text = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        return f"Recognition({text}: {', '.join(shown)})" if shown else f"Recognition({text})"


@dataclass(frozen=True)
class Failure:
    """Describes one image or video that could not be processed; a row of the failures table.

    Bytes of a file name that are not UTF-8 are replaced by U+FFFD.
    """

    kind: Literal["image", "video"]
    source: str
    name: str
    stage: Literal["list", "decode", "recognize"]
    reason: str

    def __post_init__(self) -> None:
        for name in ("source", "name", "reason"):
            object.__setattr__(self, name, os.fsencode(getattr(self, name)).decode("utf-8", "replace"))


@dataclass(frozen=True)
class Pair:
    """Locates one garment in an image of the item and in a frame of the clip; boxes are x0 y0 x1 y1 in pixels."""

    img_name: str
    item_box: Box
    frame_box: Box


@dataclass(frozen=True)
class Segment:
    """Tells from which frame to which a clip shows an item, both inclusive, and the evidence for it, 0..1."""

    first_frame: int
    last_frame: int
    evidence: float


@dataclass(frozen=True)
class Match:
    """Tells which item a clip shows, and where; the result of `match` and of `find_products`.

    frame_index: frame of the clip that all pairs are in.
    pairs: pairs of boxes, the best one first.
    distance: squared distance, 0 (same direction) to 4 (opposite): for `match`, the mean of the photo boxes that
        decided; for `find_products`, that of the pair.
    num_votes: number of those boxes; for `find_products`, the number of frames in which the item was seen.
    title, url: of the item, from the features; empty if they have none.
    evidence: see `find_products`; None for `match`.
    segments: when the clip shows the item, the earliest first; empty for `match`.
    """

    video_id: str
    item_id: str
    frame_index: int
    pairs: tuple[Pair, ...]
    distance: float
    num_votes: int
    title: str = ""
    url: str = ""
    evidence: float | None = None
    segments: tuple[Segment, ...] = ()
