"""Render a demo world: product photos and live clips of garments, in the layout of the Watch and Buy data set.

    python -m training.demo.world -o DIR --seed 0 --items 24

By default each item has one clip, which shows nothing else and has the item's id, as in the data set. Training and
`livematch evaluate --result` need such a one-to-one world. A shop is less tidy:

    python -m training.demo.world -o DIR --seed 0 --items 24 --clips-per-item 3 --items-per-clip 2 --distractors 5

--clips-per-item C shows every item in C clips.
--items-per-clip M shows M items in every clip, one after the other, for 400 / M frames each. Which items share a clip
  is random. There are ceil(N · C / M) clips; the last may show fewer items.
--distractors K adds K clips of garments that no item has, after all others, and K items that no clip shows, with ids
  from 630001 on.

With any of these, clips have ids of their own, v000001, v000002, …, which say nothing about the items.

truth.csv tells which item a clip shows when: video_id,item_id,start_s,end_s, one row per stretch. Start and end are the
times, at 25 frames per second, of the first and the last frame with the item's garments. A clip of distractors has one
row, in which all but video_id is empty. In 35 % of the stretches the garments appear only after 12 to 44 % of the
frames; until then the host wears other clothes. Of the 16 frames that livematch embeds, 80, 100, …, 380, a stretch
contains at least 11 with one item per clip, 5 with two, 3 with three and 1 with four. `livematch evaluate --matches`
reads the file.

Equal options always give the same files. A one-to-one world with more items begins with those of a smaller one. Of
other worlds this is true of the photos only, as their clips pair the items differently, and a garment's instance id is
0 in the photos if no clip shows it.
`--render-every 20` draws only every 20th frame of a clip and repeats it 20 times. This is 10 times faster, and enough
for training, which uses only the annotated frames: every 40th. Stretches may then appear to end some frames late.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from livematch.cli.commands import run_command
from livematch.files import replace_file
from livematch.media.annotations import Annotation
from training.demo.clips import ANNOTATED_FRAMES, FRAMES_PER_SECOND, Clip, write_clip
from training.demo.designs import Design, item_designs
from training.demo.photos import draw_photo
from training.demo.plan import FIRST_FOREIGN, MAX_ITEMS_PER_CLIP, item_id, plan_world

STAMP = "world.json"
"""File with the options that a world was rendered with; written last, so that it also marks a complete world."""

TRUTH = "truth.csv"
FOLDERS = ("image", "image_annotation", "video", "video_annotation")


@dataclass(frozen=True)
class Drawn:
    """What one process drew: its garments, and when a clip shows which item.

    photos: by item id, the garments in each photo.
    frames: by video id and frame index, the garments in each annotated frame.
    stretches: video id, item id, first and last frame.
    """

    photos: dict[str, list[list[Annotation]]]
    frames: dict[str, dict[int, list[Annotation]]]
    stretches: list[tuple[str, str, int, int]]


def render_world(
    output: Path,
    *,
    seed: int,
    num_items: int,
    clips_per_item: int = 1,
    items_per_clip: int = 1,
    num_distractors: int = 0,
    render_every: int = 1,
    num_workers: int | None = None,
) -> bool:
    """Render a world, unless `output` already holds the same one; replace a different or incomplete demo world.

    Args:
        output: the folder.
        seed: decides everything that is random.
        num_items: number of items that clips show.
        clips_per_item: number of clips that show each item.
        items_per_clip: number of items that each clip shows, one after the other.
        num_distractors: number of further clips that show no item, and of further items that no clip shows.
        render_every: draw only every n-th frame of a clip; must divide the 40 frames between annotations.
        num_workers: processes to render with; default: one per CPU.

    Returns:
        Whether anything was rendered.

    Raises:
        ValueError: a number is out of range, or `output` contains anything but a demo world.
    """
    if render_every < 1 or 40 % render_every:
        raise ValueError(f"render_every is {render_every}, which does not divide the 40 frames between annotations")
    numbers = {
        "num_items": num_items,
        "clips_per_item": clips_per_item,
        "items_per_clip": items_per_clip,
        "num_distractors": num_distractors,
    }
    plan = plan_world(seed, **numbers)
    options = {"seed": seed, **numbers, "render_every": render_every, "source": _source_digest()}
    stamp = output / STAMP
    if stamp.exists() and json.loads(stamp.read_text()) == options:
        return False
    foreign = [path.name for path in output.glob("*") if path.name not in (*FOLDERS, TRUTH, STAMP)]
    if foreign:
        raise ValueError(f"{output} is not a demo world: it holds {', '.join(sorted(foreign))}")
    if output.exists():
        shutil.rmtree(output)
    for folder in FOLDERS:
        (output / folder).mkdir(parents=True)
    clips = {} if plan.one_to_one else plan.clips
    draw_item = partial(_draw_item, output, seed, render_every, plan.one_to_one)
    draw_clip = partial(_draw_clip, output, seed, render_every)
    rngs = [np.random.default_rng([seed, number, 5]) for number in range(len(clips))]
    spawn = multiprocessing.get_context("spawn")  # a forked process hangs if OpenCV has used threads
    with ProcessPoolExecutor(num_workers or os.cpu_count(), spawn, initializer=_one_thread) as pool:
        jobs = chain(pool.map(draw_item, plan.items), pool.map(draw_clip, clips, clips.values(), rngs))
        unit = "item" if plan.one_to_one else "item or clip"
        drawn = list(tqdm(jobs, total=len(plan.items) + len(clips), desc="rendering", unit=unit))
    _write_annotations(output, drawn)
    with replace_file(stamp) as temporary:
        temporary.write_text(json.dumps(options))
    return True


def _source_digest() -> str:
    """Return a hash of the drawing code, so that a world is rendered again when the code changes."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _draw_item(output: Path, seed: int, render_every: int, with_clip: bool, item: int) -> Drawn:
    """Draw the photos of an item and, in a one-to-one world, its clip."""
    name = item_id(item)
    rng = np.random.default_rng([seed, item, 3])
    folder = output / "image" / name
    folder.mkdir()
    photos = [draw_photo(*_garments(seed, item), index, rng) for index in range(int(rng.integers(4, 7)))]
    clip = _draw_clip(output, seed, render_every, name, (item,), rng) if with_clip else Drawn({}, {}, [])
    for index, (image, _) in enumerate(photos):
        path = folder / f"{index}.jpg"
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(78, 96))]):
            raise OSError(f"{path} could not be written")
    return replace(clip, photos={name: [annotations for _, annotations in photos]})


def _draw_clip(
    output: Path, seed: int, render_every: int, video_id: str, items: Sequence[int], rng: np.random.Generator
) -> Drawn:
    """Draw a clip of these items; garments that belong to no item have no stretch."""
    clip = Clip([_garments(seed, item) for item in items], rng)
    write_clip(output / "video" / f"{video_id}.mp4", clip, rng, render_every=render_every)
    stretches = [
        (video_id, item_id(item), showing.begin, showing.stop - 1)
        for item, showing in zip(items, clip.showings, strict=True)
        if item < FIRST_FOREIGN
    ]
    return Drawn({}, {video_id: {index: clip.annotations(index) for index in ANNOTATED_FRAMES}}, stretches)


def _garments(seed: int, item: int) -> tuple[tuple[Design, ...], list[int]]:
    """Return the designs of an item and their instance ids."""
    designs = item_designs(seed, item)
    return designs, [2_000_000_000 + 100 * (item + 1) + index for index in range(len(designs))]


def _write_annotations(output: Path, drawn: Sequence[Drawn]) -> None:
    """Write the annotations of all photos and clips, and which item each clip shows when."""
    in_photos = {a.instance_id for part in drawn for photos in part.photos.values() for a in chain(*photos)}
    in_clips = {a.instance_id for part in drawn for frames in part.frames.values() for a in chain(*frames.values())}
    shared = in_photos & in_clips
    for part in drawn:
        for name, photos in part.photos.items():
            folder = output / "image_annotation" / name
            folder.mkdir()
            for index, annotations in enumerate(photos):
                records = _records(annotations, shared)
                record = {"item_id": name, "img_name": f"{index}.jpg", "annotations": records}
                _write_json(folder / f"{index}.json", record)
        for name, frames in part.frames.items():
            records = [{"frame_index": index, "annotations": _records(a, shared)} for index, a in frames.items()]
            _write_json(output / "video_annotation" / f"{name}.json", {"video_id": name, "frames": records})
    with (output / TRUTH).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video_id", "item_id", "start_s", "end_s"])
        for part in drawn:
            for video_id, shown, first, last in part.stretches:
                times = first / FRAMES_PER_SECOND, last / FRAMES_PER_SECOND
                writer.writerow([video_id, shown, *(f"{time_s:.2f}" for time_s in times)])
            if not part.stretches:
                writer.writerows([video_id, "", "", ""] for video_id in part.frames)


def _records(annotations: list[Annotation], shared: set[int]) -> list[dict[str, Any]]:
    """Convert to JSON. As in the data set, instances that are not visible in photos and clips get the id 0."""
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
    for name, default, metavar, about in (
        ("--clips-per-item", 1, "C", "show every item in C clips"),
        ("--items-per-clip", 1, "M", f"show M items, 1 to {MAX_ITEMS_PER_CLIP}, in every clip"),
        ("--distractors", 0, "K", "add K clips that show no item, and K items that no clip shows"),
    ):
        parser.add_argument(name, type=int, default=default, metavar=metavar, help=f"{about} (default: {default})")
    parser.add_argument("--render-every", type=int, default=1, metavar="N", help="draw only every N-th frame of a clip")
    return run_command("training.demo.world", partial(_run, parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    rendered = render_world(
        arguments.output,
        seed=arguments.seed,
        num_items=arguments.items,
        clips_per_item=arguments.clips_per_item,
        items_per_clip=arguments.items_per_clip,
        num_distractors=arguments.distractors,
        render_every=arguments.render_every,
    )
    if not rendered:
        print(f"{arguments.output} already holds this world")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
