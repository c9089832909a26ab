"""TensorRT optimization profiles, derived from the signature and a pipeline config.

Kernels are chosen at a profile's optimum and memory is reserved at its maximum, for each profile that is served: Triton
holds an execution context for every one of them.

The detector has one profile for each kind of picture and orientation, since a single one would reserve a square of the
longest side. No two of them take the same size: of several that fit, Triton's backend takes the one whose optimum is
nearest by a distance that counts the batch as a side, which is often the wrong one.

The embedders have one for all templates. Their areas differ by a factor of 2.1, a batch by 32, so kernels for the
square at a usual batch suit all; a profile for each template would keep twelve contexts of the largest batch per
embedder, and Triton would try to capture every CUDA graph in each of them.
"""

from dataclasses import dataclass

from export.config import PipelineConfig
from export.signature import EMBEDDERS, KINDS, MODELS, PADDING_MULTIPLE, padded

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
                *(tensor.shape_at(*size, batch) for batch, size in zip(batches, sizes, strict=True)),
            )
            for tensor in MODELS[model].inputs
        },
    )


def _detector(config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of("detector").max_batch
    longest = padded(config.max_side_px)
    found = []
    smallest = PADDING_MULTIPLE  # very long pictures are scaled by their long side, which makes the other as short
    for kind in sorted(KINDS, key=lambda kind: config.kind(kind).short_side_px):
        short = padded(config.kind(kind).short_side_px)
        usual = padded(config.kind(kind).short_side_px * _USUAL_ASPECT[kind])
        higher = short + PADDING_MULTIPLE  # squares are landscapes
        landscape = ((smallest, short), (short, usual), (short, longest))
        portrait = ((higher, smallest), (max(usual, higher), short), (longest, short))
        found.append(_profile("detector", f"{kind}_landscape", landscape, max_batch, max_batch // 2))
        found.append(_profile("detector", f"{kind}_portrait", portrait, max_batch, max_batch // 2))
        smallest = higher  # shorter ones are the last kind's
    return found


def _embedder(model: str, config: PipelineConfig) -> list[Profile]:
    max_batch = config.serving_of(model).max_batch
    heights, widths = zip(*config.crop_sizes, strict=True)
    square = min(config.crop_sizes, key=lambda size: abs(size[0] - size[1]))
    sizes = ((min(heights), min(widths)), square, (max(heights), max(widths)))
    return [_profile(model, "templates", sizes, max_batch, max_batch // 4)]
