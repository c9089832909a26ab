"""Precision, recall and COCO-style average precision of a detector on annotated pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from numpy.typing import NDArray

from training.detector.data import bgr_tensor, resize, resized_size, usable_boxes
from training.detector.recipe import Recipe
from training.wab.dataset import Picture
from training.wab.frames import read_rgb

PHOTO_MIN_SCORE = 0.9  # what the pipeline keeps
FRAME_MIN_SCORE = 0.95
AP_IOUS = tuple(i / 100 for i in range(50, 100, 5))

Floats = NDArray[np.float32]
Found = tuple[Floats, Floats, Floats]  # one picture: boxes [n, 4], their scores [n] descending, true boxes [m, 4]


@torch.inference_mode()
def detect(model: GeneralizedRCNN, rgb: NDArray[np.uint8], short_side: int, max_side: int) -> tuple[Floats, Floats]:
    """Returns boxes float32 [n, 4] in pixels of `rgb` (uint8 [H, W, 3]) and their scores [n], highest first."""
    height, width = rgb.shape[:2]
    resized = resize(rgb, resized_size(height, width, short_side, max_side))
    instances = model([{"image": bgr_tensor(resized), "height": height, "width": width}])[0]["instances"]
    return instances.pred_boxes.tensor.cpu().numpy(), instances.scores.cpu().numpy()


def evaluate(model: GeneralizedRCNN, pictures: Sequence[Picture], recipe: Recipe) -> dict[str, float]:
    """Runs the model in eval mode over the pictures; a metric of a kind that is not among them is left out."""
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    everything: list[Found] = []
    for kind, is_frame, short_side, min_score in (
        ("photo", False, recipe.photo_test_short_side_px, PHOTO_MIN_SCORE),
        ("frame", True, recipe.frame_test_short_side_px, FRAME_MIN_SCORE),
    ):
        found: list[Found] = []
        for picture in pictures:
            if (picture.frame_index is not None) == is_frame:
                rgb = read_rgb(picture)
                boxes, scores = detect(model, rgb, short_side, recipe.test_max_side_px)
                found.append((boxes, scores, usable_boxes(picture.annotations, *rgb.shape[:2])[0]))
        if found:
            metrics[f"num_{kind}s"] = len(found)
            metrics[f"{kind}_precision"], metrics[f"{kind}_recall"] = precision_and_recall(found, min_score=min_score)
            everything += found
    model.train(was_training)
    metrics["ap"] = float(np.mean([average_precision(everything, min_iou=iou) for iou in AP_IOUS]))
    metrics["ap50"] = average_precision(everything, min_iou=0.5)
    return metrics


def precision_and_recall(found: Sequence[Found], *, min_score: float, min_iou: float = 0.5) -> tuple[float, float]:
    """Counts boxes with score > min_score over all pictures. With no such box precision is 1, with no truth recall."""
    hits = num_boxes = num_truths = 0
    for boxes, scores, truths in found:
        confident = scores > min_score
        hits += int(match(boxes[confident], truths, min_iou).sum())
        num_boxes += int(confident.sum())
        num_truths += len(truths)
    return hits / num_boxes if num_boxes else 1.0, hits / num_truths if num_truths else 1.0


def average_precision(found: Sequence[Found], *, min_iou: float) -> float:
    """The area under the precision-recall curve, its precision made monotone and read at 101 recalls, as COCO's is."""
    num_truths = sum(len(truths) for _, _, truths in found)
    if not num_truths:
        return float("nan")
    scores = np.concatenate([scores for _, scores, _ in found])
    hits = np.concatenate([match(boxes, truths, min_iou) for boxes, _, truths in found])
    hits = hits[np.argsort(-scores, kind="stable")]
    num_hits = np.cumsum(hits)
    recall = num_hits / num_truths
    precision = num_hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0.0)[places].mean())


def match(boxes: Floats, truths: Floats, min_iou: float) -> NDArray[np.bool_]:
    """Gives each box, in order, the free true box it overlaps most if IoU > min_iou; returns [n]: who got one."""
    hits = np.zeros(len(boxes), bool)
    if len(truths):
        overlaps = iou(boxes, truths)
        for i, row in enumerate(overlaps):
            best = int(row.argmax())
            hits[i] = row[best] > min_iou
            if hits[i]:
                overlaps[:, best] = 0.0
    return hits


def iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of every pair: [n, 4] and [m, 4] to [n, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    other_area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = area[:, None] + other_area[None] - intersection
    return intersection / np.maximum(union, np.finfo(np.float32).tiny)
