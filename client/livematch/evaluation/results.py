"""Read and write result.json, in the dataset's own format, and matches.json, which also has distances and titles.

result.json   {"<video_id>": {"item_id": "...", "frame_index": 240,
                              "result": [{"img_name": "5", "item_box": [4 ints], "frame_box": [4 ints]}]}}
matches.json  {"version": 2, "matches": [{"video_id", "item_id", "frame_index", "pairs": [{"img_name", "item_box",
                "frame_box"}], "distance", "num_votes", "title", "url", "evidence", "segments": [{"first_frame",
                "last_frame", "evidence"}]}]}, see `livematch.Match`; box corners not rounded
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from livematch.errors import FileFormatError
from livematch.files import replace_file
from livematch.media.annotations import read_json
from livematch.types import Box, IntBox, Match, Pair, Segment


@dataclass(frozen=True)
class Answer:
    """Holds the entry of result.json for one video: the item it shows, and where to see it, in whole pixels."""

    item_id: str
    frame_index: int
    pairs: tuple[Pair, ...]


def truncate_box(box: Box) -> IntBox:
    """Round a box toward zero, as the server does to cut its crop; a box thinner than a pixel becomes a pixel wide."""
    x0, y0, x1, y1 = to_int_box(box)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def best_matches(matches: Sequence[Match]) -> list[Match]:
    """Return the match of the largest evidence of each video, the first one of equals, in order of the video ids."""
    ordered = sorted(matches, key=lambda m: (m.video_id, -(m.evidence or 0.0)))
    return [next(group) for _, group in groupby(ordered, key=lambda m: m.video_id)]


def to_result(matches: Sequence[Match]) -> dict[str, Answer]:
    """Convert the best match of each video to an answer, by video id, sorted by video id."""
    return {
        m.video_id: Answer(
            m.item_id,
            m.frame_index,
            tuple(Pair(p.img_name, truncate_box(p.item_box), truncate_box(p.frame_box)) for p in m.pairs),
        )
        for m in best_matches(matches)
    }


def write_result(matches: Sequence[Match], path: str | Path) -> None:
    """Write result.json, replacing an existing one."""
    content = {
        video_id: {"item_id": a.item_id, "frame_index": a.frame_index, "result": [asdict(pair) for pair in a.pairs]}
        for video_id, a in to_result(matches).items()
    }
    write_json(content, path)


def read_result(path: str | Path) -> dict[str, Answer]:
    """Read a result.json, of livematch or of another tool, and return its answers by video id.

    Raises:
        FileFormatError: the file does not exist, is not JSON, or has another format.
    """
    content = read_json(path)
    try:
        return {
            str(video_id): Answer(
                str(entry["item_id"]),
                int(entry["frame_index"]),
                tuple(
                    Pair(str(pair["img_name"]), to_int_box(pair["item_box"]), to_int_box(pair["frame_box"]))
                    for pair in entry["result"]
                ),
            )
            for video_id, entry in content.items()
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: not a result file: {type(error).__name__} {error}") from error


def write_matches(matches: Sequence[Match], path: str | Path) -> None:
    """Write matches.json; matches without evidence are sorted by distance."""
    ordered = sorted(matches, key=lambda m: (m.distance, m.video_id) if m.evidence is None else (0.0, ""))
    write_json({"version": 2, "matches": [asdict(m) for m in ordered]}, path)


def read_matches(path: str | Path) -> list[Match]:
    """Read a matches.json, also the plain list of version 1; errors are those of `read_result`."""
    content = read_json(path)
    try:
        matches = [_to_match(entry) for entry in (content["matches"] if isinstance(content, dict) else content)]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: not a matches file: {type(error).__name__} {error}") from error
    for match in matches:
        for name, value in (("distance", match.distance), ("evidence", match.evidence)):
            if value is not None and not math.isfinite(value):
                raise FileFormatError(f"{path}: the {name} of {match.video_id} is {value}")
    return matches


def _to_match(entry: Mapping[str, Any]) -> Match:
    return Match(
        video_id=str(entry["video_id"]),
        item_id=str(entry["item_id"]),
        frame_index=int(entry["frame_index"]),
        pairs=tuple(Pair(str(p["img_name"]), _to_box(p["item_box"]), _to_box(p["frame_box"])) for p in entry["pairs"]),
        distance=float(entry["distance"]),
        num_votes=int(entry["num_votes"]),
        title=str(entry.get("title", "")),
        url=str(entry.get("url", "")),
        evidence=None if entry.get("evidence") is None else float(entry["evidence"]),
        segments=tuple(
            Segment(int(s["first_frame"]), int(s["last_frame"]), float(s["evidence"]))
            for s in entry.get("segments", ())
        ),
    )


def _to_box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = map(float, values)
    return x0, y0, x1, y1


def write_json(content: object, path: str | Path) -> None:
    """Write `content` as JSON; an existing file is replaced in one step."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def to_int_box(values: Sequence[float]) -> IntBox:
    """Convert four numbers to a box; raise ValueError or TypeError if they are not four numbers."""
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1
