"""Run the baseline pipeline: the contest solution in eager PyTorch, reimplemented from its description.

The detector writes its boxes to a JSON file. Each network reads that file, decodes the frame again for every box,
crops, embeds, and writes JSON. A last step joins the embeddings.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.harness.eager import EagerNetworks
from benchmarks.harness.images import seek_frame
from export.config import PipelineConfig
from export.signature import EMBEDDERS
from livematch.types import Pixels

Row = dict[str, Any]
"""One box, with the keys clip, frame, box and embedding."""


def run_baseline(
    networks: EagerNetworks, clips: Sequence[Path], frames: range, folder: Path
) -> tuple[dict[str, float], list[Row]]:
    """Detect and embed all boxes in these frames of all clips, with the JSON files in `folder`.

    Returns:
        The seconds of each step, with the total of reading frames as `reading_s`; and the boxes with their embeddings.
    """
    times_s = {"reading_s": 0.0}

    def read(clip: Path, index: int) -> Pixels:
        start_s = time.perf_counter()
        pixels = seek_frame(clip, index)
        times_s["reading_s"] += time.perf_counter() - start_s
        return pixels

    start_s = time.perf_counter()
    detected = []
    for clip in clips:
        for index in frames:
            boxes, _ = networks.detect("frame", read(clip, index))
            detected += [{"clip": str(clip), "frame": index, "box": box.tolist()} for box in boxes]
    (folder / "detections.json").write_text(json.dumps(detected))
    times_s["detect_s"] = time.perf_counter() - start_s
    for model in EMBEDDERS:
        start_s = time.perf_counter()
        rows = json.loads((folder / "detections.json").read_text())
        for row in rows:
            crop = crop_to_template(read(Path(row["clip"]), row["frame"]), row["box"], networks.config)
            row["embedding"] = networks.embed(model, crop[None])[0].tolist()
        (folder / f"{model}.json").write_text(json.dumps(rows))
        times_s[f"{model}_s"] = time.perf_counter() - start_s
    start_s = time.perf_counter()
    joined = _join_embeddings(folder)
    times_s["join_s"] = time.perf_counter() - start_s
    return times_s, joined


def _join_embeddings(folder: Path) -> list[Row]:
    """Concatenate the four networks' embeddings of each box, scale them to unit length and write features.json."""
    parts = [json.loads((folder / f"{model}.json").read_text()) for model in EMBEDDERS]
    joined = []
    for rows in zip(*parts, strict=True):
        embedding = np.concatenate([row["embedding"] for row in rows])
        joined.append({**rows[0], "embedding": (embedding / np.linalg.norm(embedding)).tolist()})
    (folder / "features.json").write_text(json.dumps(joined))
    return joined


def crop_to_template(image: Pixels, box: Sequence[float], config: PipelineConfig) -> Pixels:
    """Cut out a box, truncated to pixels, and resize it to the template with the nearest aspect ratio."""
    x0, y0, x1, y1 = map(int, box)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    ratio = min(config.templates, key=lambda ratio: abs(ratio - (x1 - x0) / (y1 - y0)))
    crop = cv2.resize(image[y0:y1, x0:x1], config.templates[ratio], interpolation=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)
