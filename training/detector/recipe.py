"""The hyperparameters of the detector's training: one function per training, which returns a `Recipe`."""

from dataclasses import dataclass

from training.detector.config import DEMO, PRODUCTION, DetectorConfig
from training.detector.detectron2_config import ImageSizes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one training.

    In training, the short side of the images is drawn uniformly from (smallest, largest), once per batch.
    """

    name: str
    model: DetectorConfig
    iterations: int
    batch_size: int  # summed over all processes
    optimizer: str  # "sgd" (with momentum 0.9) or "adamw"
    learning_rate: float
    weight_decay: float
    schedule: str  # of the learning rate after the warm-up: "constant", or "cosine" down to zero
    warmup_iterations: int
    max_gradient_norm: float | None
    photo_short_sides_px: tuple[int, int]
    frame_short_sides_px: tuple[int, int]
    max_side_px: int
    photo_test_short_side_px: int = 800
    frame_test_short_side_px: int = 608
    test_max_side_px: int = 4000
    rpn_batch_size: int = 256  # anchors per image in the loss
    roi_batch_size: int = 512  # proposals per image in the loss
    train_pre_nms_top_k: int = 2000
    train_post_nms_top_k: int = 1000
    checkpoint_every: int = 1000
    evaluate_every: int = 30_000  # rare, as a validation set of 5 % has 24,000 images
    num_workers: int = 4


def stage1() -> Recipe:
    """Return the recipe of stage 1: from ImageNet weights, on small images."""
    return _production(
        name="stage1",
        iterations=60_000,
        batch_size=4,
        learning_rate=0.003,
        schedule="constant",
        short_sides=(414, 576),
        max_side=800,
    )


def stage2() -> Recipe:
    """Return the recipe of stage 2: from the weights of stage 1, on images of nearly test size."""
    return _production(
        name="stage2",
        iterations=60_000,
        batch_size=2,
        learning_rate=0.003,
        schedule="cosine",
        short_sides=(540, 800),
        max_side=1100,
    )


def stage3() -> Recipe:
    """Return the recipe of stage 3: from the weights of stage 2, at a tenth of the learning rate."""
    return _production(
        name="stage3",
        iterations=125_000,
        batch_size=2,
        learning_rate=0.0003,
        schedule="cosine",
        short_sides=(540, 800),
        max_side=1100,
    )


def finetune(model: DetectorConfig, sizes: ImageSizes) -> Recipe:
    """Return the recipe for fine-tuning a model of detectron2 on a small data set, with the zoo's rate per image."""
    return Recipe(
        name="finetune",
        model=model,
        iterations=3000,
        batch_size=2,
        optimizer="sgd",
        learning_rate=0.0025,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_iterations=100,
        max_gradient_norm=None,
        photo_short_sides_px=sizes.short_sides_px,
        frame_short_sides_px=sizes.short_sides_px,
        max_side_px=sizes.max_side_px,
        photo_test_short_side_px=sizes.test_short_side_px,
        frame_test_short_side_px=sizes.test_short_side_px,
        test_max_side_px=sizes.test_max_side_px,
        checkpoint_every=100,
        evaluate_every=1000,
        num_workers=2,
    )


def demo() -> Recipe:
    """Return the recipe of the demo: from scratch, on the rendered world."""
    return Recipe(
        name="demo",
        model=DEMO,
        iterations=3000,
        batch_size=8,
        optimizer="adamw",
        learning_rate=0.001,
        weight_decay=0.01,
        schedule="cosine",
        warmup_iterations=100,
        max_gradient_norm=5.0,
        photo_short_sides_px=(272, 352),
        frame_short_sides_px=(224, 288),
        max_side_px=640,
        photo_test_short_side_px=320,
        frame_test_short_side_px=256,
        rpn_batch_size=128,
        roi_batch_size=64,
        train_pre_nms_top_k=400,
        train_post_nms_top_k=200,
        checkpoint_every=50,
        evaluate_every=500,
        num_workers=1,
    )


STAGES = (stage1, stage2, stage3)


def _production(
    *,
    name: str,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    schedule: str,
    short_sides: tuple[int, int],
    max_side: int,
) -> Recipe:
    return Recipe(
        name=name,
        model=PRODUCTION,
        iterations=iterations,
        batch_size=batch_size,
        optimizer="sgd",
        learning_rate=learning_rate,
        weight_decay=1e-4,
        schedule=schedule,
        warmup_iterations=1000,
        max_gradient_norm=None,
        photo_short_sides_px=short_sides,
        frame_short_sides_px=short_sides,
        max_side_px=max_side,
    )
