"""Hand-calculated cases for the parts of the exported detector, and its behaviour as a whole, without detectron2."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from export.graphs.checkpoints import build_detector_graph
from export.graphs.detector import (
    INEXACT,
    DetectorGraph,
    RoiHeads,
    assign_levels,
    cell_anchors,
    clip,
    decode,
    feature_atlas,
    grid_anchors,
)
from training.detector.config import DEMO


def test_cell_anchors() -> None:
    expected = [[-32, -16, 32, 16], [-math.sqrt(512) * math.sqrt(2)] * 2 + [32] * 2, [-16, -32, 16, 32]]
    expected[1] = [-math.sqrt(2048) / 2, -math.sqrt(2048) / 2, math.sqrt(2048) / 2, math.sqrt(2048) / 2]
    torch.testing.assert_close(cell_anchors(math.sqrt(2048), (0.5, 1.0, 2.0)), torch.tensor(expected))


def test_anchors_repeat_at_each_location_in_row_order() -> None:
    cells = torch.tensor([[-1.0, -2.0, 1.0, 2.0], [-3.0, -3.0, 3.0, 3.0]])
    anchors = grid_anchors(cells, height=2, width=3, stride=8, offset=0.5)
    assert anchors.shape == (12, 4)
    assert anchors[0].tolist() == [3, 2, 5, 6]
    assert anchors[1].tolist() == [1, 1, 7, 7]
    assert anchors[2].tolist() == [11, 2, 13, 6]  # one to the right
    assert anchors[6].tolist() == [3, 10, 5, 14]  # one down
    assert torch.equal(grid_anchors(cells, height=2, width=3, stride=8, offset=0.0), anchors - 4)


def test_decode() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]]).expand(4, 4)
    deltas = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [0.5, -0.25, 0.0, 0.0], [0.0, 0.0, math.log(2), math.log(0.5)], [0.0, 0.0, 99.0, 0.0]]
    )
    half_width = 20 * 1000 / 16 / 2  # the largest factor is 1000 / 16
    expected = [[10, 20, 30, 60], [20, 10, 40, 50], [0, 30, 40, 50], [20 - half_width, 20, 20 + half_width, 60]]
    torch.testing.assert_close(decode(deltas, boxes), torch.tensor(expected, dtype=torch.float32))


def test_clip_uses_each_images_own_size() -> None:
    boxes = torch.tensor([-5.0, -5.0, 500.0, 500.0]).expand(2, 3, 1, 4)
    clipped = clip(boxes, torch.tensor([[100.0, 200.0], [300.0, 50.0]]))
    assert clipped.shape == (2, 3, 1, 4)
    assert clipped[0, 2, 0].tolist() == [0, 0, 200, 100]
    assert clipped[1, 0, 0].tolist() == [0, 0, 50, 300]


def test_level_depends_on_the_size_of_a_box() -> None:
    smallest_sizes = RoiHeads(replace(DEMO, canonical_box_size_px=224.0)).smallest_sizes
    assert smallest_sizes.tolist() == [112, 224, 448]
    sides = torch.tensor([[1, 1], [111, 111], [112, 112], [56, 224], [223, 223], [224, 224], [448, 448], [2000, 900]])
    boxes = torch.cat([torch.zeros(8, 2), sides.float()], dim=1)
    assert assign_levels(boxes, smallest_sizes).tolist() == [0, 0, 1, 1, 1, 2, 3, 3]


def test_pooling_from_the_atlas_equals_pooling_from_each_level() -> None:
    torch.manual_seed(0)
    height, width = 192, 256
    levels = [torch.randn(2, 48, height // stride, width // stride) for stride in (4, 8, 16, 32)]
    corners = torch.rand(2, 200, 2, 2) * torch.tensor([width, height]) * 1.2
    boxes = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    boxes[:, 0] = torch.tensor([0.0, 0.0, width, height])  # the borders are critical
    boxes[:, 1] = torch.tensor([0.0, 0.0, 20.0, 20.0])
    boxes[:, 2] = torch.tensor([width - 100.0, height - 100.0, width, height])
    boxes = clip(boxes, torch.tensor([[height, width]] * 2).float())

    heads = RoiHeads(DEMO)
    pooled = heads._pool(levels, boxes).unflatten(0, (2, 200))
    level_of_box = assign_levels(boxes, heads.smallest_sizes)
    assert set(level_of_box.flatten().tolist()) == {0, 1, 2, 3}
    for index, features in enumerate(levels):
        expected = roi_align(features, list(boxes), 7, spatial_scale=0.25 / 2**index, sampling_ratio=0, aligned=True)
        chosen = level_of_box == index
        torch.testing.assert_close(pooled[chosen], expected.unflatten(0, (2, 200))[chosen], rtol=1e-3, atol=1e-3)


def test_atlas_repeats_the_edges() -> None:
    first, second = torch.arange(8.0).view(1, 1, 2, 4), torch.tensor([[[[8.0, 9.0]]]])
    assert feature_atlas([first, second])[0, 0].tolist() == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5, 6, 7],
        [8, 9, 9, 9],
        [8, 9, 9, 9],
        [8, 9, 9, 9],
    ]


def heads(**changes: object) -> RoiHeads:
    """Return heads whose `select` is tested without weights; deltas move a box by a tenth of its sides."""
    return RoiHeads(replace(DEMO, num_classes=3, post_nms_top_k=2, max_detections=2, **changes)).eval()


# Two proposals far from each other, and the deltas of three classes: at rest, one side to the right, one side down.
PROPOSALS = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 60.0]]])
DELTAS = torch.tensor([0.0, 0, 0, 0, 10, 0, 0, 0, 0, 10, 0, 0]).expand(1, 2, 12)
SIZE = torch.tensor([[100.0, 100.0]])
ALL = torch.ones(1, 2, dtype=torch.bool)


def test_each_class_has_its_own_box() -> None:
    scores = torch.tensor([[[0.1, 0.05, 0.7], [0.04, 0.5, 0.3]]])  # all but 0.05 and 0.04 exceed the threshold
    boxes, found, labels, is_exact = heads(score_threshold=0.05).select(scores, DELTAS, PROPOSALS, ALL, SIZE)
    assert found.tolist() == [[pytest.approx(0.7), 0.5]] and labels.tolist() == [[2, 1]] and is_exact.all()
    assert boxes.tolist() == [[[0, 10, 10, 20], [70, 50, 90, 60]]]


def test_one_box_may_be_for_all_classes() -> None:
    scores = torch.tensor([[[0.1, 0.0, 0.7], [0.0, 0.2, 0.3]]])
    agnostic = heads(score_threshold=0.05, has_class_agnostic_boxes=True)
    assert agnostic.box_predictor.bbox_pred.out_features == 4 and agnostic.box_predictor.cls_score.out_features == 4
    boxes, found, labels, _ = agnostic.select(scores, DELTAS[..., 4:8], PROPOSALS, ALL, SIZE)
    assert found.tolist() == [pytest.approx([0.7, 0.3])] and labels.tolist() == [[2, 2]]
    assert boxes.tolist() == [[[10, 0, 20, 10], [70, 50, 90, 60]]]


def test_placeholders_and_weak_pairs_are_no_detections() -> None:
    scores = torch.tensor([[[0.05, 0.6, 0.0], [0.9, 0.9, 0.9]]])
    is_proposal = torch.tensor([[True, False]])
    boxes, found, labels, _ = heads(score_threshold=0.05).select(scores, DELTAS, PROPOSALS, is_proposal, SIZE)
    assert found.tolist() == [pytest.approx([0.6, 0])] and labels.tolist() == [[1, 0]]
    assert boxes.tolist() == [[[10, 0, 20, 10], [0, 0, 0, 0]]]


@pytest.mark.parametrize("form", ["operator", "unrolled"])
@pytest.mark.parametrize(("max_candidates", "expected"), [(6, [0.9, 0.4]), (4, [0.9, 0.4]), (3, [0.9, 0.0])])
def test_more_pairs_than_candidates(max_candidates: int, expected: list[float], form: str) -> None:
    """The same box four times: three score 0.9 to 0.7 in class 0, one 0.4 in class 1, which a bound of 3 misses."""
    config = replace(DEMO, num_classes=2, post_nms_top_k=4, max_detections=2, max_candidates=max_candidates)
    module = RoiHeads(config).eval()
    module.nms.is_unrolled = form == "unrolled"
    proposals = PROPOSALS[:, :1].expand(1, 4, 4)
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.0, 0.4]]])
    found = module.select(scores, torch.zeros(1, 4, 8), proposals, torch.ones(1, 4, dtype=torch.bool), SIZE)[1]
    assert found.tolist() == [pytest.approx(expected)]


def test_candidates_beyond_the_bound_do_not_matter_if_enough_remain() -> None:
    scores = torch.rand(2, 50, 20, generator=torch.Generator().manual_seed(0))
    corners = torch.rand(2, 50, 2, 2, generator=torch.Generator().manual_seed(1)) * 300
    proposals = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=-1)
    deltas = torch.rand(2, 50, 80, generator=torch.Generator().manual_seed(2))
    results = []
    for max_candidates in (300, 1000):
        config = replace(DEMO, num_classes=20, post_nms_top_k=50, max_detections=50, max_candidates=max_candidates)
        inputs = (scores, deltas, proposals, torch.ones(2, 50, dtype=torch.bool), torch.tensor([[300.0, 300.0]] * 2))
        results.append(RoiHeads(config).eval().select(*inputs))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert (results[0][1] > 0.7).all() and len(results[0][2].unique()) == 20


def test_fewer_candidates_than_detections_are_refused() -> None:
    with pytest.raises(ValueError, match="max_detections 100 exceeds max_candidates 99"):
        DetectorGraph(replace(DEMO, num_classes=2, max_candidates=99))


def smooth_pixels(batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(batch, 3, height // 16, width // 16, generator=generator) * 255 - 110
    return F.interpolate(coarse, (height, width), mode="bicubic")


@pytest.fixture(scope="module")
def graph() -> DetectorGraph:
    return build_detector_graph(None, config=DEMO, random_seed=0)


@torch.inference_mode()
def test_a_batch_gives_the_same_as_its_images_one_by_one(graph: DetectorGraph) -> None:
    pixels = smooth_pixels(3, 160, 192)
    image_size = torch.tensor([[160.0, 192.0], [150.0, 100.0], [64.0, 180.0]])
    for i, (height, width) in enumerate(image_size.int().tolist()):
        pixels[i, :, height:] = 0
        pixels[i, :, :, width:] = 0
    together = graph(pixels, image_size)
    for i in range(3):
        alone = graph(pixels[i : i + 1], image_size[i : i + 1])
        assert together[2][i].item() == alone[2].item() > 20
        torch.testing.assert_close(together[0][i], alone[0][0], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(together[1][i], alone[1][0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_results_are_sorted_inside_the_image_and_zero_past_the_count(graph: DetectorGraph) -> None:
    boxes, scores, num_detections, labels = graph(smooth_pixels(1, 32, 32), torch.tensor([[20.0, 31.0]]))
    count = num_detections.item()
    assert boxes.shape == (1, 100, 4) and scores.shape == (1, 100) and num_detections.shape == (1, 1)
    assert num_detections.dtype == labels.dtype == torch.int32
    assert labels.shape == (1, 100) and not labels.any()  # there is one class
    assert 0 < count < 100
    assert (scores[0, :count] > DEMO.score_threshold).all()
    assert (scores[0].diff() <= 0).all()
    assert (boxes >= 0).all() and (boxes[..., 0::2] <= 31).all() and (boxes[..., 1::2] <= 20).all()
    assert not scores[0, count:].any() and not boxes[0, count:].any()


@torch.inference_mode()
def test_nothing_found_is_all_zero(graph: DetectorGraph) -> None:
    strict = DetectorGraph(replace(DEMO, score_threshold=1.0)).eval()
    strict.load_state_dict(graph.state_dict())
    boxes, scores, num_detections, labels = strict(smooth_pixels(2, 64, 64), torch.tensor([[64.0, 64.0]] * 2))
    assert num_detections.tolist() == [[0], [0]]
    assert not boxes.any() and not scores.any() and not labels.any()


def test_more_proposals_than_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="1001"):
        DetectorGraph(replace(DEMO, post_nms_top_k=1001))


@torch.inference_mode()
def test_an_overflow_is_reported_for_its_own_image() -> None:
    graph = build_detector_graph(None, config=DEMO, random_seed=0)
    pixels = smooth_pixels(2, 64, 64)
    pixels[1, 0, 10, 10] = math.inf
    num_detections = graph(pixels, torch.tensor([[64.0, 64.0]] * 2))[2]
    assert num_detections[0] > 0 and num_detections[1] == INEXACT
