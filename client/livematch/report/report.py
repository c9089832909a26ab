"""Write one HTML page that shows every matched clip beside its item, and lists everything that did not match.

The page is a single file that loads nothing from a network, and stays usable with 40,000 matches: its script shows them
a page at a time, and searches and sorts them. The JPEG images of the first matches are embedded in the page; those of
the following matches are files in a folder beside it, which the browser loads when they come into view.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from livematch.errors import DecodeError, InputError
from livematch.evaluation.ground_truth import GroundTruth
from livematch.evaluation.results import Answer
from livematch.evaluation.scores import Score, evaluate
from livematch.files import replace_file
from livematch.matching.vote import MatchOptions
from livematch.media.images import read_image
from livematch.media.sources import Source, list_images, list_videos
from livematch.media.videos import read_frames
from livematch.types import Box, Failure, IntBox, Pixels

NUM_EMBEDDED = 200  # matches whose images are in the page itself, about 10 MB
NUM_PICTURED = 2000  # matches shown with images; each takes about 0.1 s and 50 kB
IMAGE_WIDTH_PX = 360
JPEG_QUALITY = 80
NUM_THREADS = 4
MAX_OPEN = 60  # entries; a longer list starts collapsed
MAX_DISTANCE = 4.0  # between unit vectors, squared


def write_report(
    output: str | Path,
    result: Mapping[str, Answer],
    *,
    images: str | Path,
    videos: str | Path,
    distances: Mapping[str, float] | None = None,
    truth: GroundTruth | None = None,
    failures: Sequence[Failure] = (),
    limit: float = MatchOptions.limit,
    num_pictured: int = NUM_PICTURED,
) -> None:
    """Write the report of a result; with more than NUM_EMBEDDED matches, also a folder `<report>_pictures` beside it.

    >>> write_report("report.html", read_result("result.json"), images="image", videos="video")

    Args:
        images, videos: the folders, or the manifest and the folder, that the result was computed from. The page shows
            the error in place of an image or frame that cannot be read. Titles and links of items are the manifest's.
        distances: distances by video id. They add the histogram and order the matches; without them, the order is that
            of the video ids.
        truth: adds the scores, the level that each match reaches, and the annotated boxes.
        failures: sources that failed, which the page lists with their reasons.
        limit: the distance limit that the result was computed with, marked in the histogram.
        num_pictured: number of matches shown with images: those with the smallest distances.

    Raises:
        InputError: `images` or `videos` is not a folder or holds no images or videos, or a distance is not finite.
    """
    output = Path(output)
    distances = distances or {}
    if not all(map(math.isfinite, distances.values())):
        raise InputError("distances must be finite numbers")
    photos = {source.key: source for source in list_images(Path(images))[0]}
    clips = {source.source: source for source in list_videos(Path(videos))[0]}
    items = {photo.source: (photo.title, _web_address(photo.url)) for photo in photos.values()}
    score = evaluate(result, truth) if truth is not None else None
    video_ids = sorted(result, key=lambda video_id: (distances.get(video_id, limit), video_id))
    folder = output.with_name(f"{output.stem}_pictures")

    def match_data(index: int) -> dict[str, Any]:
        video_id = video_ids[index]
        title, url = items.get(result[video_id].item_id, ("", ""))
        figures = _figures(video_id, result[video_id], clips, photos, truth) if index < num_pictured else ()
        return {
            "video_id": video_id,
            "item_id": result[video_id].item_id,
            "title": title,
            "url": url,
            "distance": distances.get(video_id),
            "level": None if score is None else score.levels[video_id],
            "figures": [
                _to_json(*figure, None if index < NUM_EMBEDDED else folder / f"{index}_{number}.jpg")
                for number, figure in enumerate(figures)
            ],
        }

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        matches = list(threads.map(match_data, range(len(video_ids))))
    matched_items = {answer.item_id for answer in result.values()}
    environment = Environment(
        loader=PackageLoader("livematch.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        tiles=_tiles(len(result), len(clips), len(items), len(failures), score),
        has_truth=truth is not None,
        data={"limit": min(limit, MAX_DISTANCE), "limit_text": f"{limit:g}", "matches": matches},
        clips_without_match=[(video_id, "", "") for video_id in clips if video_id not in result],
        items_without_match=[(item_id, *item) for item_id, item in items.items() if item_id not in matched_items],
        failures=failures,
        max_open=MAX_OPEN,
    )
    with replace_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _web_address(url: str) -> str:
    """Return `url` if it is one that the page may link, else "": the script of a "javascript:" URL would run in it."""
    return url if url.lower().startswith(("http://", "https://")) else ""


def _to_json(
    caption: str, pixels: Pixels | str, boxes: Sequence[Box], truth: Sequence[Box], path: Path | None
) -> dict[str, Any]:
    """Return what the page's script needs for one of `_figures`, with the image embedded, or written to `path`."""
    if isinstance(pixels, str):
        return {"caption": caption, "width": 1, "height": 1, "error": pixels}
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((IMAGE_WIDTH_PX, 3 * IMAGE_WIDTH_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    jpeg = buffer.getvalue()
    if path is None:
        src = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        src = quote(f"{path.parent.name}/{path.name}")
    return {"caption": caption, "width": width, "height": height, "src": src, "boxes": boxes, "truth": truth}


def _figures(
    video_id: str,
    answer: Answer,
    clips: Mapping[str, Source],
    photos: Mapping[tuple[str, str], Source],
    truth: GroundTruth | None,
) -> Iterator[tuple[str, Pixels | str, Sequence[Box], Sequence[Box]]]:
    """Yield the clip's frame, then each image of the item that the answer names.

    Each has a caption, pixels in full size or the reason why there are none, and its matched and annotated boxes.
    """
    frame_truth: list[IntBox] = []
    if truth is not None and truth.frames.get(video_id):
        frame_truth = truth.positive_frame_boxes(video_id, truth.judged_frame(video_id, answer.frame_index))
    frame = _decode(clips.get(video_id), f"no video {video_id}", answer.frame_index)
    yield f"clip {video_id}, frame {answer.frame_index}", frame, [p.frame_box for p in answer.pairs], frame_truth
    for img_name in dict.fromkeys(pair.img_name for pair in answer.pairs):
        photo = _decode(photos.get((answer.item_id, img_name)), f"no image {answer.item_id}/{img_name}")
        boxes = [pair.item_box for pair in answer.pairs if pair.img_name == img_name]
        photo_truth = truth.positive_image_boxes(answer.item_id, img_name) if truth is not None else []
        yield f"item {answer.item_id}, image {img_name}", photo, boxes, photo_truth


def _decode(source: Source | None, missing: str, frame_index: int | None = None) -> Pixels | str:
    """Return the pixels of an image file or of a frame of a video, or the reason why there are none."""
    if source is None:
        return missing
    try:
        return read_image(source.path) if frame_index is None else next(read_frames(source.path, [frame_index]))[1]
    except (DecodeError, InputError) as error:
        return str(error)


def _tiles(
    num_matches: int, num_clips: int, num_items: int, num_failures: int, score: Score | None
) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, each with its name."""
    tiles = []
    if score is not None:
        iou = score.frame_box_iou
        tiles = [
            (f"{score.final:.3f}", "final score"),
            (f"{score.s1.f1:.3f}", "S1 · item, F1"),
            (f"{score.s2.f1:.3f}", "S2 · frame, F1"),
            (f"{score.s3.f1:.3f}", "S3 · box, F1"),
            ("–" if iou is None else f"{iou:.3f}", "frame-box IoU"),
        ]
    tiles += [(f"{num_matches} / {num_clips}", "clips matched"), (f"{num_items}", "items")]
    if num_failures:
        tiles.append((f"{num_failures}", "sources failed"))
    return tiles
