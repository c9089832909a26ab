"""Read which items each clip shows from a CSV file: video_id,item_id.

    video_id,item_id
    v000001,000013
    v000001,000021
    v000002,

A clip has a row for each item that it shows. A row without item_id says that the clip was looked at and shows none. A
clip without any row is unlabelled. Other columns, such as start_s and end_s of `training.demo.world`, are ignored, and
an item may have several rows.
"""

from pathlib import Path

from livematch.errors import InputError
from livematch.media.tables import read_rows


def read_truth_table(path: str | Path) -> dict[str, frozenset[str]]:
    """Return the ids of the items that each labelled clip shows, by video id; none if the clip shows none.

    Raises:
        InputError: the file has a mistake or no rows, or says of a clip that it shows an item and that it shows none;
            the message gives the file and the line.
    """
    path = Path(path)
    items: dict[str, set[str]] = {}
    first_lines: dict[tuple[str, bool], int] = {}
    for line, row in read_rows(path, "video_id,item_id", may_be_empty=["item_id"]):
        video_id, item_id = row["video_id"], row["item_id"]
        first_lines.setdefault((video_id, bool(item_id)), line)
        if other := first_lines.get((video_id, not item_id)):
            said, before = (f"item {item_id}", "no item") if item_id else ("no item", "an item")
            raise InputError(f"{path}:{line}: clip {video_id} shows {said}, but {before} in line {other}")
        items.setdefault(video_id, set()).update([item_id] if item_id else [])
    if not items:
        raise InputError(f"{path}: no clips below the header")
    return {video_id: frozenset(shown) for video_id, shown in items.items()}
