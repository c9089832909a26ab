"""How far colour alone gets: nearest neighbours of colour histograms, with the annotated boxes given.

    python -m benchmarks.color_histogram --data PART

The baseline skips detection, which it gets from the annotations, and replaces the embedding by a colour histogram of
each box; the matching rule and the score are those of `livematch`. Prints one line of JSON.
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

from livematch import Features, evaluate, match, read_frames, read_ground_truth, read_image
from livematch.evaluation.ground_truth import Garment
from livematch.evaluation.results import to_result

FRAMES = range(80, 400, 40)
NUM_BINS = (12, 4, 4)
"""Of hue, saturation and value. With INSET, the strongest of 15 settings tried on a demo world of 12 items."""

INSET = 0.3
"""Share of the box's sides that is cut off on each side, because it is mostly background."""

PATCH_PX = 64

Row = tuple[str, str, int, tuple[int, int, int, int], npt.NDArray[np.float32]]


def color_histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Joint HSV histogram of uint8 [H,W,3] RGB, as float32 [192] of unit length.

    Each pixel is shared out between the two nearest bins of each axis. Square roots are taken, so that the cosine of
    two histograms is their Bhattacharyya coefficient.
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
    return np.sqrt(histogram.ravel() / histogram.sum()).astype(np.float32)


def run_baseline(directory: Path) -> dict[str, float]:
    """Match the annotated boxes of a part by colour, and score the result.

    Returns:
        The F1 of each level, the final score, the seconds it took and the numbers of boxes.
    """
    start_s = time.monotonic()
    truth = read_ground_truth(directory)
    queries: list[Row] = []
    for item_id, images in tqdm(truth.images.items(), desc="images", unit="item"):
        for name, garments in images.items():
            (path,) = (directory / "image" / item_id).glob(f"{name}.*")
            queries += _rows(item_id, name, -1, garments, read_image(path))
    gallery: list[Row] = []
    for video_id, frames in tqdm(truth.frames.items(), desc="videos", unit="clip"):
        indices = [index for index in FRAMES if index in frames]
        for index, pixels in read_frames(directory / "video" / f"{video_id}.mp4", indices):
            gallery += _rows(video_id, "", index, frames[index], pixels)
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


def _rows(
    source: str, name: str, frame_index: int, garments: Sequence[Garment], pixels: npt.NDArray[np.uint8]
) -> list[Row]:
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score colour histograms on an annotated part.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PART", help="folder with image/, video/ and both annotations"
    )
    print(json.dumps(run_baseline(parser.parse_args(argv).data)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
