"""Measure how well colour alone identifies items: match colour histograms of the annotated boxes, and score the result.

    python -m benchmarks.color_histogram --data PART

This takes the boxes from the annotations instead of a detector, and compares colour histograms instead of embeddings.
The matching rule and the score are livematch's own.

The JSON, printed as one line, has the F1 of each level, the `final` score, the numbers of items and boxes, and the
seconds it took.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from benchmarks.harness.options import new_parser
from benchmarks.harness.results import run_benchmark
from livematch import Features, evaluate, match, read_frames, read_ground_truth, read_image
from livematch.errors import InputError
from livematch.evaluation.results import to_result
from livematch.media.annotations import Annotation
from livematch.media.sources import list_images
from livematch.types import IntBox, Pixels

FRAMES = range(80, 400, 40)
NUM_BINS = (12, 4, 4)
"""Numbers of hue, saturation and value bins. These and INSET are the best of 15 settings tried on 12 demo items."""

INSET = 0.3
"""Fraction of a box's width or height that is cut off on each side, because it is mostly background."""

PATCH_PX = 64

Row = tuple[str, str, int, IntBox, npt.NDArray[np.float32]]
"""Source, name, frame index, box and histogram, as in a features file."""


def color_histogram(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the joint HSV histogram of RGB pixels [H,W,3], as float32 [192] of unit length.

    Each pixel is divided between the two nearest bins of each axis. The values are square roots of the frequencies, so
    that the cosine of two histograms is their Bhattacharyya coefficient.
    """
    patch = Image.fromarray(pixels).resize((PATCH_PX, PATCH_PX), Image.Resampling.BOX)
    hsv = np.asarray(patch.convert("HSV"), np.float64).reshape(-1, 3) / 256
    histogram = np.zeros(NUM_BINS)
    position = hsv * NUM_BINS - 0.5
    low = np.floor(position).astype(int)
    fraction = position - low
    for corner in np.ndindex(2, 2, 2):
        weights = np.where(corner, fraction, 1 - fraction).prod(axis=1)
        hue, saturation, value = (low + corner).T
        bins = (hue % NUM_BINS[0], saturation.clip(0, NUM_BINS[1] - 1), value.clip(0, NUM_BINS[2] - 1))
        np.add.at(histogram, bins, weights)
    return np.asarray(np.sqrt(histogram.ravel() / histogram.sum()), np.float32)


def score_colour(directory: Path) -> dict[str, float]:
    """Match the annotated boxes of a part of the data set by colour, and return JSON of the score.

    Raises:
        LivematchError: the folder is not an annotated part, or no box is annotated in its images or in its videos.
        FileNotFoundError: an annotated image or video is missing.
    """
    start_s = time.monotonic()
    truth = read_ground_truth(directory)
    paths = {source.key: source.path for source in list_images(directory / "image")[0]}
    queries: list[Row] = []
    for item_id, images in tqdm(truth.images.items(), desc="images", unit="item"):
        for name, garments in images.items():
            if (item_id, name) not in paths:
                raise FileNotFoundError(f"{directory / 'image' / item_id} has no image {name}, but an annotation of it")
            queries += _rows(item_id, name, -1, garments, read_image(paths[item_id, name]))
    gallery: list[Row] = []
    for video_id, frames in tqdm(truth.frames.items(), desc="videos", unit="clip"):
        indices = [index for index in FRAMES if index in frames]
        for index, pixels in read_frames(directory / "video" / f"{video_id}.mp4", indices):
            gallery += _rows(video_id, "", index, frames[index], pixels)
    if not queries or not gallery:
        raise InputError(f"{directory} has no annotated box in its {'videos' if queries else 'images'}")
    score = evaluate(to_result(match(_features(queries), _features(gallery))), truth)
    return {
        "s1_f1": score.s1.f1,
        "s2_f1": score.s2.f1,
        "s3_f1": score.s3.f1,
        "final": score.final,
        "num_items": len(truth.images),
        "num_image_boxes": len(queries),
        "num_frame_boxes": len(gallery),
        "elapsed_s": round(time.monotonic() - start_s, 1),
    }


def _rows(source: str, name: str, frame_index: int, garments: Sequence[Annotation], pixels: Pixels) -> list[Row]:
    height, width = pixels.shape[:2]
    rows = []
    for box in dict.fromkeys(garment.box for garment in garments):
        x0, y0, x1, y1 = np.clip(box, 0, (width, height, width, height)).tolist()
        dx, dy = int((x1 - x0) * INSET), int((y1 - y0) * INSET)
        patch = pixels[y0 + dy : y1 - dy, x0 + dx : x1 - dx]
        if patch.size:
            rows.append((source, name, frame_index, box, color_histogram(patch)))
    return rows


def _features(rows: Sequence[Row]) -> Features:
    sources, names, frame_indices, boxes, histograms = zip(*rows, strict=True)
    return Features(
        sources=list(sources),
        names=list(names),
        frame_indices=np.array(frame_indices, np.int32),
        boxes=np.array(boxes, np.float32),
        scores=np.ones(len(rows), np.float32),
        embeddings=np.stack(histograms),
        model_identity="color-histogram",
    )


def run(options: argparse.Namespace) -> int:
    print(json.dumps(score_colour(options.data)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("color_histogram", __doc__)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PART", help="folder with image/, video/ and both annotations"
    )
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    raise SystemExit(main())
