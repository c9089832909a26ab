"""The exported graph matches detectron2's own model with the same weights."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, ImageList, pairwise_iou

from export.graphs.checkpoints import build_detector_graph
from export.graphs.detector import RoiHeads, assign_levels
from training.detector.config import DEMO, PRODUCTION
from training.detector.model import build_detector

pytestmark = pytest.mark.detectron2


def smooth_image(height: int, width: int) -> torch.Tensor:
    """Returns float32 [3, height, width] in 0..255."""
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=torch.Generator().manual_seed(width))
    return F.interpolate(coarse * 255, (height, width), mode="bicubic")[0].clamp(0, 255)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "sizes", [[(455, 256)], [(320, 320)], [(256, 455), (200, 300), (120, 77)], [(64, 64), (31, 20)]], ids=str
)
@torch.inference_mode()
def test_same_detections(sizes: list[tuple[int, int]], seed: int) -> None:
    graph = build_detector_graph(None, config=DEMO, random_seed=seed)
    reference = build_detector(DEMO).eval()
    reference.load_state_dict(graph.state_dict(), strict=True)
    images = [smooth_image(*size) for size in sizes]
    expected = reference.inference([{"image": image} for image in images], do_postprocess=False)
    pixels = ImageList.from_tensors([image - reference.pixel_mean for image in images], 32).tensor
    boxes, scores, num_detections, _ = graph(pixels, torch.tensor(sizes, dtype=torch.float32))

    num_expected = num_matched = 0
    for i, instances in enumerate(expected):
        count = num_detections[i].item()
        assert count == len(instances)
        is_same_box = pairwise_iou(instances.pred_boxes, Boxes(boxes[i, :count])) > 0.99
        is_same_score = (instances.scores[:, None] - scores[i, :count]).abs() < 1e-3
        num_expected += count
        num_matched += int((is_same_box & is_same_score).any(dim=1).sum())
    assert num_expected >= 20 * len(sizes)
    assert num_matched >= 0.995 * num_expected


def test_same_pyramid_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5000, 2, 2, generator=generator) * torch.tensor([1.0, 700.0])[:, None] ** 1.2
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    exact = torch.tensor([[0, 0, side, side] for side in (48, 96, 112, 192, 224, 448)], dtype=torch.float32)
    boxes = torch.cat([boxes, exact])
    for config in (DEMO, PRODUCTION):
        smallest_sizes = RoiHeads(config).smallest_sizes
        expected = assign_boxes_to_levels([Boxes(boxes)], 2, 5, config.canonical_box_size_px, config.canonical_level)
        assert set(expected.tolist()) == {0, 1, 2, 3}
        assert assign_levels(boxes, smallest_sizes).equal(expected)


@pytest.mark.parametrize("config", [DEMO, PRODUCTION], ids=["demo", "production"])
def test_same_keys_and_shapes(config: object) -> None:
    from export.graphs.detector import DetectorGraph

    with torch.device("meta"):
        graph = DetectorGraph(config)
    reference = build_detector(config)
    assert {name: value.shape for name, value in graph.state_dict().items()} == {
        name: value.shape for name, value in reference.state_dict().items()
    }
