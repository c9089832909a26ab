"""What is not already tested by the two tables that livematch reads: manifests of photos, and what clips show."""

import pytest

from livematch import InputError
from livematch.media.tables import read_rows


def test_rows_are_numbered_by_their_last_line_and_blanks_are_removed(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeff B ,a,c\n 1 ,"x\ny",\n , ,\n2, z ,3\n'.encode())
    assert list(read_rows(path, "a,b[,c]")) == [
        (3, {"b": "1", "a": "x\ny", "c": ""}),
        (5, {"b": "2", "a": "z", "c": "3"}),
    ]


def test_only_columns_that_may_be_empty_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,\n,2\n")
    rows = read_rows(path, "a,b", may_be_empty=["b"])
    assert next(rows) == (2, {"a": "1", "b": ""})
    with pytest.raises(InputError, match=r"t\.csv:3: a is empty"):
        next(rows)
    with pytest.raises(InputError, match=r"t\.csv:2: b is empty"):
        next(read_rows(path, "a,b"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no.csv", "No such file or directory")):
        with pytest.raises(InputError) as caught:
            next(read_rows(path, "a,b[,c]"))
        assert str(caught.value) == f"{path}: cannot be read: {reason}; expected a CSV file a,b[,c]"
