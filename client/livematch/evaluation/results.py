"""result.json in the dataset's own format, and matches.json, which keeps what that format has no place for.

result.json   {"<video_id>": {"item_id": "...", "frame_index": 240,
                              "result": [{"img_name": "5", "item_box": [4 ints], "frame_box": [4 ints]}]}}
matches.json  [{"video_id", "item_id", "frame_index", "pairs": [{"img_name", "item_box", "frame_box"}], "distance",
                "num_votes"}], boxes with all their decimals
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from livematch.errors import FileFormatError
from livematch.matching.vote import Match
from livematch.types import Box, IntBox


@dataclass(frozen=True)
class BoxPair:
    """An item's box in one of its images and the box of the same garment in the answer's frame, x0 y0 x1 y1."""

    img_name: str
    item_box: IntBox
    frame_box: IntBox


@dataclass(frozen=True)
class Answer:
    """What result.json says about one clip."""

    item_id: str
    frame_index: int
    pairs: tuple[BoxPair, ...]


def truncated(box: Box) -> IntBox:
    """To whole pixels, toward zero as the crops are cut; a box thinner than a pixel becomes one pixel wide."""
    x0, y0, x1, y1 = map(int, box)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def to_result(matches: Sequence[Match]) -> dict[str, Answer]:
    """Video id to answer, in order of video id."""
    return {
        m.video_id: Answer(
            m.item_id,
            m.frame_index,
            tuple(BoxPair(p.img_name, truncated(p.item_box), truncated(p.frame_box)) for p in m.pairs),
        )
        for m in sorted(matches, key=lambda m: m.video_id)
    }


def write_result(matches: Sequence[Match], path: Path) -> None:
    """Write result.json."""
    content = {
        video_id: {
            "item_id": answer.item_id,
            "frame_index": answer.frame_index,
            "result": [asdict(pair) for pair in answer.pairs],
        }
        for video_id, answer in to_result(matches).items()
    }
    write_json(content, path)


def read_result(path: Path) -> dict[str, Answer]:
    """Read a result.json, also one written by another tool.

    Raises:
        FileFormatError: no such file, not JSON, or not of this format.
    """
    content = read_json(path)
    try:
        return {
            str(video_id): Answer(
                str(entry["item_id"]),
                int(entry["frame_index"]),
                tuple(
                    BoxPair(str(pair["img_name"]), to_int_box(pair["item_box"]), to_int_box(pair["frame_box"]))
                    for pair in entry["result"]
                ),
            )
            for video_id, entry in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: not a result file: {type(error).__name__} {error}") from error


def write_matches(matches: Sequence[Match], path: Path) -> None:
    """Write matches.json, smallest distance first."""
    write_json([asdict(m) for m in sorted(matches, key=lambda m: (m.distance, m.video_id))], path)


def read_distances(path: Path) -> dict[str, float]:
    """Video id to distance, of a matches.json.

    Raises:
        FileFormatError: no such file, not JSON, or not of this format.
    """
    try:
        return {str(entry["video_id"]): float(entry["distance"]) for entry in read_json(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: not a matches file: {type(error).__name__} {error}") from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read: {error}") from error


def write_json(content: object, path: Path) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def to_int_box(values: Sequence[float]) -> IntBox:
    x0, y0, x1, y1 = map(int, values)
    return x0, y0, x1, y1
