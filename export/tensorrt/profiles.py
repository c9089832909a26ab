"""Derive TensorRT's optimization profiles from the signature and a pipeline config.

TensorRT chooses kernels at a profile's optimum and reserves memory for its maximum. Triton creates an execution context
for every profile, and each reserves that memory.

The detector has one profile for each kind of image and orientation, because a single one would reserve memory for a
square of the longest side. The profiles do not overlap: where several fit, Triton's backend chooses the one with the
nearest optimum, by a distance that treats the batch size as a side, and often chooses wrongly.

The embedders have one profile for all templates. The areas of the templates differ by a factor of 2.1 only, batch sizes
by 32, so kernels chosen for the square template at a usual batch size suit all. With a profile for each template, every
embedder would keep twelve contexts for its largest batch, and Triton would try to capture every CUDA graph in each.
"""

from dataclasses import dataclass

from export.config import PipelineConfig
from export.signature import EMBEDDERS, KINDS, MODELS, PADDING_MULTIPLE, padded

ENGINES = ("detector", *EMBEDDERS)
_USUAL_ASPECT = {"frame": 16 / 9, "image": 1.0}  # long side / short side of most images

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes that one input may have, including the batch dimension."""

    minimum: Shape
    optimum: Shape
    maximum: Shape


@dataclass(frozen=True)
class Profile:
    name: str
    inputs: dict[str, Range]  # by name of the input


def profiles(model: str, config: PipelineConfig) -> list[Profile]:
    """Return the profiles of the detector or an embedder, in the engine's order; ValueError for any other model."""
    if model not in ENGINES:
        raise ValueError(f"{model!r} has no engine, only {', '.join(ENGINES)} have")
    return _detector(config) if model == "detector" else _embedder(model, config)


def _profile(model: str, name: str, sizes: tuple[tuple[int, int], ...], max_batch: int, usual_batch: int) -> Profile:
    """Return a profile for the given (height, width) at its minimum, optimum and maximum."""
    points = list(zip(sizes, (1, usual_batch, max_batch), strict=True))
    inputs = MODELS[model].inputs
    return Profile(name, {tensor.name: Range(*(tensor.shape_at(*size, n) for size, n in points)) for tensor in inputs})


def _detector(config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of("detector").max_batch
    longest = padded(config.max_side_px)
    result = []
    smallest = PADDING_MULTIPLE  # images shrunk to max_side_px may have any short side
    for kind in sorted(KINDS, key=lambda kind: config.kind(kind).short_side_px):
        short = padded(config.kind(kind).short_side_px)
        usual = padded(config.kind(kind).short_side_px * _USUAL_ASPECT[kind])
        higher = short + PADDING_MULTIPLE  # a square counts as landscape
        landscape = ((smallest, short), (short, usual), (short, longest))
        portrait = ((higher, smallest), (max(usual, higher), short), (longest, short))
        result.append(_profile("detector", f"{kind}_landscape", landscape, max_batch, max_batch // 2))
        result.append(_profile("detector", f"{kind}_portrait", portrait, max_batch, max_batch // 2))
        smallest = higher  # shorter sides belong to the previous kind
    return result


def _embedder(model: str, config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of(model).max_batch
    heights, widths = zip(*config.crop_sizes, strict=True)
    square = min(config.crop_sizes, key=lambda size: abs(size[0] - size[1]))
    sizes = ((min(heights), min(widths)), square, (max(heights), max(widths)))
    return [_profile(model, "templates", sizes, max_batch, max_batch // 4)]
