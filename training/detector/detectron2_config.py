"""Read the YAML config of a detectron2 model as a `DetectorConfig`, without detectron2.

Only settings that change the boxes of a trained model are looked at. A setting that the exported graph cannot compute
is refused by its key, rather than exported as something else. Mask, keypoint and semantic heads are no reason to
refuse: they take the boxes as they are, so the boxes are the same without them. Neither are losses (such as
BBOX_REG_LOSS_TYPE "giou"), which act on training only. The sizes of images (INPUT) are read for training, and are the
pipeline's to choose in the export.

Sources: detectron2/config/defaults.py for the keys and defaults, fvcore/common/config.py for `_BASE_`.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.detector.config import LEVELS, DetectorConfig
from training.detector.resnet import NUM_BLOCKS, RES2_CHANNELS, STEM_CHANNELS

Settings = dict[str, Any]  # by key, such as "MODEL.RPN.NMS_THRESH"

DEFAULTS: Settings = {
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
"""detectron2's defaults of the settings that become part of a `DetectorConfig`."""

_PYRAMID = ["p2", "p3", "p4", "p5", "p6"]
_STAGES = ["res2", "res3", "res4", "res5"]

REQUIRED: dict[str, tuple[Any, ...]] = {  # the default, then what the graph can compute
    "VERSION": (2, 2),
    "INPUT.FORMAT": ("BGR", "BGR"),
    "TEST.AUG.ENABLED": (False, False),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "GeneralizedRCNN", "PanopticFPN"),
    "MODEL.LOAD_PROPOSALS": (False, False),
    "MODEL.BACKBONE.NAME": ("build_resnet_backbone", "build_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (["res4"], _STAGES),
    "MODEL.RESNETS.RES5_DILATION": (1, 1),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": (256, RES2_CHANNELS),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": (64, STEM_CHANNELS),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4, [False] * 4),
    "MODEL.FPN.IN_FEATURES": ([], _STAGES),
    "MODEL.FPN.NORM": ("", ""),
    "MODEL.FPN.FUSE_TYPE": ("sum", "sum"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0, 0),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead", "StandardRPNHead"),
    "MODEL.RPN.IN_FEATURES": (["res4"], _PYRAMID),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ((1.0, 1.0, 1.0, 1.0), [1, 1, 1, 1]),
    "MODEL.RPN.CONV_DIMS": ([-1], [-1]),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "StandardROIHeads"),
    "MODEL.ROI_HEADS.IN_FEATURES": (["res4"], _PYRAMID[:-1]),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0, 0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlignV2"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False, False),
}
"""Settings for which the graph has no choice. The network's kind comes first, because it explains the most."""

_TRAINING_ONLY = {
    "MODEL.BACKBONE": {"FREEZE_AT"},
    "MODEL.RESNETS": {"DEFORM_MODULATED", "DEFORM_NUM_GROUPS"},
    "MODEL.FPN": set(),
    "MODEL.PROPOSAL_GENERATOR": set(),
    "MODEL.ANCHOR_GENERATOR": {"ANGLES"},
    "MODEL.RPN": {
        *("BATCH_SIZE_PER_IMAGE", "BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "BOUNDARY_THRESH", "IOU_LABELS"),
        *("IOU_THRESHOLDS", "LOSS_WEIGHT", "POSITIVE_FRACTION", "POST_NMS_TOPK_TRAIN", "PRE_NMS_TOPK_TRAIN"),
        "SMOOTH_L1_BETA",
    },
    "MODEL.ROI_HEADS": {
        *("BATCH_SIZE_PER_IMAGE", "IOU_LABELS", "IOU_THRESHOLDS", "POSITIVE_FRACTION", "PROPOSAL_APPEND_GT")
    },
    "MODEL.ROI_BOX_HEAD": {
        *("BBOX_REG_LOSS_TYPE", "BBOX_REG_LOSS_WEIGHT", "CONV_DIM", "FED_LOSS_FREQ_WEIGHT_POWER"),
        *("FED_LOSS_NUM_CLASSES", "NORM", "SMOOTH_L1_BETA", "TRAIN_ON_PRED_BOXES", "USE_FED_LOSS"),
    },
}
"""The other keys of the sections that describe a network's boxes: for training, or for what REQUIRED excludes."""


def read_config(path: Path) -> DetectorConfig:
    """Return the architecture and test-time settings of a detectron2 config, or of a `DetectorConfig` in JSON.

    Args:
        path: a .yaml file, such as one of the model zoo or the config.yaml that training wrote, or a .json file.

    Raises:
        FileNotFoundError: the file, or one that it names as `_BASE_`, is missing.
        ValueError: the file is no config, or has settings that the exported graph cannot compute.
    """
    if path.suffix == ".json":
        return DetectorConfig.load(path)
    settings = _flatten(_read_yaml(path))
    try:
        _require_possible(settings)
        return _convert(DEFAULTS | settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """The sizes to which images are resized; the defaults are those of detectron2's model zoo."""

    short_sides_px: tuple[int, int] = (640, 800)  # smallest and largest, in training
    max_side_px: int = 1333  # in training
    test_short_side_px: int = 800
    test_max_side_px: int = 1333


def read_image_sizes(path: Path) -> ImageSizes:
    """Return the sizes in the section INPUT of a detectron2 config; the defaults for a `DetectorConfig` in JSON.

    Raises the errors of `read_config`.
    """
    zoo = ImageSizes()
    if path.suffix == ".json":
        return zoo
    settings = _flatten(_read_yaml(path))
    short_sides = settings.get("INPUT.MIN_SIZE_TRAIN", zoo.short_sides_px)
    short_sides = short_sides if isinstance(short_sides, list | tuple) else [short_sides]
    rest = {
        key: settings.get(f"INPUT.{key}", default)
        for key, default in (
            ("MAX_SIZE_TRAIN", zoo.max_side_px),
            ("MIN_SIZE_TEST", zoo.test_short_side_px),
            ("MAX_SIZE_TEST", zoo.test_max_side_px),
        )
    }
    for key, value in ({f"MIN_SIZE_TRAIN[{i}]": side for i, side in enumerate(short_sides)} | rest).items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: INPUT.{key} is {value!r}, not a positive number of pixels")
    return ImageSizes(
        short_sides_px=(min(short_sides), max(short_sides)),
        max_side_px=rest["MAX_SIZE_TRAIN"],
        test_short_side_px=rest["MIN_SIZE_TEST"],
        test_max_side_px=rest["MAX_SIZE_TEST"],
    )


def _convert(settings: Settings) -> DetectorConfig:
    get = settings.__getitem__
    depth, norm = get("MODEL.RESNETS.DEPTH"), get("MODEL.RESNETS.NORM")
    if f"resnet{depth}" not in NUM_BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {depth!r}; only 50, 101 and 152 can be exported")
    if norm not in ("FrozenBN", "BN"):
        raise ValueError(f"MODEL.RESNETS.NORM is {norm!r}; only 'FrozenBN' and 'BN' can be exported")
    if get("MODEL.ROI_BOX_HEAD.NUM_FC") < 1:
        raise ValueError(f"MODEL.ROI_BOX_HEAD.NUM_FC is {get('MODEL.ROI_BOX_HEAD.NUM_FC')!r}, must be at least 1")
    return DetectorConfig(
        backbone=f"resnet{depth}",
        resnet_groups=get("MODEL.RESNETS.NUM_GROUPS"),
        resnet_group_width=get("MODEL.RESNETS.WIDTH_PER_GROUP"),
        has_stride_in_1x1=get("MODEL.RESNETS.STRIDE_IN_1X1"),
        norm=norm,
        fpn_channels=get("MODEL.FPN.OUT_CHANNELS"),
        box_head_dim=get("MODEL.ROI_BOX_HEAD.FC_DIM"),
        box_head_layers=get("MODEL.ROI_BOX_HEAD.NUM_FC"),
        num_classes=get("MODEL.ROI_HEADS.NUM_CLASSES"),
        has_class_agnostic_boxes=get("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        pooled_size=get("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
        sampling_ratio=get("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"),
        anchor_sizes_px=_anchor_sizes(get("MODEL.ANCHOR_GENERATOR.SIZES")),
        anchor_offset=get("MODEL.ANCHOR_GENERATOR.OFFSET"),
        anchor_ratios=_anchor_ratios(get("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")),
        box_weights=_floats(get("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")),
        pre_nms_top_k=get("MODEL.RPN.PRE_NMS_TOPK_TEST"),
        post_nms_top_k=get("MODEL.RPN.POST_NMS_TOPK_TEST"),
        rpn_nms_iou=get("MODEL.RPN.NMS_THRESH"),
        score_threshold=get("MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        nms_iou=get("MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        max_detections=get("TEST.DETECTIONS_PER_IMAGE"),
        pixel_mean_bgr=_floats(get("MODEL.PIXEL_MEAN")),
        pixel_std_bgr=_floats(get("MODEL.PIXEL_STD")),
    )


def _require_possible(settings: Settings) -> None:
    for key, (default, *possible) in REQUIRED.items():
        value = settings.get(key, default)
        value = list(value) if isinstance(value, tuple) else value
        if value not in possible:
            raise ValueError(f"{key} is {value!r}; only {' and '.join(map(repr, possible))} can be exported")
    for key in settings:
        section, _, name = key.rpartition(".")
        if section in _TRAINING_ONLY and key not in DEFAULTS | REQUIRED and name not in _TRAINING_ONLY[section]:
            # A fork's setting, such as another classifier's: ignoring it could change every box.
            raise ValueError(f"{key} is {settings[key]!r}, and detectron2 has no such key")


def _floats(values: Any) -> Any:  # a tuple as long as the list, which no type can say
    return tuple(map(float, values))


def _anchor_sizes(sizes: Any) -> tuple[float, ...]:
    per_level = [list(level) if isinstance(level, list | tuple) else [level] for level in sizes]
    if len(per_level) != len(LEVELS) or any(len(level) != 1 for level in per_level):
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.SIZES is {sizes!r}; only one size for each of P2..P6 can be exported")
    return tuple(float(level[0]) for level in per_level)


def _anchor_ratios(ratios: Any) -> tuple[float, ...]:
    per_level = [list(level) for level in ratios] if isinstance(ratios[0], list | tuple) else [list(ratios)]
    if any(level != per_level[0] for level in per_level) or len(per_level) not in (1, len(LEVELS)):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is {ratios!r}; only the same for all levels can be exported"
        )
    return tuple(map(float, per_level[0]))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads !!python/tuple, and any other Python tag, such as the zoo's !!python/object/apply:eval, as a string.

    Nothing in a file is run.
    """


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: f"!!python/{suffix}")


def _read_yaml(path: Path, outer: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a file, merged into that of its `_BASE_`, a path relative to the file or a list of them."""
    if path.resolve() in outer:
        raise ValueError(f"{path}: its _BASE_ leads back to itself")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a config but a {type(content).__name__}")
    bases = content.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if "://" in base:
            raise ValueError(f"{path}: _BASE_ is {base!r}; save that file and name its path")
        _merge(merged, _read_yaml(path.parent / Path(base).expanduser(), (*outer, path.resolve())))
    _merge(merged, content)
    return merged


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Settings:
    """Return the settings of nested sections by their full keys. Strings such as "(10, 10)" are Python literals."""
    settings: Settings = {}
    for key, value in section.items():
        if isinstance(value, dict):
            settings |= _flatten(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = _literal(value) if isinstance(value, str) else value
    return settings


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
