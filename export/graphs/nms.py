"""Greedy non-maximum suppression (NMS) as a mask over the boxes, in two forms with the same result.

With labels, boxes suppress only boxes of their own class, which is exact in both forms: the unrolled one compares the
labels, and the operator gets the scores of each class in a row of its own. torchvision instead moves each class to a
place of its own when there are few boxes; but such coordinates have fewer bits left for the boxes themselves.

As one operator it is fast on a CPU, but the number of boxes it returns depends on the data. Unrolled it has static
shapes and uses only plain arithmetic, so that every TensorRT compiles it and a CUDA graph can capture it.

The unrolled form iterates "a box is kept if no kept, better box overlaps it", starting from all boxes (Zheng et al.,
Enhancing Geometric Factors in Model Learning and Inference, 2020, section III.C, Cluster-NMS). Greedy NMS is the only
solution of that equation, because the best box is kept and each further one depends on better ones only. So if an
iteration changes nothing, the result is exact. Each iteration settles at least one more box, usually nearly all.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import nms

MAX_ITERATIONS = 32
"""Of the unrolled form. The demo's networks, and five groups of 1000 dense random boxes, need up to 10."""


class Nms(nn.Module):
    """Keep the boxes that no better kept box overlaps too much; of boxes with equal scores, the first is preferred."""

    def __init__(self, max_iou: float) -> None:
        super().__init__()
        self.max_iou = max_iou
        self.is_unrolled = False

    def forward(
        self, boxes: Tensor, scores: Tensor, labels: Tensor | None = None, num_classes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Apply NMS to each of G groups or, with labels, to each class of each group.

        Args:
            boxes: float32 [G, K, 4].
            scores: float32 [G, K]; a box with score 0 is ignored.
            labels: int64 [G, K], the class of each box, below num_classes.

        Returns:
            mask: float32 [G, K], 1 for the boxes that are kept, 0 for the others.
            is_exact: bool [G], False if MAX_ITERATIONS were too few; never False for the operator.
        """
        if self.is_unrolled:
            return unrolled_nms(boxes, scores, self.max_iou, labels)
        is_exact = torch.ones_like(scores[:, 0], dtype=torch.bool)
        if labels is None:
            return nms_mask(boxes, scores, self.max_iou), is_exact
        return class_nms_mask(boxes, scores, labels, num_classes, self.max_iou), is_exact


@torch.library.custom_op("livematch::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, max_iou: float) -> Tensor:
    """Return the mask of `Nms.forward`, computed by torchvision; exported as NonMaxSuppression."""
    mask = torch.zeros_like(scores)
    for group in range(scores.shape[0]):
        present = scores[group].nonzero()[:, 0]
        kept = nms(boxes[group, present], scores[group, present], max_iou)
        mask[group, present[kept]] = 1.0
    return mask


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, max_iou: float) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("livematch::class_nms_mask", mutates_args=())
def class_nms_mask(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, max_iou: float) -> Tensor:
    """Return the mask of `Nms.forward` with labels, class by class; also exported as NonMaxSuppression."""
    mask = torch.zeros_like(scores)
    for label in range(num_classes):
        is_of_class = labels == label
        mask += nms_mask(boxes, scores * is_of_class, max_iou)
    return mask


@class_nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, max_iou: float) -> Tensor:
    return torch.empty_like(scores)


def unrolled_nms(boxes: Tensor, scores: Tensor, max_iou: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mask and `is_exact` of `Nms.forward`, computed in a fixed number of iterations."""
    num_boxes = scores.shape[1]
    is_present = scores > 0
    rank = torch.arange(num_boxes)
    is_better = (scores[:, :, None] > scores[:, None, :]) | (
        (scores[:, :, None] == scores[:, None, :]) & (rank[:, None] < rank)
    )
    if labels is not None:
        is_better = is_better & (labels[:, :, None] == labels[:, None, :])
    suppresses = (is_better & (_pairwise_iou(boxes) > max_iou)).float()  # [G, K, K], the better box first
    kept = previous = is_present
    for _ in range(min(num_boxes, MAX_ITERATIONS)):
        previous = kept
        num_suppressing = (kept.float()[:, None] @ suppresses)[:, 0]
        kept = is_present & (num_suppressing == 0)
    return kept.float(), (kept == previous).all(dim=1)


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """Return the IoU [G, K, K] of every two boxes of a group, rounded as torchvision's `nms` does."""
    sides = boxes[..., 2:] - boxes[..., :2]
    areas = sides[..., 0] * sides[..., 1]
    start = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    end = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared_sides = (end - start).clamp(min=0)
    intersection = shared_sides[..., 0] * shared_sides[..., 1]
    return intersection / (areas[:, :, None] + areas[:, None, :] - intersection)
