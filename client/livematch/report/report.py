"""One HTML page: every matched clip beside its product, and all that did not match.

The page needs nothing but itself, and is usable with 40,000 matches: its script shows them by the page, searched and
sorted. The first pictures are embedded as JPEG; those of further matches lie in a folder beside the page and are loaded
when they come into view. Boxes are drawn over them as SVG.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from livematch.errors import DecodeError
from livematch.evaluation.ground_truth import GroundTruth
from livematch.evaluation.results import Answer
from livematch.evaluation.scores import Score, evaluate
from livematch.matching.vote import MatchOptions
from livematch.media.images import read_image
from livematch.media.sources import Source, list_images, list_videos
from livematch.media.videos import read_frames
from livematch.report.browser import SCRIPT
from livematch.report.histogram import draw_histogram
from livematch.report.stylesheet import STYLESHEET
from livematch.types import Failure, IntBox, Pixels

NUM_EMBEDDED = 200  # matches, about 10 MB
NUM_PICTURED = 2000  # matches; making the pictures of one takes some 0.1 s and 50 KB
PICTURE_WIDTH_PX = 360
JPEG_QUALITY = 80
NUM_THREADS = 4


def write_report(
    output: Path,
    result: Mapping[str, Answer],
    *,
    images: Path,
    videos: Path,
    distances: Mapping[str, float] | None = None,
    truth: GroundTruth | None = None,
    failures: Sequence[Failure] = (),
    limit: float = MatchOptions.limit,
    num_pictured: int = NUM_PICTURED,
) -> None:
    """Write the report of a result, and with more than NUM_EMBEDDED matches a folder `<report>_pictures` beside it.

    Args:
        result: video id to answer.
        images, videos: the folders that the result was made from. A picture that cannot be read is shown as its error.
        distances: video id to distance, for the histogram and the order, which is by video id without them.
        truth: adds scores, levels and the annotated boxes.
        limit: where the histogram marks the limit.
        num_pictured: matches that get pictures, those with the smallest distances.

    Raises:
        InputError: `images` or `videos` is no folder.
    """
    distances = distances or {}
    photos = {source.key: source for source in list_images(images)[0]}
    clips = {source.source: source for source in list_videos(videos)[0]}
    score = evaluate(result, truth) if truth is not None else None
    order = sorted(result, key=lambda video_id: (distances.get(video_id, limit), video_id))
    output.parent.mkdir(parents=True, exist_ok=True)

    def entry(place: int) -> dict[str, Any]:
        video_id = order[place]
        figures = _figures(video_id, result[video_id], clips, photos, truth) if place < num_pictured else []
        folder = None if place < NUM_EMBEDDED else output.with_name(f"{output.stem}_pictures")
        return {
            "order": place,
            "video_id": video_id,
            "item_id": result[video_id].item_id,
            "distance": distances.get(video_id),
            "level": None if score is None else score.levels[video_id],
            "figures": [figure.to_json(folder, f"{place}_{number}.jpg") for number, figure in enumerate(figures)],
        }

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        entries = list(threads.map(entry, range(len(order))))
    matched_items = {answer.item_id for answer in result.values()}
    body = [
        _summary(result, len(clips), len({item for item, _ in photos}), score, failures),
        draw_histogram({v: distances[v] for v in order if v in distances}, score, limit),
        _matches(entries, has_truth=truth is not None),
        "<h2>Without a match</h2>",
        _ids("Clips", [video_id for video_id in clips if video_id not in result]),
        _ids("Items", [item for item in dict.fromkeys(i for i, _ in photos) if item not in matched_items]),
        _failures(failures),
    ]
    page = _PAGE.format(style=STYLESHEET, body="\n".join(body), script=SCRIPT)
    output.write_text(page, encoding="utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>livematch report</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class _Figure:
    """A picture scaled down for the page, as JPEG, or why there is none; sizes and boxes are in its original pixels."""

    caption: str
    picture: Pixels | None
    error: str
    boxes: Sequence[IntBox]
    truth: Sequence[IntBox]

    def to_json(self, folder: Path | None, name: str) -> dict[str, Any]:
        """What the script shows; the picture goes into the answer, or into a file of `folder`."""
        height, width = (1, 1) if self.picture is None else self.picture.shape[:2]
        figure = {"caption": self.caption, "width": width, "height": height, "boxes": self.boxes, "truth": self.truth}
        if self.picture is None:
            return figure | {"error": self.error}
        jpeg = _scaled_jpeg(self.picture)
        if folder is None:
            return figure | {"src": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg)
        return figure | {"src": f"{folder.name}/{name}"}


def _figures(
    video_id: str,
    answer: Answer,
    clips: Mapping[str, Source],
    photos: Mapping[tuple[str, str], Source],
    truth: GroundTruth | None,
) -> list[_Figure]:
    """The clip's frame, and each image of the item that the answer names."""
    frame_truth: list[IntBox] = []
    if truth is not None and truth.frames.get(video_id):
        frame_truth = truth.positive_frame_boxes(video_id, truth.judged_frame(video_id, answer.frame_index))
    frame, error = _read_frame(clips.get(video_id), video_id, answer.frame_index)
    caption = f"clip {video_id}, frame {answer.frame_index}"
    figures = [_Figure(caption, frame, error, [pair.frame_box for pair in answer.pairs], frame_truth)]
    for img_name in dict.fromkeys(pair.img_name for pair in answer.pairs):
        photo, error = _read_photo(photos.get((answer.item_id, img_name)), answer.item_id, img_name)
        boxes = [pair.item_box for pair in answer.pairs if pair.img_name == img_name]
        photo_truth = truth.positive_image_boxes(answer.item_id, img_name) if truth is not None else []
        figures.append(_Figure(f"item {answer.item_id}, image {img_name}", photo, error, boxes, photo_truth))
    return figures


def _read_frame(clip: Source | None, video_id: str, frame_index: int) -> tuple[Pixels | None, str]:
    if clip is None:
        return None, f"no video {video_id}"
    try:
        (_, pixels), *_ = read_frames(clip.path, [frame_index])
    except DecodeError as error:
        return None, str(error)
    return pixels, ""


def _read_photo(photo: Source | None, item_id: str, img_name: str) -> tuple[Pixels | None, str]:
    if photo is None:
        return None, f"no image {item_id}/{img_name}"
    try:
        return read_image(photo.path), ""
    except DecodeError as error:
        return None, str(error)


def _scaled_jpeg(pixels: Pixels) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_WIDTH_PX, 3 * PICTURE_WIDTH_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _summary(
    result: Mapping[str, Answer], num_clips: int, num_items: int, score: Score | None, failures: Sequence[Failure]
) -> str:
    tiles = [(f"{len(result)} / {num_clips}", "clips matched"), (f"{num_items}", "items")]
    if failures:
        tiles.append((f"{len(failures)}", "sources failed"))
    if score is not None:
        tiles = [
            (f"{score.final:.3f}", "final score"),
            (f"{score.s1.f1:.3f}", "S1 · item, F1"),
            (f"{score.s2.f1:.3f}", "S2 · frame, F1"),
            (f"{score.s3.f1:.3f}", "S3 · box, F1"),
            ("–" if score.frame_box_iou is None else f"{score.frame_box_iou:.3f}", "frame-box IoU"),
            *tiles,
        ]
    html = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    return f'<h1>Which product does each clip show?</h1><div class="tiles">{html}</div>'


def _matches(entries: Sequence[Mapping[str, Any]], *, has_truth: bool) -> str:
    """The tools, the place where the script puts the cards, and their data."""
    key = '<span class="key"></span>found' + ('<span class="key truth"></span>annotated' if has_truth else "")
    kinds = {"all": "all", "wrong": "wrong item", "partial": "right item, not S3", "right": "S3"}
    orders = {"near": "nearest first", "far": "farthest first", "clip": "by clip"}
    pager = (
        '<div class="pager{kind}"><button class="back" aria-label="back">‹</button><span></span>'
        '<button class="on" aria-label="on">›</button></div>'
    )
    tools = '<input id="search" type="search" placeholder="clip or item" aria-label="search">' + _select(
        "order", orders
    )
    if has_truth:
        tools += _select("kind", kinds)
    # Neither a tag nor a comment can begin inside of the data.
    data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f"<h2>Matches <small>{len(entries)} {key}</small></h2>"
        f'<div id="tools" class="tools">{tools}{pager.format(kind="")}</div>'
        "<noscript><p>The matches are shown by a script.</p></noscript>"
        f'<div id="cards" class="cards"></div>{pager.format(kind=" below")}'
        f'<script type="application/json" id="matches">{data}</script>'
    )


def _select(name: str, options: Mapping[str, str]) -> str:
    html = "".join(f'<option value="{value}">{text}</option>' for value, text in options.items())
    return f'<select id="{name}" aria-label="{name}">{html}</select>'


def _ids(title: str, ids: Sequence[str]) -> str:
    if not ids:
        return f"<details><summary>{title} <small class='faint'>none</small></summary></details>"
    items = "".join(f"<li>{escape(item)}</li>" for item in ids)
    state = " open" if len(ids) <= 60 else ""
    return (
        f'<details{state}><summary>{title} <small class="faint">{len(ids)}</small></summary>'
        f'<ul class="ids">{items}</ul></details>'
    )


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    rows = "".join(
        f"<tr><td>{escape(' '.join(filter(None, (f.source, f.name))))}</td><td>{f.stage}</td>"
        f"<td>{escape(f.reason)}</td></tr>"
        for f in failures
    )
    state = " open" if len(failures) <= 60 else ""
    return (
        f"<h2>Failed sources <small>{len(failures)}</small></h2><details{state}><summary>Reasons</summary>"
        f"<table><tr><th>source</th><th>stage</th><th>reason</th></tr>{rows}</table></details>"
    )
