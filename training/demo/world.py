"""Render a demo world: product photos and live clips of garments, in the layout of the Watch and Buy data set.

    python -m training.demo.world -o DIR --seed 0 --items 24

Equal options always give the same files, and a world with more items begins with those of a smaller one.
`--render-every 20` draws only every 20th frame of a clip and repeats it 20 times. This is 10 times faster, and enough
for training, which uses only the annotated frames: every 40th.
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

from livematch.cli.commands import run_command
from livematch.files import replace_file
from livematch.media.annotations import Annotation
from training.demo.clips import ANNOTATED_FRAMES, Clip, write_clip
from training.demo.designs import item_designs
from training.demo.photos import draw_photo

STAMP = "world.json"
"""File with the options that a world was rendered with; written last, so that it also marks a complete world."""


def render_world(
    output: Path, *, seed: int, num_items: int, render_every: int = 1, num_workers: int | None = None
) -> bool:
    """Render a world, unless `output` already holds the same one; replace a different or incomplete demo world.

    Args:
        output: the folder.
        seed: decides everything that is random.
        num_items: number of items.
        render_every: draw only every n-th frame of a clip; must divide the 40 frames between annotations.
        num_workers: processes to render with; default: one per CPU.

    Returns:
        Whether anything was rendered.

    Raises:
        ValueError: a number is out of range, or `output` contains anything but a demo world.
    """
    if num_items < 1:
        raise ValueError(f"num_items is {num_items}, but a world needs at least one item")
    if render_every < 1 or 40 % render_every:
        raise ValueError(f"render_every is {render_every}, which does not divide the 40 frames between annotations")
    options = {"seed": seed, "num_items": num_items, "render_every": render_every, "source": _source_digest()}
    stamp, folders = output / STAMP, ("image", "image_annotation", "video", "video_annotation")
    if stamp.exists() and json.loads(stamp.read_text()) == options:
        return False
    foreign = [path.name for path in output.glob("*") if path.name not in (*folders, STAMP)]
    if foreign:
        raise ValueError(f"{output} is not a demo world: it holds {', '.join(sorted(foreign))}")
    if output.exists():
        shutil.rmtree(output)
    for folder in folders:
        (output / folder).mkdir(parents=True)
    render = partial(_render_item, output, seed, render_every)
    spawn = multiprocessing.get_context("spawn")  # a forked process hangs if OpenCV has used threads
    with ProcessPoolExecutor(num_workers or os.cpu_count(), spawn, initializer=_one_thread) as pool:
        for _ in tqdm(pool.map(render, range(num_items)), total=num_items, desc="rendering", unit="item"):
            pass
    with replace_file(stamp) as temporary:
        temporary.write_text(json.dumps(options))
    return True


def _source_digest() -> str:
    """Return a hash of the drawing code, so that a world is rendered again when the code changes."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _render_item(output: Path, seed: int, render_every: int, item: int) -> None:
    item_id = f"{item + 1:06d}"
    designs = item_designs(seed, item)
    ids = [2_000_000_000 + 100 * (item + 1) + index for index in range(len(designs))]
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
    records = [{"frame_index": index, "annotations": _records(a, shared)} for index, a in frames.items()]
    _write_json(output / "video_annotation" / f"{item_id}.json", {"video_id": item_id, "frames": records})


def _records(annotations: list[Annotation], shared: set[int]) -> list[dict[str, Any]]:
    """Convert to JSON. As in the data set, instances that are not visible on both sides get the id 0."""
    records = []
    for annotation in annotations:
        record = asdict(annotation)
        record["instance_id"] = annotation.instance_id if annotation.instance_id in shared else 0
        records.append(record)
    return records


def _write_json(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=24, metavar="N", help="number of items (default: 24)")
    parser.add_argument("--render-every", type=int, default=1, metavar="N", help="draw only every N-th frame of a clip")
    return run_command("training.demo.world", partial(_run, parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    options = {"seed": arguments.seed, "num_items": arguments.items, "render_every": arguments.render_every}
    if not render_world(arguments.output, **options):
        print(f"{arguments.output} already holds this world")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
