"""One self-contained HTML page: every matched clip beside its product, and all that did not match.

Pictures are embedded as JPEG, boxes are drawn over them as SVG, and nothing is loaded from anywhere or run.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from livematch.decoding import Pixels, read_frames, read_image
from livematch.errors import DecodeError
from livematch.evaluation import Score, evaluate
from livematch.failures import Failure
from livematch.matching import Rule
from livematch.results import Answer, IntBox
from livematch.sources import Source, list_images, list_videos
from livematch.stylesheet import STYLESHEET
from livematch.truth import Truth

MAX_NUM_CARDS = 200  # about 10 MB
PICTURE_WIDTH_PX = 360
JPEG_QUALITY = 80


def write_report(
    output: Path,
    result: Mapping[str, Answer],
    *,
    images: Path,
    videos: Path,
    distances: Mapping[str, float] | None = None,
    truth: Truth | None = None,
    failures: Sequence[Failure] = (),
    limit: float = Rule.limit,
) -> None:
    """Write the report of a result.

    Args:
        result: video id to answer.
        images, videos: the folders that the result was made from. A picture that cannot be read is shown as its error.
        distances: video id to distance, for the plot and the order of the cards, which is by video id without them.
        truth: adds scores, levels and the annotated boxes.
        limit: where the plot marks the limit.

    Raises:
        InputError: `images` or `videos` is no folder.
    """
    distances = distances or {}
    photos = {source.key: source for source in list_images(images)[0]}
    clips = {source.source: source for source in list_videos(videos)[0]}
    score = evaluate(result, truth) if truth is not None else None
    order = sorted(result, key=lambda video_id: (distances.get(video_id, limit), video_id))
    cards = [
        _card(video_id, result[video_id], clips, photos, distances.get(video_id), truth, score)
        for video_id in order[:MAX_NUM_CARDS]
    ]
    matched_items = {answer.item_id for answer in result.values()}
    body = [
        _summary(result, len(clips), len({item for item, _ in photos}), score, failures),
        _distance_plot({v: distances[v] for v in order if v in distances}, score, limit),
        _cards_heading(len(cards), len(result), truth is not None),
        f'<div class="cards">{"".join(cards)}</div>',
        "<h2>Without a match</h2>",
        _ids("Clips", [video_id for video_id in clips if video_id not in result]),
        _ids("Items", [item for item in dict.fromkeys(i for i, _ in photos) if item not in matched_items]),
        _failures(failures),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_PAGE.format(style=STYLESHEET, body="\n".join(body)), encoding="utf-8")


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
</body>
</html>
"""


@dataclass(frozen=True)
class _Picture:
    """A picture scaled down for the page, as JPEG, and its original size in pixels; or why there is none."""

    jpeg: bytes
    width: int
    height: int
    error: str = ""


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


def _distance_plot(distances: Mapping[str, float], score: Score | None, limit: float) -> str:
    """One dot per match on an axis from 0 to a little past the limit."""
    if not distances:
        return ""
    axis_y = 50
    widest = 1.05 * max(limit, *distances.values())

    def x(distance: float) -> str:
        return f"{1 + 98 * distance / widest:.2f}%"  # of the plot's width, so that dots and text keep their size

    marks = [f'<line x1="0" x2="100%" y1="{axis_y}" y2="{axis_y}"/>']
    for tenth in range(0, int(limit * 10) + 1, 2):
        marks.append(f'<text x="{x(tenth / 10)}" y="{axis_y + 16}" text-anchor="middle">{tenth / 10:.1f}</text>')
    marks.append(f'<line class="limit" x1="{x(limit)}" x2="{x(limit)}" y1="4" y2="{axis_y}"/>')
    marks.append(f'<text x="{x(limit)}" dx="-5" y="13" text-anchor="end">limit {limit:g}</text>')
    for number, (video_id, distance) in enumerate(distances.items()):
        kind = "" if score is None else "good" if score.levels[video_id] else "bad"
        y = axis_y - 8 - 10 * (number % 4)  # four rows, so that near dots stay apart
        label = escape(f"{video_id}: {distance:.3f}")
        marks.append(f'<circle class="{kind}" cx="{x(distance)}" cy="{y}" r="4.5"><title>{label}</title></circle>')
    caption = "Distance of each match" + ("" if score is None else ", green where the item is right")
    return (
        f'<div class="strip"><span class="faint">{caption}</span>'
        f'<svg role="img" aria-label="{caption}">{"".join(marks)}</svg></div>'
    )


def _cards_heading(num_cards: int, num_matches: int, has_truth: bool) -> str:
    counted = f"the first {num_cards} of {num_matches}" if num_cards < num_matches else f"{num_matches}"
    key = '<span class="key"></span>found' + ('<span class="key truth"></span>annotated' if has_truth else "")
    return f"<h2>Matches <small>{counted} {key}</small></h2>"


def _card(
    video_id: str,
    answer: Answer,
    clips: Mapping[str, Source],
    photos: Mapping[tuple[str, str], Source],
    distance: float | None,
    truth: Truth | None,
    score: Score | None,
) -> str:
    frame_truth: list[IntBox] = []
    if truth is not None and truth.frames.get(video_id):
        frame_truth = truth.positive_frame_boxes(video_id, truth.judged_frame(video_id, answer.frame_index))
    figures = [
        _figure(
            _frame_picture(clips.get(video_id), video_id, answer.frame_index),
            [pair.frame_box for pair in answer.pairs],
            frame_truth,
            f"clip {video_id}, frame {answer.frame_index}",
        )
    ]
    for img_name in dict.fromkeys(pair.img_name for pair in answer.pairs):
        figures.append(
            _figure(
                _photo_picture(photos.get((answer.item_id, img_name)), answer.item_id, img_name),
                [pair.item_box for pair in answer.pairs if pair.img_name == img_name],
                truth.positive_image_boxes(answer.item_id, img_name) if truth is not None else [],
                f"item {answer.item_id}, image {img_name}",
            )
        )
    number = "" if distance is None else f'<span class="faint">distance {distance:.3f}</span>'
    return (
        f"<article><header><h3>{escape(video_id)} → {escape(answer.item_id)}</h3>{number}"
        f'{_badges(video_id, score)}</header><div class="pair">{"".join(figures)}</div></article>'
    )


def _badges(video_id: str, score: Score | None) -> str:
    if score is None:
        return ""
    if score.levels[video_id] == 0:
        return '<span class="badges"><span class="badge missed">wrong item</span></span>'
    kinds = ("badge" if score.levels[video_id] >= level else "badge missed" for level in (1, 2, 3))
    badges = "".join(f'<span class="{kind}">S{level}</span>' for level, kind in enumerate(kinds, start=1))
    return f'<span class="badges">{badges}</span>'


def _figure(picture: _Picture, boxes: Sequence[IntBox], truth_boxes: Sequence[IntBox], caption: str) -> str:
    if picture.error:
        content = f"<p>{escape(picture.error)}</p>"
    else:
        data = base64.b64encode(picture.jpeg).decode()
        rectangles = _rectangles(boxes, "") + _rectangles(truth_boxes, ' class="truth"')
        content = (
            f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
            f'<svg viewBox="0 0 {picture.width} {picture.height}" preserveAspectRatio="none">{rectangles}</svg>'
        )
    # Growing by aspect ratio gives the pictures of a row the same height.
    aspect_ratio = picture.width / picture.height
    return (
        f'<figure style="flex:{aspect_ratio:.4f} 1 0"><div class="picture">{content}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _rectangles(boxes: Iterable[IntBox], attributes: str) -> str:
    return "".join(
        f'<rect{attributes} x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>' for x0, y0, x1, y1 in boxes
    )


def _frame_picture(clip: Source | None, video_id: str, frame_index: int) -> _Picture:
    if clip is None:
        return _Picture(b"", 1, 1, f"no video {video_id}")
    try:
        (_, pixels), *_ = read_frames(clip.path, [frame_index])
    except DecodeError as error:
        return _Picture(b"", 1, 1, str(error))
    return _scaled(pixels)


def _photo_picture(photo: Source | None, item_id: str, img_name: str) -> _Picture:
    if photo is None:
        return _Picture(b"", 1, 1, f"no image {item_id}/{img_name}")
    try:
        return _scaled(read_image(photo.path))
    except DecodeError as error:
        return _Picture(b"", 1, 1, str(error))


def _scaled(pixels: Pixels) -> _Picture:
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_WIDTH_PX, 3 * PICTURE_WIDTH_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return _Picture(buffer.getvalue(), width, height)


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
    items = "".join(f"<li>{escape(failure.reason)}</li>" for failure in failures)
    return (
        f"<h2>Failed sources <small>{len(failures)}</small></h2><details open><summary>Reasons</summary>"
        f'<ul class="reasons">{items}</ul></details>'
    )
