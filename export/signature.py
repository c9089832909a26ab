"""Define the names, dtypes and shapes of the tensors of every model in the repository.

Shape letters: B images in a request, H × W the size of the image, H' × W' that of the resized and padded image, N boxes
(the largest number in the request), n crops, h × w the template.
"""

from dataclasses import dataclass
from typing import Literal

from export.config import PipelineConfig

Dimension = int | str  # a letter stands for a size known only at run time

KINDS = ("image", "frame")
PADDING_MULTIPLE = 32
PRIORITIES = {"live": 1, "batch": 2}  # the `priority` of a request; every queue serves live requests first


def padded(side_px: float) -> int:
    """Return a side of the resized image after padding, in pixels: the next multiple of PADDING_MULTIPLE."""
    return -(-round(side_px) // PADDING_MULTIPLE) * PADDING_MULTIPLE


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # in Triton's terms: UINT8, INT32, INT64, FP32
    shape: tuple[Dimension, ...]  # including the batch dimension, if there is one

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as in a config.pbtxt: -1 for a size known only at run time."""
        return tuple(-1 if isinstance(dimension, str) else dimension for dimension in self.shape)

    def shape_at(self, height: int, width: int, batch: int = 1) -> tuple[int, ...]:
        """Return the shape for a batch of images, padded images or crops of that size."""
        sizes = (
            {"B": batch, "n": batch} | dict.fromkeys(("H", "H'", "h"), height) | dict.fromkeys(("W", "W'", "w"), width)
        )
        return tuple(sizes[dimension] if isinstance(dimension, str) else dimension for dimension in self.shape)


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    kind: Literal["ensemble", "graph", "network", "python"]  # a network has weights, a graph has none
    is_batched: bool = True  # the first dimension of every tensor is Triton's batch


_IMAGE = Tensor("image", "UINT8", ("B", "H", "W", 3))  # RGB
_PIXELS = Tensor("pixels", "FP32", ("B", 3, "H'", "W'"))  # BGR, normalised, zero-padded
_IMAGE_SIZE = Tensor("image_size", "FP32", ("B", 2))  # height, width of the resized image inside its padding
_SCALE = Tensor("scale", "FP32", ("B", 2))  # resized / original; height, width
_MIN_SCORE = Tensor("min_score", "FP32", ("B", 1))
_NUM_DETECTIONS = Tensor("num_detections", "INT32", ("B", 1))
_CROPS = Tensor("crops", "UINT8", ("n", "h", "w", 3))  # RGB

PREPARE = Signature((_IMAGE,), (_PIXELS, _IMAGE_SIZE, _SCALE, _MIN_SCORE), "graph")
CROP = Signature(
    (
        Tensor("image", "UINT8", (1, "H", "W", 3)),
        Tensor("boxes", "INT32", ("n", 4)),  # x0 y0 x1 y1 inside the image, x1 and y1 exclusive
        Tensor("size", "INT64", (2,)),  # width, height
    ),
    (_CROPS,),
    "graph",
    is_batched=False,
)


def detector_signature(max_detections: int) -> Signature:
    """Return the signature of a detector; boxes are in resized pixels, sorted by score, zero-padded."""
    boxes = Tensor("boxes", "FP32", ("B", max_detections, 4))  # x0 y0 x1 y1
    scores = Tensor("scores", "FP32", ("B", max_detections))
    labels = Tensor("labels", "INT32", ("B", max_detections))  # the class of each box, from 0 on
    return Signature((_PIXELS, _IMAGE_SIZE), (boxes, scores, _NUM_DETECTIONS, labels), "network")


def embedder_signature(embedding_size: int, crop_size: tuple[int, int] | None = None) -> Signature:
    """Return the signature of an embedder; embeddings have unit length.

    `crop_size` is the (height, width) of all crops; None for one that takes any size.
    """
    crops = _CROPS if crop_size is None else Tensor("crops", "UINT8", ("n", *crop_size, 3))
    return Signature((crops,), (Tensor("embedding", "FP32", ("n", embedding_size)),), "network")


def signatures(config: PipelineConfig) -> dict[str, Signature]:
    """Return the signature of every model of a resolved pipeline, by name."""
    detector = detector_signature(config.detector_config.max_detections)
    recognized = (  # boxes x0 y0 x1 y1 in pixels of `image`; rows past num_detections are zero
        Tensor("boxes", "FP32", ("B", "N", 4)),
        Tensor("scores", "FP32", ("B", "N")),
        Tensor("labels", "INT32", ("B", "N")),  # the class of each box, from 0 on
        Tensor("embeddings", "FP32", ("B", "N", config.embedding_size)),  # unit length
        _NUM_DETECTIONS,
    )
    return {
        **{f"recognize_{kind}": Signature((_IMAGE,), recognized, "ensemble") for kind in KINDS},
        **{f"prepare_{kind}": PREPARE for kind in KINDS},
        "detector": detector,
        "crop": CROP,
        **{
            model: embedder_signature(embedder.embedding_size, config.only_crop_size)
            for model, embedder in config.embedder_models.items()
        },
        "crop_and_embed": Signature((_IMAGE, *detector.outputs, _SCALE, _MIN_SCORE), recognized, "python"),
    }
