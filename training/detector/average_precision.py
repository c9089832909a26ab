"""COCO average precision, and precision and recall as the pipeline would have them, on annotated pictures."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
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
from training.wab.dataset import Picture, usable_boxes
from training.wab.frames import read_rgb

PHOTO_MIN_SCORE = 0.9  # what the pipeline keeps
FRAME_MIN_SCORE = 0.95
MAX_DETECTIONS = 100  # per picture, COCO's

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """What was found in one picture, in pixels of it: boxes [n, 4], their scores [n], and the true boxes [m, 4]."""

    is_frame: bool
    boxes: Floats
    scores: Floats
    truths: Floats


class HeldOutPictures(Dataset[tuple[dict[str, Any], bool, Floats]]):
    """Item i is picture i as detectron2's input, whether it is a frame, and its true boxes [m, 4]."""

    def __init__(self, pictures: Sequence[Picture], recipe: Recipe) -> None:
        self.pictures = pictures
        self.recipe = recipe

    def __getitem__(self, index: int) -> tuple[dict[str, Any], bool, Floats]:
        picture = self.pictures[index]
        is_frame = picture.frame_index is not None
        short_side = self.recipe.frame_test_short_side_px if is_frame else self.recipe.photo_test_short_side_px
        rgb = read_rgb(picture)
        height, width = rgb.shape[:2]
        resized = resize(rgb, resized_size(height, width, short_side, self.recipe.test_max_side_px))
        image = {"image": bgr_tensor(resized), "height": height, "width": width}
        return image, is_frame, usable_boxes(picture.annotations, height, width)[0]


def evaluate(model: GeneralizedRCNN, pictures: Sequence[Picture], recipe: Recipe) -> dict[str, float]:
    """Runs the model in eval mode over the pictures, shared by all processes, which must all call this.

    Returns the metrics of `metrics` in the main process, nothing in the others.
    """
    shard = range(comm.get_rank(), len(pictures), comm.get_world_size())
    loader = DataLoader(
        HeldOutPictures(pictures, recipe), batch_size=None, sampler=shard, num_workers=recipe.num_workers
    )
    was_training = model.training
    model.eval()
    found = []
    with torch.inference_mode():
        for image, is_frame, truths in loader:
            instances = model([image])[0]["instances"]
            boxes, scores = instances.pred_boxes.tensor.cpu().numpy(), instances.scores.cpu().numpy()
            found.append(Found(is_frame, boxes, scores, np.asarray(truths)))
    model.train(was_training)
    shares = comm.gather(found)
    return metrics([picture for share in shares for picture in share]) if comm.is_main_process() else {}


def metrics(found: Sequence[Found]) -> dict[str, float]:
    """Returns the metrics of photos and frames, each if there are any, and average precision over both.

    Average precision (`ap` over IoU 0.5, 0.55, …, 0.95, `ap50`) is left out where there is no true box.
    """
    values: dict[str, float] = {}
    for kind, is_frame, min_score in (("photo", False, PHOTO_MIN_SCORE), ("frame", True, FRAME_MIN_SCORE)):
        of_kind = [picture for picture in found if picture.is_frame == is_frame]
        if of_kind:
            evaluation = coco_evaluation(of_kind)
            values[f"num_{kind}s"] = len(of_kind)
            values[f"{kind}_precision"], values[f"{kind}_recall"] = precision_and_recall(evaluation, min_score)
            values |= {f"{kind}_{name}": value for name, value in average_precision(evaluation).items()}
    return values | average_precision(coco_evaluation(found))


def coco_evaluation(found: Sequence[Found]) -> COCOeval:
    """Matches boxes and true boxes as COCO does, without its ranges of areas."""
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _coco([(picture.truths, np.ones(len(picture.truths), np.float32)) for picture in found]),
            _coco([(picture.boxes, picture.scores) for picture in found]),
            "bbox",
        )
        evaluation.params.areaRng = [[0, np.inf]]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def average_precision(evaluation: COCOeval) -> dict[str, float]:
    precision = evaluation.eval["precision"]  # [10 IoUs, 101 recalls, 1, 1, 1], -1 where there is no true box
    if (precision < 0).any():
        return {}
    return {"ap": float(precision.mean()), "ap50": float(precision[0].mean())}


def precision_and_recall(evaluation: COCOeval, min_score: float) -> tuple[float, float]:
    """Counts boxes with score > min_score at IoU 0.5. With no such box precision is 1, with no true box recall."""
    hits = num_boxes = num_truths = 0
    for picture in filter(None, evaluation.evalImgs):  # None stands for a picture without any box
        confident = np.asarray(picture["dtScores"]) > min_score
        hits += int((picture["dtMatches"][0] > 0)[confident].sum())
        num_boxes += int(confident.sum())
        num_truths += len(picture["gtIds"])
    return hits / num_boxes if num_boxes else 1.0, hits / num_truths if num_truths else 1.0


def _coco(pictures: Sequence[tuple[Floats, Floats]]) -> COCO:
    """Puts boxes [n, 4] and scores [n] of each picture into COCO's format; ids start at 1, as 0 means no match."""
    annotations: list[dict[str, Any]] = []
    for number, (boxes, scores) in enumerate(pictures):
        for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(pictures))],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
