import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livematch import FileFormatError
from livematch.pipeline.failures import read_failures, write_failures
from livematch.types import Failure


@pytest.mark.parametrize("num_failures", [0, 2])
def test_failures_are_read_back(tmp_path, num_failures):
    failures = [
        Failure("image", "000013", "2", "decode", "2.jpg: the file is empty"),
        Failure("video", "7", "", "recognize", "7.mp4: no"),
    ][:num_failures]
    write_failures(failures, tmp_path / "new" / "failures.parquet")
    assert read_failures(tmp_path / "new" / "failures.parquet") == failures
    assert pq.read_schema(tmp_path / "new" / "failures.parquet").names == ["kind", "source", "name", "stage", "reason"]


def test_other_files_are_named(tmp_path):
    path = tmp_path / "failures.parquet"
    with pytest.raises(FileFormatError, match=r"failures\.parquet: not a failures table"):
        read_failures(path)
    pq.write_table(pa.table({"source": ["a"]}), path)
    with pytest.raises(FileFormatError, match="missing 4 required"):
        read_failures(path)


def test_a_path_that_is_not_utf8_can_be_written(tmp_path):
    write_failures([Failure("image", "a", "0", "decode", "/\udcc9/a/0.jpg: the file is empty")], tmp_path / "f")
    assert read_failures(tmp_path / "f")[0].reason == "/\ufffd/a/0.jpg: the file is empty"
