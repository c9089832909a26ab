import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from training.detector.config import DEMO, PRODUCTION
from training.detector.model import build_detector

pytestmark = pytest.mark.detectron2


def test_production_has_the_reference_solutions_87_million_parameters() -> None:
    state_dict = build_detector(PRODUCTION).state_dict()
    assert sum(value.numel() for value in state_dict.values()) == pytest.approx(87e6, rel=0.01)


def test_keys_are_detectron2s() -> None:
    names = set(build_detector(DEMO).state_dict())
    assert {
        "backbone.bottom_up.stem.0.conv.weight",
        "backbone.fpn_lateral2.weight",
        "backbone.fpn_output5.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight",
        "roi_heads.box_head.fc1.weight",
        "roi_heads.box_predictor.cls_score.bias",
    } <= names
