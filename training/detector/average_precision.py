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

from training.datasets.frames import read_rgb
from training.datasets.images import AnnotatedImage, usable_boxes
from training.detector.data import bgr_tensor, resize, resized_size
from training.detector.recipe import Recipe

PHOTO_MIN_SCORE = 0.9  # the pipeline keeps boxes above these scores
FRAME_MIN_SCORE = 0.95
MAX_DETECTIONS = 100  # per image, as in COCO

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ImageDetections:
    """What was detected in one image, and what is there: boxes in pixels of the image, and class indices."""

    is_frame: bool
    boxes: Floats  # [n, 4]
    scores: Floats  # [n]
    classes: Integers  # [n]
    true_boxes: Floats  # [m, 4]
    true_classes: Integers  # [m]


class ValidationImages(Dataset[tuple[dict[str, Any], bool, Floats, Integers]]):
    """Data set of (image as detectron2's input, whether it is a frame, its true boxes [m, 4], their classes [m])."""

    def __init__(self, images: Sequence[AnnotatedImage], recipe: Recipe) -> None:
        self.images = images
        self.recipe = recipe

    def __getitem__(self, index: int) -> tuple[dict[str, Any], bool, Floats, Integers]:
        image, recipe = self.images[index], self.recipe
        short_side = recipe.frame_test_short_side_px if image.is_frame else recipe.photo_test_short_side_px
        rgb = read_rgb(image)
        height, width = rgb.shape[:2]
        resized = resize(rgb, resized_size(height, width, short_side, recipe.test_max_side_px))
        model_input = {"image": bgr_tensor(resized), "height": height, "width": width}
        boxes, usable = usable_boxes(image.annotations, height, width)
        classes = np.array([annotation.class_id for annotation in image.annotations], np.int64)[usable]
        return model_input, image.is_frame, boxes, classes


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
        for model_input, is_frame, true_boxes, true_classes in loader:
            instances = model([model_input])[0]["instances"]
            detections.append(
                ImageDetections(
                    is_frame=is_frame,
                    boxes=instances.pred_boxes.tensor.cpu().numpy(),
                    scores=instances.scores.cpu().numpy(),
                    classes=instances.pred_classes.cpu().numpy(),
                    true_boxes=np.asarray(true_boxes),
                    true_classes=np.asarray(true_classes),
                )
            )
    model.train(was_training)
    gathered = comm.gather(detections)
    return detection_metrics(list(chain(*gathered))) if comm.is_main_process() else {}


def detection_metrics(detections: Sequence[ImageDetections]) -> dict[str, float]:
    """Return the metrics of the photos, of the frames, and average precision over both.

    The keys are `num_photos`, `photo_precision`, `photo_recall`, `photo_ap` (the mean over IoU 0.5, 0.55, …, 0.95) and
    `photo_ap50`, the same for frames, `ap` and `ap50`. Average precision is the mean over the classes that have a true
    box; precision and recall are over the boxes of all classes. Those of photos or frames are omitted if there are
    none, and average precision is omitted if there is no true box.
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
    """Match detected boxes with true boxes of their class as COCO does, but without its breakdown by box area."""
    classes = sorted({int(c) for image in detections for c in (*image.classes, *image.true_classes)})
    true = [(image.true_boxes, np.ones(len(image.true_boxes), np.float32), image.true_classes) for image in detections]
    found = [(image.boxes, image.scores, image.classes) for image in detections]
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_coco(true, classes), _coco(found, classes), "bbox")
        evaluation.params.areaRng = [[0, np.inf]]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def average_precision(evaluation: COCOeval) -> dict[str, float]:
    """Return `ap` and `ap50`, or an empty dictionary if there is no true box."""
    precision = evaluation.eval["precision"]  # [10 IoUs, 101 recalls, classes, 1, 1], -1 for a class without true box
    precision = precision[:, :, (precision >= 0).all((0, 1, 3, 4))]
    if not precision.size:
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


def _coco(images: Sequence[tuple[Floats, Floats, Integers]], classes: Sequence[int]) -> COCO:
    """Convert the boxes [n, 4], scores [n] and classes [n] of each image to COCO's format.

    The ids of boxes start at 1, as 0 means no match.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, of_image in enumerate(images):
        for (x0, y0, x1, y1), score, class_id in zip(*(values.tolist() for values in of_image), strict=True):
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": class_id} for class_id in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
