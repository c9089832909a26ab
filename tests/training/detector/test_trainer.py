import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from training.detector.config import DEMO
from training.detector.model import build_detector
from training.detector.recipe import Recipe, demo, stage1, stage3
from training.detector.trainer import DetectorTrainer, build_optimizer, learning_rate_factor

pytestmark = pytest.mark.detectron2


def recipe(**changes: object) -> Recipe:
    return replace(demo(), iterations=4, batch_size=1, warmup_iterations=1, **changes)


def batch(*boxes: tuple[float, float, float, float]) -> list[dict[str, object]]:
    """One noisy image of 64 × 64 with these boxes."""
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    pixels = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [{"image": pixels, "instances": instances}]


@pytest.mark.parametrize("amp", [False, True])
def test_an_image_without_boxes_teaches_that_nothing_is_there(amp: bool) -> None:
    run = DetectorTrainer(recipe(), amp=amp)
    with EventStorage():
        losses = run.step(batch())
    assert losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0.0
    assert losses["loss_cls"] > 0 and losses["loss_rpn_cls"] > 0


def test_amp_starts_at_the_same_losses() -> None:
    with EventStorage():
        exact, mixed = (DetectorTrainer(recipe(), amp=amp).step(batch((8, 8, 40, 50))) for amp in (False, True))
    assert mixed != exact
    for name in ("loss_cls", "loss_rpn_cls"):  # the others depend on which proposals survive
        assert mixed[name] == pytest.approx(exact[name], rel=0.1)


def test_a_loss_that_is_not_finite_stops_with_iteration_and_losses() -> None:
    run = DetectorTrainer(recipe())
    with torch.no_grad():
        run.model.roi_heads.box_predictor.cls_score.bias.fill_(math.nan)
    with EventStorage(), pytest.raises(FloatingPointError, match=r"iteration 1: .*'loss_cls': nan"):
        run.step(batch((8, 8, 40, 50)))


def test_proposals_that_are_not_finite_stop_with_the_iteration() -> None:
    run = DetectorTrainer(recipe())
    with torch.no_grad():
        run.model.proposal_generator.rpn_head.objectness_logits.bias.fill_(math.nan)
    with EventStorage(), pytest.raises(FloatingPointError, match=r"iteration 1: .*Inf/NaN"):
        run.step(batch((8, 8, 40, 50)))


def test_a_gradient_that_is_not_finite_stops_with_iteration_and_losses() -> None:
    run = DetectorTrainer(recipe(max_gradient_norm=None))
    run.model.backbone.bottom_up.stem[0].conv.weight.register_hook(lambda gradient: gradient * math.inf)
    with (
        EventStorage(),
        pytest.raises(FloatingPointError, match=r"gradient norm is (inf|nan) at iteration 1: .*'loss_cls'"),
    ):
        run.step(batch((8, 8, 40, 50)))


def test_finite_gradients_at_a_small_scale_are_a_step() -> None:
    run = DetectorTrainer(recipe())
    run.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    before = run.model.backbone.bottom_up.stem[0].conv.weight.clone()
    with EventStorage():
        run.step(batch((8, 8, 40, 50)))
    assert not torch.equal(run.model.backbone.bottom_up.stem[0].conv.weight, before)


def test_a_checkpoint_holds_everything_and_is_only_for_its_run(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    run = DetectorTrainer(recipe(), seed=1)
    with EventStorage():
        run.step(batch((8, 8, 40, 50)))
        run.save(path, {"sums": {}})
        again = DetectorTrainer(recipe(num_workers=0, checkpoint_every=7), seed=5)
        again.seed = 1
        assert again.load(path) == {"sums": {}}
        assert again.iteration == 1 and again.learning_rate == run.learning_rate
        assert again.step(batch((8, 8, 40, 50))) == run.step(batch((8, 8, 40, 50)))
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    with pytest.raises(
        ValueError, match=r"last\.pt was trained with --batch 1 \(here 2\); seed 1 \(here 0\): pass the same"
    ):
        DetectorTrainer(replace(recipe(), batch_size=2)).load(path)
    with pytest.raises(ValueError, match=r"name 'demo' \(here 'stage9'\).*amp False \(here True\)"):
        DetectorTrainer(recipe(name="stage9"), seed=1, amp=True).load(path)
    with pytest.raises(ValueError, match=r"was trained with other images, boxes or identities in --data"):
        DetectorTrainer(recipe(), seed=1, data="1f0c").load(path)


def test_learning_rate_warms_up_then_falls_along_a_cosine() -> None:
    recipe = replace(demo(), iterations=1000, warmup_iterations=10)
    assert learning_rate_factor(0, recipe) == pytest.approx(0.1)
    assert learning_rate_factor(500, recipe) == pytest.approx(0.5)
    assert learning_rate_factor(1000, recipe) == pytest.approx(0.0)
    assert learning_rate_factor(50_000, stage1()) == 1.0
    assert learning_rate_factor(62_500, stage3()) == pytest.approx(0.5)


def test_norms_and_biases_do_not_decay() -> None:
    decayed, free = build_optimizer(build_detector(DEMO), demo()).param_groups
    assert decayed["weight_decay"] == 0.01 and free["weight_decay"] == 0.0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in free["params"])
