"""The sources that gave no features, and why, as a table that any tool can read.

| column | type | meaning |
| --- | --- | --- |
| kind | string | image or video |
| source | string | item or video id |
| name | string | image name without extension; empty for a video, and for an item folder without a readable file |
| stage | string | list (not usable as a source), decode (no pixels) or recognize (refused by the server) |
| reason | string | one line that names the file |
"""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from livematch.errors import FileFormatError
from livematch.types import Failure


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """Write the table, so that a reader sees the old file or the new one, never half of one."""
    schema = pa.schema([pa.field(field.name, pa.string(), nullable=False) for field in fields(Failure)])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    pq.write_table(pa.Table.from_pylist([asdict(failure) for failure in failures], schema), unfinished)
    unfinished.replace(path)


def read_failures(path: Path) -> list[Failure]:
    """Read the table.

    Raises:
        FileFormatError: no such file, not Parquet, or other columns.
    """
    try:
        return [Failure(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        raise FileFormatError(f"{path}: not a failures table: {' '.join(str(error).split())}") from error
