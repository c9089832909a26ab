"""detectron2's YAML configs: what is read, inherited and refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.detector.config import PRODUCTION, DetectorConfig
from training.detector.detectron2_config import (
    _TRAINING_ONLY,
    DEFAULTS,
    REQUIRED,
    ImageSizes,
    read_config,
    read_image_sizes,
)

# What every Faster R-CNN with a feature pyramid sets.
BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN: {IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"], PRE_NMS_TOPK_TEST: 1000, PRE_NMS_TOPK_TRAIN: 2000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NUM_CONV: 4}
SOLVER:
  STEPS: (60000, 80000)
VERSION: 2
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "Base.yaml"
    path.write_text(BASE)
    return path


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def derived(base: Path, *settings: tuple[str, Any]) -> Path:
    """Write one file for each setting, each of which inherits from the one before; return the last."""
    path = base
    for index, (key, value) in enumerate(settings):
        text = yaml.safe_dump({"_BASE_": path.name, **nested(key, value)})
        path = base.with_name(f"derived{index}.yaml")
        path.write_text(text)
    return path


def test_defaults_are_detectron2s(base: Path) -> None:
    assert read_config(base) == DetectorConfig(
        backbone="resnet50",
        norm="FrozenBN",
        num_classes=80,
        box_weights=(10.0, 10.0, 5.0, 5.0),
        anchor_sizes_px=PRODUCTION.anchor_sizes_px,
        score_threshold=0.05,
        pixel_mean_bgr=(103.53, 116.28, 123.675),
    )


def test_settings_are_inherited_and_replaced(base: Path) -> None:
    path = derived(
        base,
        ("MODEL.RESNETS", {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "STRIDE_IN_1X1": True}),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False),
        ("MODEL.PIXEL_STD", [57.375, 57.12, 58.395]),
        ("MODEL.ROI_HEADS", {"NUM_CLASSES": 13, "SCORE_THRESH_TEST": "1e-2"}),  # YAML reads 1e-2 as a string
        ("MODEL.ROI_BOX_HEAD", {"BBOX_REG_WEIGHTS": "(20.0, 20.0, 10.0, 10.0)", "CLS_AGNOSTIC_BBOX_REG": True}),
        ("MODEL.ROI_BOX_HEAD", {"NUM_FC": 3, "FC_DIM": 512, "POOLER_SAMPLING_RATIO": 2}),
        ("MODEL.ANCHOR_GENERATOR", {"OFFSET": 0.5, "ASPECT_RATIOS": [[1.0, 3.0]]}),
        ("TEST.DETECTIONS_PER_IMAGE", 50),
    )
    config = read_config(path)
    assert (config.backbone, config.resnet_groups, config.resnet_group_width) == ("resnet101", 32, 8)
    assert not config.has_stride_in_1x1
    assert config.pixel_std_bgr == (57.375, 57.12, 58.395)
    assert (config.num_classes, config.score_threshold) == (13, 0.01)
    assert config.box_weights == (20, 20, 10, 10) and config.has_class_agnostic_boxes
    assert (config.box_head_layers, config.box_head_dim, config.sampling_ratio) == (3, 512, 2)
    assert (config.anchor_offset, config.anchor_ratios, config.max_detections) == (0.5, (1.0, 3.0), 50)


def test_sizes_of_images_are_read_for_training(base: Path) -> None:
    assert read_image_sizes(base) == ImageSizes()
    path = derived(base, ("INPUT", {"MIN_SIZE_TRAIN": "(480, 320, 400)", "MAX_SIZE_TRAIN": 900, "MIN_SIZE_TEST": 480}))
    expected = ImageSizes(short_sides_px=(320, 480), max_side_px=900, test_short_side_px=480, test_max_side_px=1333)
    assert read_image_sizes(path) == expected
    for value, message in ((0, r"MIN_SIZE_TRAIN\[0\] is 0"), ([640, "x"], r"MIN_SIZE_TRAIN\[1\] is 'x'")):
        with pytest.raises(ValueError, match=rf"derived0\.yaml: INPUT\.{message}, not a positive number of pixels"):
            read_image_sizes(derived(base, ("INPUT.MIN_SIZE_TRAIN", value)))


def test_a_base_may_be_in_another_folder_or_one_of_several(base: Path) -> None:
    (base.parent / "deep").mkdir()
    (base.parent / "classes.yaml").write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 5}}")
    path = base.parent / "deep" / "config.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": ["../Base.yaml", "../classes.yaml"]}))
    assert read_config(path).num_classes == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.MASK_ON", True),
        ("MODEL.KEYPOINT_ON", True),
        ("MODEL.META_ARCHITECTURE", "PanopticFPN"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
        ("MODEL.ROI_MASK_HEAD.NORM", "GN"),
        ("MODEL.ROI_BOX_HEAD.NORM", "GN"),  # of convolutions, of which there are none
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6, 0.7)"),
        ("INPUT.MIN_SIZE_TEST", 320),
    ],
)
def test_settings_that_leave_the_boxes_as_they_are_change_nothing(base: Path, key: str, value: Any) -> None:
    assert read_config(derived(base, (key, value))) == read_config(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VERSION", 1),
        ("INPUT.FORMAT", "RGB"),
        ("TEST.AUG.ENABLED", True),
        ("MODEL.META_ARCHITECTURE", "RetinaNet"),
        ("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
        ("MODEL.LOAD_PROPOSALS", True),
        ("MODEL.BACKBONE.NAME", "build_resnet_backbone"),  # C4 and DC5
        ("MODEL.BACKBONE.NAME", "build_regnet_fpn_backbone"),
        ("MODEL.RESNETS.DEPTH", 18),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.RESNETS.NORM", "SyncBN"),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        ("MODEL.FPN.NORM", "GN"),
        ("MODEL.FPN.FUSE_TYPE", "avg"),
        ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]]),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5], [1.0], [1.0], [1.0], [2.0]]),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", [10, 10, 5, 5]),
        ("MODEL.RPN.CONV_DIMS", [256, 256]),
        ("MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        ("MODEL.ROI_BOX_HEAD.NUM_CONV", 4),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 0),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ("MODEL.ROI_HEADS.COSINE_SCALE", 20.0),  # of a fork
    ],
)
def test_what_the_graph_cannot_compute_is_refused_by_name(base: Path, key: str, value: Any) -> None:
    path = derived(base, (key, value))
    with pytest.raises(ValueError) as error:
        read_config(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: {key} is {value!r}")


def test_tags_of_python_are_not_run(base: Path) -> None:
    path = base.with_name("tagged.yaml")
    ran = base.with_name("ran")
    tag = f"""!!python/object/apply:eval ["open({str(ran)!r}, 'w')"]"""
    path.write_text(f"_BASE_: Base.yaml\nMODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {tag}\n")
    with pytest.raises(ValueError, match=r"MODEL\.ANCHOR_GENERATOR\.SIZES is '!!python/object/apply:eval'"):
        read_config(path)
    assert not ran.exists()


def test_tuples_are_read_in_every_notation(base: Path) -> None:
    path = base.with_name("tuples.yaml")
    for weights in ("(1.0, 2.0, 3.0, 4.0)", "[1, 2, 3, 4]", "!!python/tuple [1, 2, 3, 4]"):
        path.write_text(f"_BASE_: Base.yaml\nMODEL:\n  ROI_BOX_HEAD:\n    BBOX_REG_WEIGHTS: {weights}\n")
        assert read_config(path).box_weights == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [", "not YAML"),
        ("- 1", "not a config but a list"),
        ("_BASE_: broken.yaml", "leads back to itself"),
        ("_BASE_: https://example.org/Base.yaml", "save that file"),
    ],
)
def test_files_that_are_no_configs_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_config(path)
    assert len(str(error.value).splitlines()) == 1 and str(path) in str(error.value)


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("_BASE_: Base.yaml")
    with pytest.raises(FileNotFoundError, match=r"Base\.yaml"):
        read_config(tmp_path / "config.yaml")


def test_our_json_is_read_too(base: Path) -> None:
    config = read_config(base)
    config.save(base.with_suffix(".json"))
    assert read_config(base.with_suffix(".json")) == config


@pytest.mark.detectron2
def test_defaults_and_keys_are_those_of_detectron2() -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.config import get_cfg

    cfg = get_cfg()

    def value_of(key: str) -> Any:
        section, _, name = key.rpartition(".")
        node = cfg
        for part in section.split(".") if section else ():
            node = node[part]
        return node[name]

    for key, default in (DEFAULTS | {key: default for key, (default, *_) in REQUIRED.items()}).items():
        assert value_of(key) == default, key
    for section, names in _TRAINING_ONLY.items():
        known = {key.rpartition(".")[2] for key in (*DEFAULTS, *REQUIRED) if key.rpartition(".")[0] == section}
        assert set(value_of(section)) == known | names and not known & names, section


@pytest.mark.detectron2
def test_a_config_that_training_wrote_is_read(base: Path) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(base))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 13
    (base.parent / "config.yaml").write_text(cfg.dump())
    assert read_config(base.parent / "config.yaml") == replace(read_config(base), num_classes=13)


@pytest.mark.detectron2
def test_every_config_of_the_zoo_is_read_or_refused_in_one_line() -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detectron2 import model_zoo

    folder = Path(model_zoo.__file__).parent / "configs"
    accepted = set()
    for path in folder.rglob("*.yaml"):
        try:
            read_config(path)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
        else:
            accepted.add(path.relative_to(folder).as_posix())
    zoo = {
        *(f"COCO-Detection/faster_rcnn_{name}_FPN_3x.yaml" for name in ("R_50", "R_101", "X_101_32x8d")),
        *(f"COCO-InstanceSegmentation/mask_rcnn_{name}_FPN_3x.yaml" for name in ("R_50", "R_101", "X_101_32x8d")),
        *(f"LVISv1-InstanceSegmentation/mask_rcnn_{name}_FPN_1x.yaml" for name in ("R_50", "R_101", "X_101_32x8d")),
        *(f"COCO-Keypoints/keypoint_rcnn_{name}_FPN_3x.yaml" for name in ("R_50", "R_101", "X_101_32x8d")),
        "PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml",
    }
    assert zoo <= accepted
    assert not [name for name in accepted if any(kind in name for kind in ("C4", "DC5", "retinanet", "cascade"))]
