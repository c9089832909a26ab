"""Both forms of NMS agree with hand-calculated cases, with torchvision's and, on 1,000 sets, with each other."""

from itertools import chain, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from export.config import demo
from export.graphs.checkpoints import build_detector_graph
from export.graphs.nms import MAX_ITERATIONS, Nms
from export.parity.inputs import folder_batches
from export.parity.reference import pad

CHECKPOINT = Path(__file__).parents[3] / "training" / "demo" / "checkpoints" / "detector.pth"


def make_nms(max_iou: float, form: str) -> Nms:
    module = Nms(max_iou)
    module.is_unrolled = form == "unrolled"
    return module


@pytest.fixture(params=["operator", "unrolled"])
def nms(request: pytest.FixtureRequest) -> Nms:
    return make_nms(0.5, request.param)


def test_kept_boxes(nms: Nms) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    boxes = boxes.float().expand(3, 5, 4)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.7], [0.5, 0.8, 0.7, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    expected = [[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]  # an IoU of exactly 0.5 is no overlap
    mask, is_exact = nms(boxes, scores)
    assert mask.tolist() == expected and is_exact.tolist() == [True, True, True]


def test_groups_are_independent(nms: Nms) -> None:
    boxes = torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(2, 2, 4)
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.2]])
    assert nms(boxes, scores)[0].tolist() == [[1, 0], [0, 1]]


def test_a_box_that_a_suppressed_box_overlaps_is_kept(nms: Nms) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]]])  # IoU of neighbours 2/3, of the ends 3/7
    assert nms(boxes, torch.tensor([[0.9, 0.8, 0.7]]))[0].tolist() == [[1, 0, 1]]


def test_boxes_of_other_classes_suppress_nothing(nms: Nms) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 10, 7]]).float().expand(2, 4, 4)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.0]])
    labels = torch.tensor([[5, 0, 5, 0], [3, 2, 1, 1]])
    mask, is_exact = nms(boxes, scores, labels, 6)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]] and is_exact.tolist() == [True, True]


def make_set(seed: int) -> tuple[Tensor, Tensor, float]:
    """Return boxes [G, K, 4], scores [G, K] and a limit: sparse, dense, tied, nearly all the same, or empty."""
    generator = torch.Generator().manual_seed(seed)
    num_groups, num_boxes = 1 + seed % 3, (1, 7, 60, 200)[seed % 4]
    extent = (5.0, 40.0, 400.0)[seed // 4 % 3]
    start = torch.rand(num_groups, num_boxes, 2, generator=generator) * extent
    sides = torch.rand(num_groups, num_boxes, 2, generator=generator) * 40
    scores = torch.rand(num_groups, num_boxes, generator=generator)
    if seed % 5 == 0:
        scores = (scores * 4).round() / 4  # ties, and zeros
    if seed % 7 == 0:
        start, sides = start.round(), sides.round()  # equal boxes, and boxes without an area
    if seed % 11 == 0:
        scores = torch.zeros_like(scores)
    # torchvision compares in float64, so at an IoU of exactly 0.3 it would differ: float32's 0.3 is larger.
    return torch.cat([start, start + sides], dim=-1), scores, (0.25, 0.5, 0.7)[seed % 3]


def test_both_forms_agree_on_1000_sets() -> None:
    num_kept = num_dropped = 0
    for seed in range(1000):
        boxes, scores, max_iou = make_set(seed)
        expected, _ = make_nms(max_iou, "operator")(boxes, scores)
        found, is_exact = make_nms(max_iou, "unrolled")(boxes, scores)
        assert is_exact.all() and torch.equal(found, expected), seed
        num_kept += int(found.sum())
        num_dropped += int((scores > 0).sum() - found.sum())
    assert num_kept > 20_000 and num_dropped > 20_000


def test_class_by_class_is_the_same_as_each_class_alone() -> None:
    num_kept = 0
    for seed in range(200):
        boxes, scores, max_iou = make_set(seed)
        num_classes = (2, 5, 40)[seed % 3]
        labels = torch.randint(num_classes, scores.shape, generator=torch.Generator().manual_seed(seed))
        expected = torch.zeros_like(scores)
        for group, label in product(range(len(scores)), range(num_classes)):
            rows = ((labels[group] == label) & (scores[group] > 0)).nonzero()[:, 0]
            expected[group, rows[torchvision_nms(boxes[group, rows], scores[group, rows], max_iou)]] = 1
        for form in ("operator", "unrolled"):
            found, is_exact = make_nms(max_iou, form)(boxes, scores, labels, num_classes)
            assert is_exact.all() and torch.equal(found, expected), (seed, form)
        num_kept += int(expected.sum() - make_nms(max_iou, "operator")(boxes, scores)[0].sum())
    assert num_kept > 2000  # that other classes would have suppressed


@pytest.mark.parametrize("num_boxes", [2, MAX_ITERATIONS, MAX_ITERATIONS + 1, 1000])
def test_a_chain_is_exact_or_says_that_it_is_not(num_boxes: int) -> None:
    """In a chain, each box overlaps only its neighbours, and each iteration settles just one more box."""
    start = 3.0 * torch.arange(num_boxes)
    boxes = torch.stack([start, torch.zeros(num_boxes), start + 10, torch.full((num_boxes,), 10.0)], dim=1)[None]
    scores = torch.linspace(1, 0.5, num_boxes)[None]
    expected, _ = make_nms(0.5, "operator")(boxes, scores)
    assert expected[0].tolist() == [(index + 1) % 2 for index in range(num_boxes)]
    found, is_exact = make_nms(0.5, "unrolled")(boxes, scores)
    assert is_exact.tolist() == [num_boxes <= MAX_ITERATIONS]
    assert found[0, :MAX_ITERATIONS].equal(expected[0, :MAX_ITERATIONS])


def test_boxes_that_are_all_the_same_leave_the_first(nms: Nms) -> None:
    mask, is_exact = nms(torch.tensor([1.0, 2.0, 5.0, 9.0]).expand(1, 500, 4), torch.full((1, 500), 0.7))
    assert is_exact.all() and mask.nonzero().tolist() == [[0, 0]]


def test_both_forms_find_the_same_in_photos(demo_world: Path) -> None:
    graph = build_detector_graph(CHECKPOINT)
    folders = sorted((demo_world / "image").iterdir())
    num_detections = 0
    for batch in chain.from_iterable(folder_batches(folder, demo()) for folder in folders):
        found = []
        for is_unrolled in (False, True):
            for module in graph.modules():
                if isinstance(module, Nms):
                    module.is_unrolled = is_unrolled
            with torch.inference_mode():
                found.append(graph(*pad(list(batch.values()), graph.config)))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        num_detections += int(found[1][2].sum())
    assert num_detections > 40
