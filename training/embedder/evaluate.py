"""Measure the retrieval quality of embedders: each alone, every pair, and all together.

    python -m training.embedder.evaluate --checkpoints DIR [DIR/embedder_b5a.pth …] --data DATA [DATA …] --cache DIR
        [--detections images.parquet videos.parquet]     # of one part of WAB

If the data have photos and frames of clips, crops of photos are the queries and crops of clips the gallery in one
direction (item to video); in the other, vice versa. Otherwise every crop is a query, and all other crops are the
gallery (leave one out). A retrieved crop is correct if it shows the same identity as the query; queries whose identity
is not in the gallery do not count. Of a CSV file with a column `split`, only rows of split "test" are used. Prints one
JSON line per combination of embedders.

By default the crops are the annotated boxes. With --detections they are boxes detected by the served detector, as
written by `livematch embed`. A detection is assigned to the garment with which it overlaps most, if IoU > 0.5; a
garment keeps its best detection. Garments that were not detected are neither queries nor in the gallery; `found` is
the fraction of garments that were detected.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from livematch.cli.commands import run_command
from livematch.errors import InputError
from training.datasets.images import NO_INSTANCE, AnnotatedImage, check_bad
from training.datasets.sources import IDENTITIES_HELP, is_part, read_identities
from training.embedder.crops import Crop, class_labels, cut_crops, prepare_crops
from training.embedder.data import read_crop
from training.embedder.model import Embedder, load_embedder
from training.embedder.templates import cached_side_px, crop_size

BATCH_SIZE = 64
PAIRS_AT_A_TIME = 1 << 24
"""Pairs of a query and a gallery vector that are ranked at once; each takes about 25 bytes."""

MIN_IOU = 0.5


@torch.inference_mode()
def embed_crops(model: Embedder, crops: Sequence[Crop]) -> np.ndarray:
    """Return unit vectors, float32 [n, D], of crops resized to their templates; computed on the model's device."""
    device = next(model.parameters()).device
    mean = torch.tensor(model.config.mean, device=device)[:, None, None]
    std = torch.tensor(model.config.std, device=device)[:, None, None]
    groups: dict[int, list[int]] = defaultdict(list)
    for index, crop in enumerate(crops):
        groups[crop.aspect].append(index)
    embeddings = torch.empty(len(crops), model.config.embedding_size)
    for aspect, members in groups.items():
        size = crop_size(model.config.template, aspect)
        for start in range(0, len(members), BATCH_SIZE):
            chunk = members[start : start + BATCH_SIZE]
            pixels = torch.stack([read_crop(crops[index], size) for index in chunk])
            embeddings[chunk] = F.normalize(model((pixels.to(device).float() - mean) / std)).cpu()
    result: np.ndarray = embeddings.numpy()
    return result


def retrieval_metrics(
    queries: np.ndarray,
    query_ids: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: np.ndarray,
    *,
    own: np.ndarray | None = None,
) -> dict[str, float]:
    """Return recall at 1 (`r1`), recall at 5 (`r5`) and mean average precision (`map`).

    Args:
        queries: unit vectors [n, D]. Those whose id is not in the gallery are ignored.
        query_ids: [n].
        gallery: unit vectors [m, D]. Equally similar ones are ranked in this order.
        gallery_ids: [m].
        own: [n], the index of each query in the gallery, where it is passed over.

    Raises:
        ValueError: no query's id is in the gallery.
    """
    ids, counts = np.unique(gallery_ids, return_counts=True)
    num_matches = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    num_own = 0 if own is None else 1
    known = np.array([num_matches.get(query_id, 0) > num_own for query_id in query_ids.tolist()], bool)
    if not known.any():
        raise ValueError("no query has a counterpart in the gallery")
    queries, query_ids = queries[known], query_ids[known]
    ranks = np.arange(1, len(gallery) - num_own + 1)
    num_queries = max(1, PAIRS_AT_A_TIME // len(gallery))
    best, average_precisions = [], []
    for start in range(0, len(queries), num_queries):
        block = slice(start, start + num_queries)
        distances = -(queries[block] @ gallery.T)
        if own is not None:
            np.put_along_axis(distances, own[known][block, None], np.inf, axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, : len(ranks)]
        hits = gallery_ids[order] == query_ids[block, None]
        precision = np.cumsum(hits, 1) / ranks
        average_precisions.append((precision * hits).sum(1) / hits.sum(1))
        best.append(hits[:, :5].copy())  # a view would keep all of hits in memory
    best_five = np.concatenate(best)
    return {
        "r1": round(float(best_five[:, 0].mean()), 4),
        "r5": round(float(best_five.any(1).mean()), 4),
        "map": round(float(np.concatenate(average_precisions).mean()), 4),
    }


def fuse(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the unit vectors [n, D] of several embedders to unit vectors [n, D · len(parts)]."""
    fused: np.ndarray = np.concatenate(parts, 1) / np.sqrt(np.float32(len(parts)))
    return fused


def read_detections(files: Sequence[Path]) -> dict[tuple[str, str], np.ndarray]:
    """Return the boxes, float32 [n, 4], in features files by item id and image name; a frame is named f<index>."""
    boxes = defaultdict(list)
    for file in files:
        for row in pq.read_table(file, columns=["source", "name", "frame_index", "box"]).to_pylist():
            name = row["name"] if row["frame_index"] < 0 else f"f{row['frame_index']}"
            boxes[row["source"], name].append(row["box"])
    return {image: np.array(of_image, np.float32) for image, of_image in boxes.items()}


def replace_boxes_by_detections(image: AnnotatedImage, boxes: np.ndarray) -> AnnotatedImage:
    """Replace each garment's box by its best detection in `boxes`, [n, 4]; remove garments that were not detected."""
    detected = []
    if len(boxes) and image.annotations:
        overlaps = box_iou(
            torch.from_numpy(boxes), torch.tensor([a.box for a in image.annotations], dtype=torch.float32)
        )
        assigned = overlaps.argmax(1)  # the garment of each detection
        for garment, annotation in enumerate(image.annotations):
            candidates = torch.where(assigned == garment, overlaps[:, garment], 0)
            best = int(candidates.argmax())
            if candidates[best] > MIN_IOU:
                x0, y0, x1, y1 = boxes[best].astype(int).tolist()  # truncated, as in the served model
                detected.append(replace(annotation, box=(x0, y0, x1, y1)))
    return replace(image, annotations=tuple(detected))


def detected_crops(
    part: Path, cache_directory: Path, files: Sequence[Path], *, max_side_px: int
) -> tuple[list[Crop], float]:
    """Cut the detections in features files that show a garment; return the crops and the fraction of garments found."""
    detections = read_detections(files)
    nothing = np.empty((0, 4), np.float32)
    bad: list[str] = []
    [images] = read_identities([part], cache_directory, bad)
    check_bad(bad, 0)
    num_garments = sum(a.instance_id != NO_INSTANCE for image in images for a in image.annotations)
    detected = [
        replace_boxes_by_detections(image, detections.get((image.item_id, image.name), nothing)) for image in images
    ]
    crops = cut_crops(detected, cache_directory / f"crops_{max_side_px}", max_side_px=max_side_px)
    return crops, len(crops) / max(1, num_garments)


def retrieval(embeddings: np.ndarray, crops: Sequence[Crop]) -> dict[str, dict[str, float]]:
    """Return `retrieval_in_both_directions`, or metrics `leave_one_out` if the crops are all of photos or of frames."""
    if len({crop.is_frame for crop in crops}) > 1:
        return retrieval_in_both_directions(embeddings, crops)
    labels = class_labels(crops)
    ids = np.array([labels[crop.identity] for crop in crops])
    return {"leave_one_out": retrieval_metrics(embeddings, ids, embeddings, ids, own=np.arange(len(ids)))}


def retrieval_in_both_directions(embeddings: np.ndarray, crops: Sequence[Crop]) -> dict[str, dict[str, float]]:
    """Return the `retrieval_metrics` from photos to frames (`item_to_video`) and back (`video_to_item`)."""
    labels = class_labels(crops)
    ids = np.array([labels[crop.identity] for crop in crops])
    frames = np.array([crop.is_frame for crop in crops])
    photo, video = (embeddings[~frames], ids[~frames]), (embeddings[frames], ids[frames])
    return {"item_to_video": retrieval_metrics(*photo, *video), "video_to_item": retrieval_metrics(*video, *photo)}


def checkpoint_files(paths: Sequence[Path]) -> list[Path]:
    """Expand folders to the embedder_*.pth in them. Raises InputError for an empty folder and for equal file names."""
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("embedder_*.pth")) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path} holds no embedder_*.pth")
        files += found
    repeated = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    if repeated:
        raise InputError(
            f"--checkpoints has several files named {', '.join(repeated)}; results are listed by file name"
        )
    return files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.embedder.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoints", type=Path, nargs="+", required=True, metavar="PATH", help="files, or folders of embedder_*.pth"
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DATA", help=IDENTITIES_HELP)
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="for frames and crops")
    parser.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        default=(),
        metavar="FEATURES",
        help="use the boxes that `livematch embed` detected in the one part",
    )
    return run_command("training.embedder.evaluate", partial(_run, parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.detections and len(arguments.data) > 1:
        raise InputError("--detections needs a single part in --data, as features files do not name the part")
    if arguments.detections and not is_part(arguments.data[0]):
        raise InputError(f"--detections needs a part of WAB in --data, which {arguments.data[0]} is not")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {path.stem: load_embedder(path).to(device) for path in checkpoint_files(arguments.checkpoints)}
    max_side_px = cached_side_px(model.config.template for model in models.values())
    fraction = {}
    if arguments.detections:
        crops, found = detected_crops(arguments.data[0], arguments.cache, arguments.detections, max_side_px=max_side_px)
        fraction = {"found": round(found, 4)}
    else:
        crops = prepare_crops(arguments.data, arguments.cache, max_side_px=max_side_px, split="test")
    embeddings = {name: embed_crops(model, crops) for name, model in models.items()}
    for size in sorted({1, min(2, len(models)), len(models)}):
        for names in combinations(embeddings, size):
            metrics = retrieval(fuse([embeddings[name] for name in names]), crops)
            print(json.dumps({"models": names, "crops": len(crops), **fraction, **metrics}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
