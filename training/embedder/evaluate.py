"""Retrieval quality of embedders, alone and fused, on ground-truth boxes.

    python -m training.embedder.evaluate --checkpoints DIR [DIR/embedder_b5a.pth …] --data PART [PART …] --cache DIR

A query counts as answered by what shows the same instance on the other side: crops of clips for crops of photos
(item to video) and the other way round. Prints one JSON line per embedder and one for the fusion.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.embedder.crops import Crop, prepare_crops, read_crop
from training.embedder.model import Embedder, load_embedder
from training.embedder.recipe import RECIPES
from training.embedder.templates import TEMPLATES

BATCH_SIZE = 64


@torch.inference_mode()
def embed_crops(model: Embedder, crops: Sequence[Crop]) -> np.ndarray:
    """Returns float32 [n, D] unit vectors of crops, each resized to its template."""
    sizes = TEMPLATES[model.config.template]
    mean = torch.tensor(model.config.mean)[:, None, None]
    std = torch.tensor(model.config.std)[:, None, None]
    groups: dict[int, list[int]] = defaultdict(list)
    for number, crop in enumerate(crops):
        groups[crop.aspect].append(number)
    embeddings = torch.empty(len(crops), model.config.embedding_size)
    for aspect, members in groups.items():
        for start in range(0, len(members), BATCH_SIZE):
            chunk = members[start : start + BATCH_SIZE]
            pixels = torch.stack([read_crop(crops[number], sizes[aspect]) for number in chunk])
            embeddings[chunk] = F.normalize(model((pixels.float() - mean) / std))
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
    order = np.argsort(-(queries[known] @ gallery.T), axis=1, kind="stable")
    hits = gallery_ids[order] == query_ids[known][:, None]
    precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
    average_precision = (precision * hits).sum(1) / hits.sum(1)
    return {
        "r1": round(float(hits[:, 0].mean()), 4),
        "r5": round(float(hits[:, :5].any(1).mean()), 4),
        "map": round(float(average_precision.mean()), 4),
    }


def both_ways(embeddings: np.ndarray, crops: Sequence[Crop]) -> dict[str, dict[str, float]]:
    names = sorted({(crop.item_id, crop.instance_id) for crop in crops})
    numbers = {name: number for number, name in enumerate(names)}
    ids = np.array([numbers[crop.item_id, crop.instance_id] for crop in crops])
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
    arguments = parser.parse_args(argv)
    files = [
        f for path in arguments.checkpoints for f in (sorted(path.glob("embedder_*.pth")) if path.is_dir() else [path])
    ]
    models = {path.stem: load_embedder(path) for path in files}
    largest = max(max(max(size) for size in TEMPLATES[model.config.template]) for model in models.values())
    sides = {recipe.max_crop_side for recipe in RECIPES.values() if recipe.max_crop_side >= largest}
    crops = prepare_crops(arguments.data, arguments.cache, max_side=min(sides))
    parts = []
    for name, model in models.items():
        parts.append(embed_crops(model, crops))
        print(json.dumps({"model": name, **both_ways(parts[-1], crops)}), flush=True)
    if len(parts) > 1:
        fused = np.concatenate(parts, 1) / np.sqrt(len(parts))
        print(json.dumps({"model": "fusion", **both_ways(fused, crops)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
