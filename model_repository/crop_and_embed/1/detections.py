"""Process detections between the detector and the embedders; needs only numpy, not Triton.

Boxes are x0 y0 x1 y1, the second corner exclusive.
"""

from collections.abc import Iterator

import numpy as np

INEXACT = -1
"""The number of detections with which the detector reports that its result is not exact, or not finite."""


def select(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    num_detections: int,
    num_classes: int,
    scale: np.ndarray,
    min_score: float,
    image: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the detections of one image that score more than `min_score`, in pixels of that image.

    Args:
        boxes: [100, 4] in resized pixels.
        scores: [100].
        labels: [100], the class of each box.
        num_detections: how many of the first boxes, scores and labels are valid.
        num_classes: labels are 0 to num_classes - 1.
        scale: [2], resized / original size for height and width.
        min_score: a detection is kept if it scores more than this.
        image: [H, W, 3].

    Returns:
        Boxes FP32 [k, 4], clipped to the image, scores [k] and labels [k].

    Raises:
        ValueError: a value that no working detector returns; the message names the tensor. A box that is partly outside
            the image is no error.
    """
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise ValueError(f"image has no pixels: {list(image.shape)}")
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score is {min_score}, not from 0 to 1")
    if num_detections == INEXACT:
        raise ValueError("the detections are not exact or not finite; export the detector without --precision fp16")
    if not 0 <= num_detections <= len(boxes):
        raise ValueError(f"num_detections is {num_detections}, not 0 to {len(boxes)}")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"scale is {scale.tolist()}, not two positive numbers")
    boxes, scores, labels = boxes[:num_detections], scores[:num_detections], labels[:num_detections]
    _check_rows("scores", scores, np.isfinite(scores), "not a finite number")
    _check_rows("boxes", boxes, np.isfinite(boxes).all(axis=1), "not finite numbers")
    _check_rows("labels", labels, (labels >= 0) & (labels < num_classes), f"not 0 to {num_classes - 1}")
    is_kept = scores > min_score
    kept = boxes[is_kept] / scale[[1, 0, 1, 0]]
    _check_rows("boxes", boxes[is_kept], (kept[:, :2] <= kept[:, 2:]).all(axis=1), "of negative width or height")
    is_inside = (kept[:, 2:] >= 0).all(axis=1) & (kept[:, :2] <= [width, height]).all(axis=1)
    _check_rows("boxes", boxes[is_kept], is_inside, f"outside the image of {width} x {height} pixels")
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(kept, 0, limits).astype(np.float32), scores[is_kept], labels[is_kept]


def _check_rows(name: str, rows: np.ndarray, is_good: np.ndarray, fault: str) -> None:
    if not is_good.all():
        raise ValueError(f"{name} has {rows[~is_good][0].tolist()}, which is {fault}")


def widen(boxes: np.ndarray, factor: float) -> np.ndarray:
    """Return boxes [k, 4] with `factor` times their width and height and the same centre; not clipped to the image.

    Raises ValueError for a factor that is not from 1 to 2.
    """
    if not 1 <= factor <= 2:
        raise ValueError(f"crop_scale is {factor}, not from 1 to 2")
    margins = (factor - 1) / 2 * (boxes[:, 2:] - boxes[:, :2])
    return np.concatenate([boxes[:, :2] - margins, boxes[:, 2:] + margins], axis=1)


def to_pixels(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Truncate boxes [k, 4] to INT32; move them into the image [H, W, 3], at least one pixel wide and high."""
    height, width = image.shape[:2]
    start = np.clip(boxes[:, :2].astype(np.int32), 0, [width - 1, height - 1])
    end = np.clip(boxes[:, 2:].astype(np.int32), start + 1, [width, height])
    return np.concatenate([start, end], axis=1).astype(np.int32)


def nearest_templates(boxes: np.ndarray, aspect_ratios: np.ndarray) -> np.ndarray:
    """Return the index of the aspect ratio (width / height) nearest to each box [k, 4], the first on a tie."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return np.abs((width / height)[:, None] - aspect_ratios).argmin(axis=1)


def chunks(num_rows: int, max_rows: int) -> Iterator[slice]:
    """Return slices of at most `max_rows` rows that cover `num_rows` rows in order."""
    return (slice(start, min(start + max_rows, num_rows)) for start in range(0, num_rows, max_rows))


def to_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [k, d] divided by their lengths; none may be zero."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pad_rows(arrays: list[np.ndarray]) -> np.ndarray:
    """Stack arrays [k_i, …] into [B, N, …], where N is the largest k_i; missing rows are zero."""
    num_rows = max(len(array) for array in arrays)
    padded = np.zeros((len(arrays), num_rows, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return padded
