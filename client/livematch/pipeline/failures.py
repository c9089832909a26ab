"""Write and read the table of sources that failed, a Parquet file.

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

from livematch.errors import FileFormatError, describe_error
from livematch.files import replace_file
from livematch.types import Failure


def write_failures(failures: Sequence[Failure], path: str | Path) -> None:
    """Write the table; an existing file is replaced in one step."""
    schema = pa.schema([pa.field(field.name, pa.string(), nullable=False) for field in fields(Failure)])
    table = pa.Table.from_pylist([asdict(failure) for failure in failures], schema)
    with replace_file(path) as temporary:
        pq.write_table(table, temporary)


def read_failures(path: str | Path) -> list[Failure]:
    """Read the table; raise FileFormatError if the file does not exist, is not Parquet, or has other columns."""
    try:
        return [Failure(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        raise FileFormatError(f"{path}: not a failures table: {describe_error(error)}") from error
