"""Define and read the file that describes a pipeline: everything a model repository is built from, except the weights.

`export/pipelines/` holds two such files. `production.json` describes the competition's seventh-place solution, with
batches that a GPU of 16 GB holds; `demo.json` the same with small networks and images, sized for two CPU cores.
"""

import argparse
import dataclasses
import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
)

from training.detector.config import DetectorConfig
from training.embedder.model import EmbedderConfig
from training.embedder.templates import crop_sizes

PIPELINES = Path(__file__).parent / "pipelines"
FILE_NAME = "pipeline.json"
"""The file in a model repository that holds the pipeline it was built from."""

CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""Options for ONNX Runtime on a GPU, which keep float32 exact (TF32 rounds to 10 bits) and the first run at a new shape
fast (the default search times all kernels)."""

Content = TypeVar("Content")
EmbedderName = Annotated[str, Field(pattern=r"^\w+$")]  # part of a folder's name
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class KindConfig:
    """The settings in which product photos and video frames differ."""

    __pydantic_config__ = _STRICT

    short_side_px: PositiveInt  # of the resized image
    min_score: Annotated[float, Field(ge=0, le=1)]  # detections must score more than this


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Settings with which Triton runs one model.

    A model with a queue needs at least two instances. If a queue has limits or priorities, Triton's batcher (24.10 and
    later, `RateLimiter::PayloadSlotAvailable`) assigns work only to an idle instance, but is notified of the end of a
    run just before the instance becomes idle. With one instance it would then find none idle, and would sleep for up to
    500 ms or until the model's next event.
    """

    __pydantic_config__ = _STRICT

    max_batch: NonNegativeInt = 0  # 0: the model is not batched
    num_instances: PositiveInt = 1
    is_on_gpu: bool = False
    num_threads: NonNegativeInt = 1  # of one ONNX Runtime session on CPU
    max_queue_size: NonNegativeInt = 0  # requests that may wait to be batched; 0: no queue, each request runs by itself
    max_queue_delay_us: NonNegativeInt = 0  # how long a batch waits for more requests
    queue_timeout_us: PositiveInt = 60_000_000  # a request that has waited longer is refused


@dataclass(frozen=True, kw_only=True)
class ServingConfigs:
    """The settings of all models, by default for production's networks on a GPU of 16 GB.

    Requests may hold as many images as a batch of the detector.
    """

    __pydantic_config__ = _STRICT

    prepare: ServingConfig = ServingConfig(num_instances=4, num_threads=2)  # its max_batch is that of the detector
    detector: ServingConfig = ServingConfig(
        max_batch=1, num_instances=2, is_on_gpu=True, num_threads=0, max_queue_size=256, max_queue_delay_us=2000
    )
    crop_and_embed: ServingConfig = ServingConfig(
        max_batch=8, num_instances=4, max_queue_size=256, max_queue_delay_us=1000
    )
    crop: ServingConfig = ServingConfig(num_instances=4)
    embedder: ServingConfig = ServingConfig(max_batch=6, is_on_gpu=True, num_threads=0)  # of each embedder


@dataclass(frozen=True, kw_only=True)
class OnnxEmbedderSettings:
    """What the JSON beside an embedder's ONNX file says."""

    __pydantic_config__ = _STRICT

    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # RGB, on the scale 0..255; subtracted
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # then divided
    output: str | None = None  # the one that is the embedding; None: the file has no other

    def __post_init__(self) -> None:
        if min(self.std) < 1:
            raise ValueError(f"std is {self.std}, not on the scale 0..255: multiply mean and std by 255")


@dataclass(frozen=True, kw_only=True)
class OnnxEmbedderConfig(OnnxEmbedderSettings):
    """An embedder that comes as an ONNX file."""

    embedding_size: PositiveInt  # read from the file


def _source_of(embedder: Any) -> str:
    """Return "timm" or "onnx" for an embedder in a pipeline file: one without a backbone comes as an ONNX file."""
    is_described = isinstance(embedder, dict) and embedder
    return "onnx" if is_described and not any(key.startswith("backbone") for key in embedder) else "timm"


AnyEmbedderConfig = Annotated[
    Annotated[EmbedderConfig, Tag("timm")] | Annotated[OnnxEmbedderConfig, Tag("onnx")], Discriminator(_source_of)
]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """What a pipeline file holds."""

    __pydantic_config__ = _STRICT

    name: str
    gpu_memory_gb: PositiveInt = 16
    """Of the GPU that serves, in 10⁹ bytes; `export.tensorrt` keeps the engines within it."""
    image: KindConfig
    frame: KindConfig
    max_side_px: PositiveInt = 4000  # of the resized image; takes precedence over the short side
    max_image_side_px: PositiveInt = 8192  # of a request's image; larger ones are refused
    crops: str  # a set of sizes by aspect ratio, such as "SM", or one size, width x height, such as "224x224"
    class_names: tuple[str, ...] | None = None
    """Of the detector's classes, in their order. None: as the file beside its checkpoint says, else "0", "1", …"""
    detector: DetectorConfig | None = None  # None: as the file beside its checkpoint says
    embedders: Annotated[dict[EmbedderName, AnyEmbedderConfig | None], Field(min_length=1)]
    """By name; their embeddings are concatenated in this order. None: as its checkpoint and the JSON beside it say."""
    serving: ServingConfigs = ServingConfigs()

    def __post_init__(self) -> None:
        crop_sizes(self.crops)  # raises ValueError
        names = self.class_names
        if names is not None and not all(map(str.strip, names)):
            raise ValueError("class_names has an empty name, which would mean that a box's class is unknown")
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"class_names has a name twice: {', '.join(names)}")
        if names is not None and self.detector is not None and len(names) != self.detector.num_classes:
            raise ValueError(f"class_names has {len(names)} names, the detector {self.detector.num_classes} class(es)")

    @property
    def templates(self) -> dict[float, tuple[int, int]]:
        """Width and height in pixels of the crop, by aspect ratio (width / height)."""
        return crop_sizes(self.crops)

    @property
    def crop_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of every template."""
        return [(height, width) for width, height in self.templates.values()]

    @property
    def only_crop_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of all crops, None if there are several sizes."""
        sizes = self.crop_sizes
        return sizes[0] if len(sizes) == 1 else None

    @property
    def embedder_models(self) -> dict[str, EmbedderConfig | OnnxEmbedderConfig]:
        """The embedders of a resolved config, by model name such as "embedder_b6"."""
        models = {}
        for name, embedder in self.embedders.items():
            if embedder is None:
                raise _undescribed(name)
            models[f"embedder_{name}"] = embedder
        return models

    @property
    def networks(self) -> list[str]:
        """The models with weights, by name: the detector and the embedders."""
        return ["detector", *(f"embedder_{name}" for name in self.embedders)]

    @property
    def detector_config(self) -> DetectorConfig:
        """The detector of a resolved config."""
        if self.detector is None:
            raise _undescribed("detector")
        return self.detector

    @property
    def embedding_size(self) -> int:
        """Length of a box's embedding: the sum over all embedders."""
        return sum(embedder.embedding_size for embedder in self.embedder_models.values())

    @property
    def labels(self) -> list[str]:
        """The name of each class of a resolved config's detector."""
        detector = self.detector_config
        return [*(self.class_names or detector.class_names or map(str, range(detector.num_classes)))]

    def kind(self, name: str) -> KindConfig:
        """Return the settings of "image" or "frame"."""
        return {"image": self.image, "frame": self.frame}[name]

    def serving_of(self, model: str) -> ServingConfig:
        """Return the serving config of a model, by name such as "prepare_image"."""
        max_images = self.serving.detector.max_batch
        match model.split("_"):
            case ["recognize", _]:
                return ServingConfig(max_batch=max_images)
            case ["prepare", _]:
                return replace(self.serving.prepare, max_batch=max_images)
            case ["embedder", *_]:
                return self.serving.embedder
        settings: ServingConfig = getattr(self.serving, model)
        return settings

    def to_json(self) -> str:
        """Return the content of a pipeline file with all values."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _undescribed(name: str) -> ValueError:
    return ValueError(f"the pipeline does not describe {name}; export.build reads that from the checkpoint")


def load_pipeline(path: Path, gpu_memory_gb: int | None = None) -> PipelineConfig:
    """Read a pipeline file, for a GPU with other memory if `gpu_memory_gb` is given.

    Batches on a GPU are then multiplied by how many times the memory of the file goes into that memory. For a GPU, one
    image is much work (576 GFLOP with production's detector), so that batches of images matter little for throughput.

    Raises:
        ValueError: an unknown or missing key, a value of the wrong type or out of range, or less GPU memory than in the
            file; the message is one line that names the file and the key.
    """
    config = _read(PipelineConfig, path)
    embedders = {
        name: replace(embedder, template=config.crops) if isinstance(embedder, EmbedderConfig) else embedder
        for name, embedder in config.embedders.items()
    }
    config = replace(config, embedders=embedders)
    if gpu_memory_gb is None:
        return config
    factor = gpu_memory_gb // config.gpu_memory_gb
    if factor < 1:
        raise ValueError(
            f"{path} is made for a GPU of at least {config.gpu_memory_gb} GB, not {gpu_memory_gb} GB; "
            "for a smaller one, lower gpu_memory_gb, max_side_px and the batches in a copy of it"
        )
    scaled = {
        name: replace(serving, max_batch=factor * serving.max_batch)
        for name, serving in vars(config.serving).items()
        if serving.is_on_gpu
    }
    return replace(config, gpu_memory_gb=gpu_memory_gb, serving=replace(config.serving, **scaled))


def load_onnx_settings(path: Path) -> OnnxEmbedderSettings:
    """Read the JSON beside an embedder's ONNX file. Raises ValueError as `load_pipeline` does."""
    return _read(OnnxEmbedderSettings, path)


def _read(kind: type[Content], path: Path) -> Content:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_describe(kind, dict(fault)) for fault in error.errors())}") from error


def _describe(kind: type, fault: dict[str, Any]) -> str:
    """Return a fault that pydantic found in a file of this kind, in our words where its own are about Python."""
    known = {"missing": "is missing", "unexpected_keyword_argument": "unknown key"}
    *parents, key = fault["loc"] or ("",)
    message = known.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    if message == "unknown key":
        names = [field.name for field in dataclasses.fields(_class_at(kind, parents))]
        message += "".join(f", did you mean {name}?" for name in difflib.get_close_matches(key, names, n=1))
    place = [*parents, key]
    if place[0] == "embedders" and place[2:3] in (["timm"], ["onnx"]):
        del place[2]  # `_source_of` an embedder, which is not in the file
    return f"{'.'.join(map(str, place))}: {message}" if key else message


def _class_at(kind: type, keys: list[Any]) -> Any:
    """Return the dataclass that describes the value at these keys, as pydantic lists them, of a file of this kind."""
    match keys:
        case []:
            return kind
        case ["image" | "frame"]:
            return KindConfig
        case ["detector"]:
            return DetectorConfig
        case ["serving"]:
            return ServingConfigs
        case ["serving", _]:
            return ServingConfig
        case ["embedders", _, "onnx"]:
            return OnnxEmbedderConfig
    return EmbedderConfig


def production(gpu_memory_gb: int | None = None) -> PipelineConfig:
    """Return the pipeline of `pipelines/production.json`."""
    return load_pipeline(PIPELINES / "production.json", gpu_memory_gb)


def demo() -> PipelineConfig:
    """Return the pipeline of `pipelines/demo.json`."""
    return load_pipeline(PIPELINES / "demo.json")


def repository_pipeline(repository: Path) -> PipelineConfig:
    """Return the pipeline that a model repository was built from; ValueError if it was not built by `export.build`."""
    path = repository / FILE_NAME
    if not path.exists():
        raise ValueError(f"{repository} has no {FILE_NAME}; build the repository with this version of export.build")
    return load_pipeline(path)


def add_pipeline_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add --pipeline, the path of a pipeline file; required unless `default` says what is taken without it."""
    parser.add_argument(
        "--pipeline",
        type=_pipeline_path,
        required=default is None,
        metavar="FILE",
        help=f"pipeline file, or {' or '.join(_names())}" + ("" if default is None else f"; default: {default}"),
    )


def add_gpu_memory_option(parser: argparse.ArgumentParser) -> None:
    """Add --gpu-memory, an argument of `load_pipeline`."""

    def gigabytes(text: str) -> int:
        value = int(text)
        if not 1 <= value <= 10_000:
            raise argparse.ArgumentTypeError(f"{text} is not from 1 to 10000")
        return value

    parser.add_argument(
        "--gpu-memory", type=gigabytes, metavar="GB", help="of the GPU that serves, for larger batches than the file's"
    )


def _names() -> list[str]:
    return sorted(file.stem for file in PIPELINES.glob("*.json"))


def _pipeline_path(name: str) -> Path:
    path = PIPELINES / f"{name}.json" if name in _names() else Path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{name!r} is no file, nor one of {', '.join(_names())}")
    return path
