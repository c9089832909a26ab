"""Read a CSV file that a user wrote, by hand or with a spreadsheet."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from livematch.errors import InputError


def read_rows(
    path: Path, header: str, *, may_be_empty: Collection[str] = (), allows_others: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the values of each row, by column; rows without any value are left out.

    The file is in UTF-8, columns may be in any order, and blanks around names and values are removed.

    >>> for line, row in read_rows(Path("photos.csv"), "item_id,path[,title,url]"):
    ...     print(line, row["item_id"])

    Args:
        header: the columns that the file must have, and in brackets those that it may have.
        may_be_empty: columns that the file must have, but that may lack a value.
        allows_others: whether the file may have further columns, which are yielded, too.

    Raises:
        InputError: the file cannot be read or has a mistake; the message gives the file and the line.
    """
    required = header.partition("[")[0].split(",")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected a CSV file {header}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; save the file as CSV in UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        if missing := [column for column in required if column not in columns]:
            found = ",".join(columns) or "nothing"
            raise InputError(f"{path}:1: no column {', '.join(missing)}: expected a header {header}, got {found}")
        unknown = [column for column in columns if column not in re.findall(r"\w+", header)]
        if unknown and not allows_others:
            raise InputError(f"{path}:1: unknown column {', '.join(unknown)}: expected a header {header}")
        if repeated := sorted({column for column in columns if column and columns.count(column) > 1}):
            raise InputError(f"{path}:1: repeats the column {', '.join(repeated)}; keep one of each")
        for values in reader:
            if not any(map(str.strip, values)):
                continue  # spreadsheets write empty rows
            where = f"{path}:{reader.line_num}"
            if len(values) != len(columns):
                reason = "a value with a comma must be in double quotes"
                raise InputError(f"{where}: {len(values)} values for {len(columns)} columns; {reason}")
            row = dict(zip(columns, map(str.strip, values), strict=True))
            for column in required:
                if not row[column] and column not in may_be_empty:
                    raise InputError(f"{where}: {column} is empty")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from error
