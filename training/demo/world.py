"""Renders a demo world: garments, product photos and live clips in the layout of Watch and Buy.

    python -m training.demo.world --output DIR --seed 0 --items 24

The same seed and number always give the same files. `--render-every 20` draws every 20th frame of a clip only and
shows it 20 times, which is enough for training (annotations stand at every 40th) and 10 times faster.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from training.demo.clips import ANNOTATED_FRAMES, Clip, write_clip
from training.demo.designs import item_designs
from training.demo.photos import draw_photo
from training.wab.dataset import Annotation

STAMP = "world.json"
"""Names what a world was made from; written last, so it also says that the world is whole."""


def render_world(
    output: Path, *, seed: int, num_items: int, render_every: int = 1, num_workers: int | None = None
) -> bool:
    """Writes `num_items` items to `output`; returns False if the very same world is there already.

    Another demo world at `output`, whole or not, is removed first.

    Raises:
        ValueError: a number is out of range, or `output` holds something else than a demo world.
    """
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}, but a world needs one item at least")
    if render_every < 1 or 40 % render_every:
        raise ValueError(f"render_every is {render_every}, which does not divide the 40 frames between annotations")
    made_from = {"seed": seed, "num_items": num_items, "render_every": render_every, "source": _source_digest()}
    stamp, folders = output / STAMP, ("image", "image_annotation", "video", "video_annotation")
    if stamp.exists() and json.loads(stamp.read_text()) == made_from:
        return False
    foreign = [path.name for path in output.glob("*") if path.name not in (*folders, STAMP)]
    if foreign:
        raise ValueError(f"{output} is not a demo world: it holds {', '.join(sorted(foreign))}")
    if output.exists():
        shutil.rmtree(output)
    for folder in folders:
        (output / folder).mkdir(parents=True)
    render = partial(_render_item, output, seed, render_every)
    spawn = multiprocessing.get_context("spawn")  # a fork of a process in which OpenCV has run threads hangs
    with ProcessPoolExecutor(num_workers or os.cpu_count(), spawn, initializer=_one_thread) as pool:
        for _ in tqdm(pool.map(render, range(num_items)), total=num_items, desc="rendering", unit="item"):
            pass
    stamp.write_text(json.dumps(made_from))
    return True


def _source_digest() -> str:
    """Changes with the code that draws, so that an old world is not taken for a new one."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _render_item(output: Path, seed: int, render_every: int, item: int) -> None:
    item_id = f"{item + 1:06d}"
    designs = item_designs(seed, item)
    ids = [2_000_000_000 + 100 * (item + 1) + place for place in range(len(designs))]
    rng = np.random.default_rng([seed, item, 3])
    (output / "image" / item_id).mkdir()
    (output / "image_annotation" / item_id).mkdir()
    photos = [draw_photo(designs, ids, index, rng) for index in range(int(rng.integers(4, 7)))]
    clip = Clip(designs, ids, rng)
    write_clip(output / "video" / f"{item_id}.mp4", clip, rng, render_every=render_every)
    frames = {index: clip.annotations(index) for index in ANNOTATED_FRAMES}
    in_photos = {a.instance_id for _, annotations in photos for a in annotations}
    in_clip = {a.instance_id for annotations in frames.values() for a in annotations}
    shared = in_photos & in_clip
    for index, (image, annotations) in enumerate(photos):
        path = output / "image" / item_id / f"{index}.jpg"
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(78, 96))]):
            raise OSError(f"{path} could not be written")
        record = {"item_id": item_id, "img_name": path.name, "annotations": _records(annotations, shared)}
        _write_json(output / "image_annotation" / item_id / f"{index}.json", record)
    records = [{"frame_index": index, "annotations": _records(found, shared)} for index, found in frames.items()]
    _write_json(output / "video_annotation" / f"{item_id}.json", {"video_id": item_id, "frames": records})


def _records(annotations: list[Annotation], shared: set[int]) -> list[dict[str, Any]]:
    """As JSON; an instance that is not seen on both sides has no counterpart and gets the id 0."""
    records = []
    for annotation in annotations:
        record = asdict(annotation)
        record["instance_id"] = annotation.instance_id if annotation.instance_id in shared else 0
        records.append(record)
    return records


def _write_json(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--render-every", type=int, default=1)
    arguments = parser.parse_args(argv)
    world = {"seed": arguments.seed, "num_items": arguments.items, "render_every": arguments.render_every}
    if not render_world(arguments.output, **world):
        print(f"{arguments.output} holds this world already")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
