"""Evaluate the detector: COCO average precision, and precision and recall at the pipeline's score thresholds."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader, Dataset

from training.detector.data import bgr_tensor, resize, resized_size
from training.detector.recipe import Recipe
from training.wab.dataset import AnnotatedImage, usable_boxes
from training.wab.frames import read_rgb

PHOTO_MIN_SCORE = 0.9  # the pipeline keeps boxes above these scores
FRAME_MIN_SCORE = 0.95
MAX_DETECTIONS = 100  # per image, as in COCO

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImageDetections:
    """The boxes [n, 4] detected in one image, their scores [n], and the true boxes [m, 4], in pixels of the image."""

    is_frame: bool
    boxes: Floats
    scores: Floats
    true_boxes: Floats


class ValidationImages(Dataset[tuple[dict[str, Any], bool, Floats]]):
    """Data set whose item i is a tuple: image i as detectron2's input, whether it is a frame, its true boxes [m, 4]."""

    def __init__(self, images: Sequence[AnnotatedImage], recipe: Recipe) -> None:
        self.images = images
        self.recipe = recipe

    def __getitem__(self, index: int) -> tuple[dict[str, Any], bool, Floats]:
        image, recipe = self.images[index], self.recipe
        short_side = recipe.frame_test_short_side_px if image.is_frame else recipe.photo_test_short_side_px
        rgb = read_rgb(image)
        height, width = rgb.shape[:2]
        resized = resize(rgb, resized_size(height, width, short_side, recipe.test_max_side_px))
        model_input = {"image": bgr_tensor(resized), "height": height, "width": width}
        return model_input, image.is_frame, usable_boxes(image.annotations, height, width)[0]


def evaluate_detector(model: GeneralizedRCNN, images: Sequence[AnnotatedImage], recipe: Recipe) -> dict[str, float]:
    """Run the model over annotated images. In a distributed run all processes must call this; they split the images.

    Returns:
        In the main process the metrics of `detection_metrics`; an empty dictionary in the others.
    """
    shard = range(comm.get_rank(), len(images), comm.get_world_size())
    loader = DataLoader(
        ValidationImages(images, recipe), batch_size=None, sampler=shard, num_workers=recipe.num_workers
    )
    was_training = model.training
    model.eval()
    detections = []
    with torch.inference_mode():
        for model_input, is_frame, true_boxes in loader:
            instances = model([model_input])[0]["instances"]
            boxes, scores = instances.pred_boxes.tensor.cpu().numpy(), instances.scores.cpu().numpy()
            detections.append(ImageDetections(is_frame, boxes, scores, np.asarray(true_boxes)))
    model.train(was_training)
    gathered = comm.gather(detections)
    return detection_metrics(list(chain(*gathered))) if comm.is_main_process() else {}


def detection_metrics(detections: Sequence[ImageDetections]) -> dict[str, float]:
    """Return the metrics of the photos, of the frames, and average precision over both.

    The keys are `num_photos`, `photo_precision`, `photo_recall`, `photo_ap` (the mean over IoU 0.5, 0.55, …, 0.95) and
    `photo_ap50`, the same for frames, `ap` and `ap50`. Those of photos or frames are omitted if there are none, and
    average precision is omitted if there is no true box.
    """
    values: dict[str, float] = {}
    for kind, is_frame, min_score in (("photo", False, PHOTO_MIN_SCORE), ("frame", True, FRAME_MIN_SCORE)):
        of_kind = [image for image in detections if image.is_frame == is_frame]
        if of_kind:
            evaluation = coco_evaluation(of_kind)
            values[f"num_{kind}s"] = len(of_kind)
            values[f"{kind}_precision"], values[f"{kind}_recall"] = precision_and_recall(evaluation, min_score)
            values |= {f"{kind}_{name}": value for name, value in average_precision(evaluation).items()}
    return values | average_precision(coco_evaluation(detections))


def coco_evaluation(detections: Sequence[ImageDetections]) -> COCOeval:
    """Match detected boxes with true boxes as COCO does, but without its breakdown by box area."""
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _coco([(image.true_boxes, np.ones(len(image.true_boxes), np.float32)) for image in detections]),
            _coco([(image.boxes, image.scores) for image in detections]),
            "bbox",
        )
        evaluation.params.areaRng = [[0, np.inf]]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def average_precision(evaluation: COCOeval) -> dict[str, float]:
    """Return `ap` and `ap50`, or an empty dictionary if there is no true box."""
    precision = evaluation.eval["precision"]  # [10 IoUs, 101 recalls, 1, 1, 1], -1 if there is no true box
    if (precision < 0).any():
        return {}
    return {"ap": float(precision.mean()), "ap50": float(precision[0].mean())}


def precision_and_recall(evaluation: COCOeval, min_score: float) -> tuple[float, float]:
    """Return precision and recall of the boxes with score > min_score at IoU 0.5; a ratio of 0 to 0 counts as 1."""
    hits = num_boxes = num_true_boxes = 0
    for image in filter(None, evaluation.evalImgs):  # None stands for an image without any box
        confident = np.asarray(image["dtScores"]) > min_score
        hits += int((image["dtMatches"][0] > 0)[confident].sum())
        num_boxes += int(confident.sum())
        num_true_boxes += len(image["gtIds"])
    return hits / num_boxes if num_boxes else 1.0, hits / num_true_boxes if num_true_boxes else 1.0


def _coco(images: Sequence[tuple[Floats, Floats]]) -> COCO:
    """Convert the boxes [n, 4] and scores [n] of each image to COCO's format; ids start at 1, as 0 means no match."""
    annotations: list[dict[str, Any]] = []
    for image_id, (boxes, scores) in enumerate(images):
        for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
