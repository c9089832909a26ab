import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from livematch import FeaturesError, Recognition, read_features
from livematch.features.store import ROW_GROUP_ROWS, FeaturesStore


def recognition(num_boxes: int, seed: int = 0) -> Recognition:
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(num_boxes, 2048)).astype(np.float32)
    boxes, scores = rng.random((num_boxes, 4), np.float32), rng.random(num_boxes, np.float32)
    return Recognition(boxes, scores, np.array(["shirt"] * num_boxes), embeddings)


def open_store(path, model_identity="demo-1", selection="images") -> FeaturesStore:
    return FeaturesStore(path, model_identity=model_identity, embedding_size=2048, selection=selection)


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "f.parquet"
    image, first, second = recognition(2), recognition(1, 1), recognition(3, 2)
    with open_store(str(path)) as store:
        store.append(("000013", "0"), [(-1, image)])
        store.append(("000013", "1"), [(-1, recognition(0))])
        store.append(("000021", ""), [(80, first), (100, recognition(0)), (120, second)])
        assert store.num_rows == 6
        store.finish()
    found = read_features(path)
    assert found.sources == ["000013"] * 2 + ["000021"] * 4
    assert found.names == ["0"] * 2 + [""] * 4
    assert found.frame_indices.tolist() == [-1, -1, 80, 120, 120, 120]
    assert found.labels == ["shirt"] * 6
    for column in ("boxes", "scores", "embeddings"):
        expected = np.concatenate([getattr(part, column) for part in (image, first, second)])
        assert np.array_equal(getattr(found, column), expected)
    assert found.model_identity == "demo-1"
    schema = pq.read_schema(path)
    assert [str(field.type) for field in schema] == [
        "string",
        "string",
        "int32",
        "fixed_size_list<element: float>[4]",
        "float",
        "string",
        "fixed_size_list<element: float>[2048]",
        "string",
        "string",
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["f.parquet"]


def test_a_finished_file_grows(tmp_path):
    path = tmp_path / "f.parquet"
    for number in range(3):
        with open_store(path) as store:
            assert store.finished == {("a", str(k)) for k in range(number)}
            store.append(("a", str(number)), [(-1, recognition(number))])
            store.finish()
    assert read_features(path).names == ["1", "2", "2"]


def test_titles_are_those_given_last(tmp_path):
    path = tmp_path / "f.parquet"
    with open_store(path) as store:
        store.append(("a", "0"), [(-1, recognition(2))])
        store.append(("b", "0"), [(-1, recognition(1))])
        store.append(("c", "0"), [(-1, recognition(0))])
        store.finish({"a": ("Red shirt", "https://shop.example/a"), "c": ("Never seen", "")})
    found = read_features(path)
    assert found.titles == ["Red shirt", "Red shirt", ""]
    assert found.urls == ["https://shop.example/a"] * 2 + [""]
    with pq.ParquetFile(path) as file:
        encodings = {column: file.metadata.row_group(0).column(column).encodings for column in (7, 8)}
    assert all("RLE_DICTIONARY" in names for names in encodings.values())

    with open_store(path) as store:  # nothing new but a title
        store.finish({"b": ("Blue shirt", "")})
    assert read_features(path).titles == ["Red shirt", "Red shirt", "Blue shirt"]
    written = path.stat().st_ino
    with open_store(path) as store:
        store.finish({"b": ("Blue shirt", ""), "c": ("Never seen", "")})
    assert path.stat().st_ino == written  # not written again without a change


def test_a_file_of_an_older_version_can_be_read_but_does_not_grow(tmp_path):
    path = tmp_path / "f.parquet"
    with open_store(path) as store:
        store.append(("a", "0"), [(-1, recognition(2))])
        store.finish()
    assert read_features(path).labels == ["shirt"] * 2
    pq.write_table(pq.read_table(path).drop_columns(["label", "title", "url"]), path)
    found = read_features(path)
    assert (found.names, found.labels, found.titles, found.urls) == (["0"] * 2, [""] * 2, [""] * 2, [""] * 2)
    with pytest.raises(FeaturesError, match=r"has other columns .* give another output file"):
        open_store(path)


def test_a_run_killed_anywhere_can_be_continued(tmp_path):
    path = tmp_path / "f.parquet"
    partial = tmp_path / "f.parquet.partial"
    ends = []
    with open_store(path) as store:
        for k in range(3):
            store.append(("a", str(k)), [(-1, recognition(k, seed=k))])
            ends.append(partial.stat().st_size)
    whole = partial.read_bytes()
    for length in [0, 3, 500, *(end + shift for end in ends for shift in (-9, 0, 5)), len(whole)]:
        partial.write_bytes(whole[:length])
        num_whole = sum(end <= length for end in ends)
        with open_store(path) as store:
            assert store.finished == {("a", str(k)) for k in range(num_whole)}
            store.append(("b", "0"), [(-1, recognition(1, seed=7))])
        with open_store(path) as store:  # which is killed, too
            assert len(store.finished) == num_whole + 1
            store.append(("b", "1"), [(-1, recognition(1, seed=8))])
            store.finish()
        found = read_features(path)
        assert found.names == [str(k) for k in range(num_whole) for _ in range(k)] + ["0", "1"]
        assert np.array_equal(found.embeddings[-1:], recognition(1, seed=8).embeddings)
        assert not partial.exists()
        path.unlink()


def test_a_run_killed_before_it_removes_the_partial_file_can_be_continued(tmp_path):
    path = tmp_path / "f.parquet"
    partial = tmp_path / "f.parquet.partial"
    with open_store(path) as store:
        store.append(("a", "0"), [(-1, recognition(2))])
    left_over = partial.read_bytes()
    open_store(path).finish()
    partial.write_bytes(left_over)
    with open_store(path) as store:
        store.append(("a", "1"), [(-1, recognition(1))])
        store.finish()
    assert read_features(path).names == ["0", "0", "1"]


def test_row_groups_are_bounded(tmp_path):
    path = tmp_path / "f.parquet"
    with open_store(path) as store:
        for k in range(5):
            store.append(("a", str(k)), [(-1, recognition(ROW_GROUP_ROWS // 2, seed=k))])
        store.finish()
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, ROW_GROUP_ROWS // 2]


def test_finishing_many_sources_without_boxes_is_fast(tmp_path):
    nothing = recognition(0)
    with open_store(tmp_path / "f.parquet") as store:
        start_s = time.process_time()
        for k in range(5000):
            store.append(("a", str(k)), [(-1, nothing)])
        appended_s = time.process_time()
        store.finish()
        assert time.process_time() - appended_s < appended_s - start_s  # measured: a twelfth to a third
    with open_store(tmp_path / "f.parquet") as store:
        assert (len(store.finished), store.num_rows) == (5000, 0)
    assert len(read_features(tmp_path / "f.parquet")) == 0


@pytest.mark.parametrize("finish", [True, False])
def test_a_file_of_different_models_or_frames_is_refused(tmp_path, finish):
    path = tmp_path / "f.parquet"
    with open_store(path, selection="frames 80:400:20") as store:
        store.append(("a", ""), [(80, recognition(1))])
        if finish:
            store.finish()
    with pytest.raises(FeaturesError, match=r"made by demo-1, the server has demo-2"):
        open_store(path, model_identity="demo-2", selection="frames 80:400:20")
    with pytest.raises(FeaturesError, match=r"made by demo-1, the server has unnamed models"):
        open_store(path, model_identity=None, selection="frames 80:400:20")
    with pytest.raises(FeaturesError, match=r"holds frames 80:400:20, not frames 0:400:40"):
        open_store(path, selection="frames 0:400:40")


def test_a_file_that_is_not_parquet_is_not_overwritten(tmp_path):
    path = tmp_path / "f.parquet"
    path.write_text("dear diary")
    with pytest.raises(FeaturesError, match="not a readable Parquet file"):
        open_store(path)
    assert path.read_text() == "dear diary"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_finishes_while_another_starts_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "f.parquet"
    first = open_store(path)
    first.append(("a", "0"), [(-1, recognition(1))])

    def finish_first(*args, **options):
        monkeypatch.undo()
        first.finish()

    monkeypatch.setattr(Path, "mkdir", finish_first)  # the second run creates the folder before it opens a file
    with open_store(path) as second:
        assert second.finished == {("a", "0")}


def test_two_runs_on_one_file_are_refused(tmp_path):
    path = tmp_path / "f.parquet"
    with open_store(path) as store:
        store.append(("a", "0"), [(-1, recognition(1))])
        with pytest.raises(FeaturesError, match=r"f\.parquet: another run is writing it"):
            open_store(path)
        store.finish()
    assert len(read_features(path)) == 1
