import json
from dataclasses import replace
from pathlib import Path

import pytest

from training.detector.config import DEMO, PRODUCTION, DetectorConfig


@pytest.mark.parametrize("config", [DEMO, PRODUCTION])
def test_json_gives_the_config_back(config: DetectorConfig, tmp_path: Path) -> None:
    path = tmp_path / "detector.json"
    config.save(path)
    assert DetectorConfig.load(path) == config


def test_production_is_the_reference_solution() -> None:
    assert PRODUCTION.backbone == "ese_vovnet99b"
    assert PRODUCTION.norm == "FrozenBN"
    assert PRODUCTION.fpn_channels == 256
    assert PRODUCTION.box_head_dim == 1024
    assert PRODUCTION.anchor_sizes_px == (32, 64, 128, 256, 512)
    assert PRODUCTION.pre_nms_top_k == PRODUCTION.post_nms_top_k == 1000


@pytest.mark.parametrize("change", [{"colour": 1}, {"nms_iou": None}])
def test_unknown_and_missing_fields_are_named(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "detector.json"
    DEMO.save(path)
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=rf"detector\.json.*{next(iter(change))}"):
        DetectorConfig.load(path)


def test_files_of_earlier_versions_have_one_class_and_no_division(tmp_path: Path) -> None:
    path = tmp_path / "detector.json"
    DEMO.save(path)
    values = json.loads(path.read_text())
    for name in ("num_classes", "pixel_std_bgr", "resnet_groups"):
        del values[name]
    path.write_text(json.dumps(values))
    assert DetectorConfig.load(path) == DEMO
    assert DEMO.num_classes == 1 and DEMO.pixel_std_bgr == (1, 1, 1)


@pytest.mark.parametrize("text", ['{"norm": ', "[1]", "\udcff"])
def test_a_file_that_holds_no_config_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "detector.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"detector\.json: "):
        DetectorConfig.load(path)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="GN"):
        replace(DEMO, norm="GN")
    with pytest.raises(ValueError, match="4 anchor sizes"):
        replace(DEMO, anchor_sizes_px=(16, 32, 64, 128))
    with pytest.raises(ValueError, match="num_classes is 0"):
        replace(DEMO, num_classes=0)
    with pytest.raises(ValueError, match="pixel_std_bgr"):
        replace(DEMO, pixel_std_bgr=(1, 0, 1))
