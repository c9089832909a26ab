"""The architecture of the detector.

A `DetectorConfig` is saved as JSON beside each checkpoint; the export rebuilds the network from it.
"""

from dataclasses import dataclass, field

from training.checkpoint import MAY_BE_MISSING, JsonConfig

LEVELS = (2, 3, 4, 5, 6)
"""Pyramid levels P2..P6 that propose boxes; level l has stride 2**l. Boxes are pooled from all but the last."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(JsonConfig):
    """Architecture and test-time settings; the defaults are those of production. Sizes are in resized pixels."""

    backbone: str = "ese_vovnet99b"  # a key of `backbone.ARCHITECTURES` or of `resnet.NUM_BLOCKS`
    resnet_groups: int = field(default=1, metadata=MAY_BE_MISSING)  # of the 3 x 3 convolutions; VoVNets have none
    resnet_group_width: int = field(default=64, metadata=MAY_BE_MISSING)  # channels of a group in the first stage
    has_stride_in_1x1: bool = field(default=True, metadata=MAY_BE_MISSING)  # else a ResNet's 3 x 3 convolution has it
    norm: str = "FrozenBN"  # of the backbone: "FrozenBN" to fine-tune, "BN" to train from scratch
    fpn_channels: int = 256
    box_head_dim: int = 1024
    box_head_layers: int = field(default=2, metadata=MAY_BE_MISSING)
    num_classes: int = field(default=1, metadata=MAY_BE_MISSING)
    class_names: tuple[str, ...] = field(default=(), metadata=MAY_BE_MISSING)  # of each class, or empty
    has_class_agnostic_boxes: bool = field(default=False, metadata=MAY_BE_MISSING)  # one box for all classes
    pooled_size: int = 7
    sampling_ratio: int = field(default=0, metadata=MAY_BE_MISSING)  # of RoIAlign; 0: as many samples as cells
    anchor_sizes_px: tuple[float, ...] = (
        32.0,
        64.0,
        128.0,
        256.0,
        512.0,
    )  # one per level: square root of an anchor's area
    anchor_offset: float = 0.0  # fraction of the stride, from a cell's corner to the centre of its anchors
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # the box head's deltas are divided by it
    canonical_box_size_px: float = 224.0  # boxes of this size are pooled from canonical_level
    canonical_level: int = 4
    pre_nms_top_k: int = 1000  # per level
    post_nms_top_k: int = 1000
    rpn_nms_iou: float = 0.7
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_candidates: int = field(default=2000, metadata=MAY_BE_MISSING)  # see `export.graphs.detector.best_pairs`
    max_detections: int = 100
    pixel_mean_bgr: tuple[float, float, float] = (103.53, 116.28, 123.675)  # subtracted
    pixel_std_bgr: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0), metadata=MAY_BE_MISSING)  # then divided

    def __post_init__(self) -> None:
        if self.norm not in ("FrozenBN", "BN"):
            raise ValueError(f"norm is {self.norm!r}, not 'FrozenBN' or 'BN'")
        if len(self.anchor_sizes_px) != len(LEVELS):
            raise ValueError(f"{len(self.anchor_sizes_px)} anchor sizes for the {len(LEVELS)} levels P2..P6")
        for name in ("num_classes", "box_head_layers", "max_candidates", "max_detections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.num_classes} classes")
        if min(self.pixel_std_bgr) <= 0:
            raise ValueError(f"pixel_std_bgr is {self.pixel_std_bgr}, must be positive")


PRODUCTION = DetectorConfig()

DEMO = DetectorConfig(
    backbone="vovnet_demo",
    norm="BN",
    fpn_channels=48,
    box_head_dim=128,
    anchor_sizes_px=(16.0, 32.0, 64.0, 128.0, 256.0),
    anchor_offset=0.5,
    canonical_box_size_px=96.0,
    pre_nms_top_k=200,
    post_nms_top_k=200,
)
"""A small version of the detector, for images with short sides of about 256 (frames) and 320 (photos) pixels."""
