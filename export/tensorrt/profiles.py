"""Derive TensorRT's optimization profiles from the signature and a pipeline config.

TensorRT chooses kernels at a profile's optimum and reserves memory for its maximum, and Triton creates an execution
context for every profile of every instance. A profile of one fixed height and width needs less memory: by the builder's
figures, a B5 for eight crops needs 1.0 GB for its twelve fixed profiles together, and 6.6 GB for a single one over all
crop sizes.

An embedder has a fixed profile for each crop size, and receives no other size. The detector has fixed ones for the
usual sizes, and two dynamic ones for the rest, landscape and portrait, because a single one would reserve memory for a
square of the longest side. All admit the same batches: Triton's batcher knows nothing of profiles, so a batch that only
some of them admit would fail at the other sizes.

Where several profiles fit, Triton's backend chooses the one with the nearest optimum, by a distance that compares each
side with the previous dimension of the request (tensorrt_backend, `EvaluateTensorRTContext`). The optima of the dynamic
profiles are chosen so that a fixed one always wins.
"""

from dataclasses import dataclass

from export.config import PipelineConfig
from export.signature import KINDS, PADDING_MULTIPLE, padded, signatures

USUAL_SIZES = {"image": ((800, 800),), "frame": ((960, 540), (540, 960))}
"""Height and width of most product photos and video frames, in pixels."""

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
    if model not in config.networks:
        raise ValueError(f"{model!r} has no engine, only {', '.join(config.networks)} have")
    max_batch = config.serving_of(model).max_batch
    fixed = [
        _profile(config, model, f"{height}x{width}", ((height, width),) * 3, max_batch)
        for height, width in usual_sizes(model, config)
    ]
    return fixed + (_dynamic(config, max_batch) if model == "detector" else [])


def usual_sizes(model: str, config: PipelineConfig) -> list[tuple[int, int]]:
    """Return the usual heights and widths of the images, padded images or crops that a model receives."""
    if model in config.embedder_models:
        return config.crop_sizes
    if model != "detector":
        return list(USUAL_SIZES[model.removeprefix("prepare_")])
    return [
        tuple(padded(side * config.kind(kind).short_side_px / min(size)) for side in size)  # type: ignore[misc]
        for kind, sizes in USUAL_SIZES.items()
        for size in sizes
    ]


def _dynamic(config: PipelineConfig, max_batch: int) -> list[Profile]:
    """Return the detector's profiles for all sizes that the prepare models return."""
    short = max(padded(config.kind(kind).short_side_px) for kind in KINDS)
    landscape = ((PADDING_MULTIPLE, PADDING_MULTIPLE), (short, 2 * short), (short, padded(config.max_side_px)))
    portrait = tuple((width, height) for height, width in landscape)
    return [
        _profile(config, "detector", "landscape", landscape, max_batch),
        _profile(config, "detector", "portrait", portrait, max_batch),
    ]


def _profile(
    config: PipelineConfig, model: str, name: str, sizes: tuple[tuple[int, int], ...], max_batch: int
) -> Profile:
    """Return a profile for the given (height, width) at its minimum, optimum and maximum."""
    points = list(zip(sizes, (1, -(-max_batch // 2), max_batch), strict=True))
    inputs = signatures(config)[model].inputs
    return Profile(name, {tensor.name: Range(*(tensor.shape_at(*size, n) for size, n in points)) for tensor in inputs})
