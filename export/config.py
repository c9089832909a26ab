"""Define the settings that a model repository is built from; `production()` and `demo()` differ only in numbers."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from training.detector import config as detector_config
from training.detector.config import DetectorConfig
from training.detector.detectron2_config import read_config
from training.embedder import model as embedder_model
from training.embedder.model import EmbedderConfig
from training.embedder.templates import ASPECT_RATIOS, TEMPLATES

CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""Options for ONNX Runtime on a GPU, which keep float32 exact (TF32 rounds to 10 bits) and the first run at a new shape
fast (the default search times all kernels)."""


DEFAULT_GPU_MEMORY_GB = 16
"""The memory of a T4 or an RTX 4080; enough for batches of one image and eight crops."""


@dataclass(frozen=True, kw_only=True)
class KindConfig:
    """The settings in which shop images and video frames differ."""

    short_side_px: int  # of the resized image
    min_score: float  # detections must score more than this


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Settings with which Triton runs one model.

    A model with a queue needs at least two instances. If a queue has limits or priorities, Triton's batcher (24.10 and
    later, `RateLimiter::PayloadSlotAvailable`) assigns work only to an idle instance, but is notified of the end of a
    run just before the instance becomes idle. With one instance it would then find none idle, and would sleep for up to
    500 ms or until the model's next event.
    """

    max_batch: int = 0  # 0: the model is not batched
    num_instances: int = 1
    is_on_gpu: bool = False
    num_threads: int = 1  # of one ONNX Runtime session on CPU
    max_queue_size: int = 0  # requests that may wait to be batched; 0: no queue, each request runs by itself
    max_queue_delay_us: int = 0  # how long a batch waits for more requests
    queue_timeout_us: int = 60_000_000  # a request that has waited longer is refused


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything that one model repository is built from, except the weights."""

    name: str
    gpu_memory_gb: int  # of the GPU that serves, in 10⁹ bytes; `export.tensorrt` keeps the engines within it
    image: KindConfig
    frame: KindConfig
    max_side_px: int = 4000  # of the resized image; takes precedence over the short side
    max_image_side_px: int = 8192  # of a request's image; larger ones are refused
    template_set: str
    detector: DetectorConfig
    embedders: dict[str, EmbedderConfig]  # by "b5a", "b5b", "b6", "b7"
    serving: dict[str, ServingConfig]  # by model, or by the first word of its name, such as "embedder"

    @property
    def templates(self) -> dict[float, tuple[int, int]]:
        """Width and height in pixels of the crop, by aspect ratio (width / height)."""
        return dict(zip(ASPECT_RATIOS, TEMPLATES[self.template_set], strict=True))

    @property
    def crop_sizes(self) -> list[tuple[int, int]]:
        """Height and width in pixels of every template."""
        return [(height, width) for width, height in self.templates.values()]

    def kind(self, name: str) -> KindConfig:
        """Return the settings of "image" or "frame"."""
        return {"image": self.image, "frame": self.frame}[name]

    def embedder(self, model: str) -> EmbedderConfig:
        """Return the config of one embedder, by model name such as "embedder_b5a"."""
        return self.embedders[model.removeprefix("embedder_")]

    def serving_of(self, model: str) -> ServingConfig:
        """Return the serving config of a model, by name such as "prepare_image"."""
        return self.serving[model] if model in self.serving else self.serving[model.split("_")[0]]


def production(gpu_memory_gb: int = DEFAULT_GPU_MEMORY_GB) -> PipelineConfig:
    """Return the sizes and thresholds of the competition's seventh-place solution, served on one GPU.

    Batches grow with the GPU's memory; ValueError if that is less than for a batch of one image. For the GPU, an image
    is much work (576 GFLOP), so that batches of images matter little for throughput; crops are 9 to 20 GFLOP each.
    """
    max_images = gpu_memory_gb // DEFAULT_GPU_MEMORY_GB
    if max_images < 1:
        raise ValueError(f"gpu_memory_gb is {gpu_memory_gb}, must be at least {DEFAULT_GPU_MEMORY_GB}")
    return PipelineConfig(
        name="production",
        gpu_memory_gb=gpu_memory_gb,
        image=KindConfig(short_side_px=800, min_score=0.9),
        frame=KindConfig(short_side_px=608, min_score=0.95),
        template_set="SM",
        detector=detector_config.PRODUCTION,
        embedders=embedder_model.PRODUCTION,
        serving={
            "recognize": ServingConfig(max_batch=max_images),
            "prepare": ServingConfig(max_batch=max_images, num_instances=4, num_threads=2),
            "detector": ServingConfig(
                max_batch=max_images,
                num_instances=2,
                is_on_gpu=True,
                num_threads=0,
                max_queue_size=256,
                max_queue_delay_us=2000 if max_images > 1 else 0,
            ),
            "crop_and_embed": ServingConfig(max_batch=8, num_instances=4, max_queue_size=256, max_queue_delay_us=1000),
            "crop": ServingConfig(num_instances=4),
            "embedder": ServingConfig(max_batch=8 * max_images, is_on_gpu=True, num_threads=0),
        },
    )


def demo(gpu_memory_gb: int = DEFAULT_GPU_MEMORY_GB) -> PipelineConfig:
    """Return the same pipeline with small networks and images, sized for two CPU cores; any GPU holds its batches."""
    return PipelineConfig(
        name="demo",
        gpu_memory_gb=gpu_memory_gb,
        image=KindConfig(short_side_px=320, min_score=0.9),
        frame=KindConfig(short_side_px=256, min_score=0.95),
        template_set="XS",
        detector=detector_config.DEMO,
        embedders=embedder_model.DEMO,
        serving={
            "recognize": ServingConfig(max_batch=8),
            "prepare": ServingConfig(max_batch=8),
            "detector": ServingConfig(max_batch=8, num_instances=2, max_queue_size=256),
            "crop_and_embed": ServingConfig(max_batch=8, num_instances=2, max_queue_size=256),
            "crop": ServingConfig(),
            "embedder": ServingConfig(max_batch=32),
        },
    )


CONFIGS = {"production": production, "demo": demo}


def add_config_options(parser: argparse.ArgumentParser, default: str | None = "production") -> None:
    """Add the options --config and --gpu-memory, the arguments for `CONFIGS[config](gpu_memory)`."""
    text = None if default is None else f"default: {default}"
    parser.add_argument("--config", choices=sorted(CONFIGS), default=default, required=default is None, help=text)
    parser.add_argument(
        "--gpu-memory",
        type=int,
        default=DEFAULT_GPU_MEMORY_GB,
        metavar="GB",
        help="of the GPU that serves; decides the largest batches; default: %(default)s",
    )


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --detector-config, the second argument of `with_detector`."""
    parser.add_argument(
        "--detector-config", type=Path, metavar="FILE", help="the JSON, or detectron2's YAML, of another detector"
    )


def with_detector(config: PipelineConfig, detector_config: Path | None) -> PipelineConfig:
    """Return the pipeline with the detector that a file describes, if one is given; raises as `read_config` does."""
    return config if detector_config is None else replace(config, detector=read_config(detector_config))
