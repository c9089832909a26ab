"""TensorRT optimization profiles, derived from the signature and a pipeline config.

The detector has one profile for each kind of picture and orientation: a profile's kernels are chosen at its optimum
and its memory is reserved at its maximum, so one profile for all would be tuned for none and reserve a square of the
longest side. The embedders have one for each template: in it height and width are fixed, only the batch is not, so
every kernel is chosen at a size that occurs; a range over all templates would be tuned at one of them. The price is
build time and a context for each profile.
"""

from dataclasses import dataclass

from export.config import PipelineConfig
from export.signature import EMBEDDERS, KINDS, MODELS, PADDING_MULTIPLE, Tensor

ENGINES = ("detector", *EMBEDDERS)
_USUAL_ASPECT = {"frame": 16 / 9, "image": 1.0}  # long side / short side of most pictures

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Shapes of one input, with the batch."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True)
class Profile:
    name: str
    inputs: dict[str, Range]  # by the input's name


def profiles(model: str, config: PipelineConfig) -> list[Profile]:
    """Of the detector or an embedder, in the order of the engine; raises ValueError for any other model."""
    if model not in ENGINES:
        raise ValueError(f"no engine is built of model {model!r}, only of {', '.join(ENGINES)}")
    return _detector(config) if model == "detector" else _embedder(model, config)


def _profile(model: str, name: str, sizes: tuple[tuple[int, int], ...], max_batch: int, usual_batch: int) -> Profile:
    """`sizes` are height and width at the minimum, the optimum and the maximum."""
    batches = (1, usual_batch, max_batch)
    return Profile(
        name,
        {
            tensor.name: Range(
                *(_shape(tensor, batch, size) for batch, size in zip(batches, sizes, strict=True)),
            )
            for tensor in MODELS[model].inputs
        },
    )


def _shape(tensor: Tensor, batch: int, size: tuple[int, int]) -> Shape:
    height, width = size
    sizes = {"B": batch, "n": batch, "H'": height, "W'": width, "h": height, "w": width}
    return tuple(sizes[dimension] if isinstance(dimension, str) else dimension for dimension in tensor.shape)


def _padded(side: float) -> int:
    return -(-round(side) // PADDING_MULTIPLE) * PADDING_MULTIPLE


def _detector(config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of("detector").max_batch
    longest = _padded(config.max_side_px)
    found = []
    for kind in KINDS:
        short = _padded(config.kind(kind).short_side_px)
        usual = _padded(config.kind(kind).short_side_px * _USUAL_ASPECT[kind])
        # Very long pictures are scaled by their long side, so their short side may be as small as one multiple.
        landscape = ((PADDING_MULTIPLE, short), (short, usual), (short, longest))
        portrait = tuple((width, height) for height, width in landscape)
        found.append(_profile("detector", f"{kind}_landscape", landscape, max_batch, max_batch // 2))
        found.append(_profile("detector", f"{kind}_portrait", portrait, max_batch, max_batch // 2))
    return found


def _embedder(model: str, config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of(model).max_batch
    sizes = sorted(set(config.crop_sizes))
    return [
        _profile(model, f"{width}x{height}", ((height, width),) * 3, max_batch, max_batch // 4)
        for height, width in sizes
    ]
