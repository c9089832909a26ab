"""Retrieval quality of embedders: each alone, every pair, and all fused, on ground-truth boxes or on detected ones.

    python -m training.embedder.evaluate --checkpoints DIR [DIR/embedder_b5a.pth …] --data PART [PART …] --cache DIR
        [--detections images.parquet videos.parquet]     # of one part

A query counts as answered by what shows the same instance on the other side: crops of clips for crops of photos
(item to video) and the other way round. Prints one JSON line per combination.

Detected boxes are those of `livematch embed`, so they are what the served detector finds. A detection stands for the
garment that it overlaps most, if IoU > 0.5; each garment has its best detection only, and one that was not found is
missing among queries and gallery alike. `found` is the share of garments that were found.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from training.embedder.crops import FRAMES, Crop, cut_crops, number_identities, prepare_crops, read_crop
from training.embedder.model import Embedder, load_embedder
from training.embedder.recipe import RECIPES
from training.embedder.templates import TEMPLATES
from training.wab.dataset import NO_INSTANCE, Picture
from training.wab.frames import read_parts

BATCH_SIZE = 64
PAIRS_AT_A_TIME = 1 << 24
"""Pairs of a query and a gallery vector that are ranked at once, at some 25 bytes each."""

MIN_IOU = 0.5


@torch.inference_mode()
def embed_crops(model: Embedder, crops: Sequence[Crop]) -> np.ndarray:
    """Returns float32 [n, D] unit vectors of crops, each resized to its template, computed where the model is."""
    sizes = TEMPLATES[model.config.template]
    device = next(model.parameters()).device
    mean = torch.tensor(model.config.mean, device=device)[:, None, None]
    std = torch.tensor(model.config.std, device=device)[:, None, None]
    groups: dict[int, list[int]] = defaultdict(list)
    for number, crop in enumerate(crops):
        groups[crop.aspect].append(number)
    embeddings = torch.empty(len(crops), model.config.embedding_size)
    for aspect, members in groups.items():
        for start in range(0, len(members), BATCH_SIZE):
            chunk = members[start : start + BATCH_SIZE]
            pixels = torch.stack([read_crop(crops[number], sizes[aspect]) for number in chunk])
            embeddings[chunk] = F.normalize(model((pixels.to(device).float() - mean) / std)).cpu()
    return embeddings.numpy()


def retrieval(
    queries: np.ndarray, query_ids: np.ndarray, gallery: np.ndarray, gallery_ids: np.ndarray
) -> dict[str, float]:
    """Returns R@1, R@5 and mean average precision of unit vectors [n, D] against [m, D].

    Queries whose id is not in the gallery are left out. Ties keep the gallery's order.
    """
    known = np.isin(query_ids, gallery_ids)
    if not known.any():
        raise ValueError("no query has a counterpart in the gallery")
    queries, query_ids = queries[known], query_ids[known]
    ranks = np.arange(1, len(gallery) + 1)
    num_queries = max(1, PAIRS_AT_A_TIME // len(gallery))
    best, average_precisions = [], []
    for start in range(0, len(queries), num_queries):
        block = slice(start, start + num_queries)
        order = np.argsort(-(queries[block] @ gallery.T), axis=1, kind="stable")
        hits = gallery_ids[order] == query_ids[block, None]
        precision = np.cumsum(hits, 1) / ranks
        average_precisions.append((precision * hits).sum(1) / hits.sum(1))
        best.append(hits[:, :5].copy())  # a view would keep all of them
    best_five = np.concatenate(best)
    return {
        "r1": round(float(best_five[:, 0].mean()), 4),
        "r5": round(float(best_five.any(1).mean()), 4),
        "map": round(float(np.concatenate(average_precisions).mean()), 4),
    }


def fuse(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Joins unit vectors [n, D] of several embedders to unit vectors [n, D · parts]."""
    return np.concatenate(parts, 1) / np.sqrt(np.float32(len(parts)))


def read_detections(files: Sequence[Path]) -> dict[tuple[str, str], np.ndarray]:
    """Returns the boxes float32 [n, 4] of features files by item id and picture name, frames being named f<index>."""
    boxes = defaultdict(list)
    for file in files:
        for row in pq.read_table(file, columns=["source", "name", "frame_index", "box"]).to_pylist():
            name = row["name"] if row["frame_index"] < 0 else f"f{row['frame_index']}"
            boxes[row["source"], name].append(row["box"])
    return {picture: np.array(found, np.float32) for picture, found in boxes.items()}


def with_detected_boxes(picture: Picture, boxes: np.ndarray) -> Picture:
    """Returns the picture with each garment's box replaced by the detection that shows it; without one it is gone."""
    found = []
    if len(boxes) and picture.annotations:
        overlaps = box_iou(
            torch.from_numpy(boxes), torch.tensor([a.box for a in picture.annotations], dtype=torch.float32)
        )
        shown = overlaps.argmax(1)  # by each detection
        for place, annotation in enumerate(picture.annotations):
            candidates = torch.where(shown == place, overlaps[:, place], 0)
            best = int(candidates.argmax())
            if candidates[best] > MIN_IOU:
                x0, y0, x1, y1 = boxes[best].astype(int).tolist()  # truncated, as the served crop is
                found.append(replace(annotation, box=(x0, y0, x1, y1)))
    return replace(picture, annotations=tuple(found))


def detected_crops(
    part: Path, cache_directory: Path, files: Sequence[Path], *, max_side: int
) -> tuple[list[Crop], float]:
    """Cuts the detections of features files that show a garment; returns them and the share of garments found."""
    detections = read_detections(files)
    nothing = np.empty((0, 4), np.float32)
    [pictures] = read_parts([part], cache_directory)
    pictures = [p for p in pictures if p.frame_index is None or p.frame_index in FRAMES]
    num_garments = sum(a.instance_id != NO_INSTANCE for picture in pictures for a in picture.annotations)
    detected = [with_detected_boxes(p, detections.get((p.item_id, p.name), nothing)) for p in pictures]
    crops = cut_crops(detected, cache_directory / f"crops_{max_side}", max_side=max_side)
    return crops, len(crops) / max(1, num_garments)


def both_ways(embeddings: np.ndarray, crops: Sequence[Crop]) -> dict[str, dict[str, float]]:
    numbers = number_identities(crops)
    ids = np.array([numbers[crop.identity] for crop in crops])
    frames = np.array([crop.is_frame for crop in crops])
    photo, video = (embeddings[~frames], ids[~frames]), (embeddings[frames], ids[frames])
    return {"item_to_video": retrieval(*photo, *video), "video_to_item": retrieval(*video, *photo)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", required=True, help="files, or a folder of embedder_*.pth"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        metavar="FEATURES",
        help="use the boxes that `livematch embed` found in one part",
    )
    arguments = parser.parse_args(argv)
    if arguments.detections and len(arguments.data) > 1:
        parser.error("--detections are of one part, as they name items only: give one part to --data")
    files = []
    for path in arguments.checkpoints:
        found_files = sorted(path.glob("embedder_*.pth")) if path.is_dir() else [path]
        if not found_files:
            parser.error(f"{path} holds no embedder_*.pth")
        files += found_files
    twice = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    if twice:
        parser.error(f"--checkpoints has several files named {', '.join(twice)}, and results go by the name")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {path.stem: load_embedder(path).to(device) for path in files}
    largest = max(max(max(size) for size in TEMPLATES[model.config.template]) for model in models.values())
    sides = {recipe.max_crop_side for recipe in RECIPES.values() if recipe.max_crop_side >= largest}
    found = {}
    if arguments.detections:
        crops, share = detected_crops(arguments.data[0], arguments.cache, arguments.detections, max_side=min(sides))
        found = {"found": round(share, 4)}
    else:
        crops = prepare_crops(arguments.data, arguments.cache, max_side=min(sides))
    embeddings = {name: embed_crops(model, crops) for name, model in models.items()}
    for size in sorted({1, min(2, len(models)), len(models)}):
        for names in combinations(embeddings, size):
            metrics = both_ways(fuse([embeddings[name] for name in names]), crops)
            print(json.dumps({"models": names, "crops": len(crops), **found, **metrics}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
