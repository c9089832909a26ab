import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from livematch import Features, FeaturesError, InputError, open_features, read_features
from livematch.features.parquet import IDENTITY_KEY


def columns(num_rows: int = 5, size: int = 6) -> dict[str, np.ndarray | list]:
    rng = np.random.default_rng(num_rows)
    return {
        "sources": ["000013"] * num_rows,
        "names": [str(k) for k in range(num_rows)],
        "labels": ["shirt" if k % 2 else "hat" for k in range(num_rows)],
        "titles": [f"Shirt {k}" for k in range(num_rows)],
        "urls": ["", *(f"https://shop.example/{k}" for k in range(1, num_rows))],
        "frame_indices": np.full(num_rows, -1, np.int32),
        "boxes": rng.random((num_rows, 4), np.float32),
        "scores": rng.random(num_rows, np.float32),
        "embeddings": rng.normal(size=(num_rows, size)).astype(np.float32),
    }


def table(values, box_type=None, embedding_type=None, string_type=None) -> pa.Table:
    string_type = string_type or pa.string()
    return pa.table(
        {
            "source": pa.array(values["sources"]).cast(string_type),
            "name": pa.array(values["names"]).cast(string_type),
            "frame_index": pa.array(values["frame_indices"]),
            "box": pa.array(values["boxes"].tolist(), box_type or pa.list_(pa.float32(), 4)),
            "score": pa.array(values["scores"]),
            "embedding": pa.array(values["embeddings"].tolist(), embedding_type or pa.list_(pa.float32())),
            "label": pa.array(values["labels"]).cast(string_type),
            "title": pa.array(values["titles"]).cast(string_type),
            "url": pa.array(values["urls"]).cast(string_type),
        }
    )


@pytest.mark.parametrize(
    "types",
    [
        {"embedding_type": pa.list_(pa.float32(), 6)},
        {"embedding_type": pa.list_(pa.float32()), "box_type": pa.list_(pa.float64())},
        {"embedding_type": pa.large_list(pa.float64()), "string_type": pa.large_string()},
        {"string_type": pa.dictionary(pa.int32(), pa.string())},
    ],
)
@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_files_of_other_tools(tmp_path, types, row_group_size):
    values = columns()
    extended = table(values, **types).append_column("note", pa.array(["x"] * 5))
    pq.write_table(extended, tmp_path / "f.parquet", row_group_size=row_group_size)
    for found in (read_features(tmp_path / "f.parquet"), open_features([str(tmp_path / "f.parquet")])):
        for name, expected in values.items():
            assert np.array_equal(getattr(found, name), expected), name
        assert (len(found), found.embedding_size, found.model_identity) == (5, 6, None)


def test_identity_and_empty_names(tmp_path):
    values = columns()
    frames = table(values).set_column(1, "name", pa.nulls(5, pa.string()))
    pq.write_table(frames.replace_schema_metadata({IDENTITY_KEY: b"demo-1"}), tmp_path / "f.parquet")
    found = read_features(tmp_path / "f.parquet")
    assert (found.model_identity, found.names) == ("demo-1", [""] * 5)


@pytest.mark.parametrize(
    ("names", "expected"), [(pa.nulls(5), [""] * 5), (pa.array([10, 2, None, 3, 4]), ["10", "2", "", "3", "4"])]
)
def test_names_that_are_not_strings(tmp_path, names, expected):
    pq.write_table(table(columns()).set_column(1, "name", names), tmp_path / "f.parquet")
    assert read_features(tmp_path / "f.parquet").names == expected


def test_titles_and_urls_are_optional(tmp_path):
    pq.write_table(table(columns()), tmp_path / "a.parquet")
    others = table(columns() | {"sources": ["000021"] * 5}).drop_columns(["url"])
    others = others.set_column(others.schema.get_field_index("title"), "title", pa.array([None, "Shirt", *"   "]))
    pq.write_table(others, tmp_path / "b.parquet")
    found = open_features([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert found.titles == [*columns()["titles"], "", "Shirt", *"   "]
    assert found.urls == [*columns()["urls"], *[""] * 5]
    assert Features(**{name: values for name, values in columns().items() if name != "titles"}).titles == [""] * 5


def test_a_file_without_rows(tmp_path):
    pq.write_table(table(columns()).slice(0, 0), tmp_path / "f.parquet")
    assert len(read_features(tmp_path / "f.parquet")) == 0


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("embeddings", 2, np.nan, r"embedding of row 2 \(000013, 2\) has NaN"),
        ("embeddings", 3, np.inf, r"embedding of row 3 .* has NaN or infinity"),
        ("embeddings", 1, 0.0, r"embedding of row 1 .* is zero"),
        ("boxes", 4, np.nan, r"box of row 4"),
        ("scores", 0, np.nan, r"score of row 0"),
    ],
)
def test_unusable_values_are_named(column, row, value, message):
    values = columns()
    values[column][row] = value
    with pytest.raises(FeaturesError, match=message):
        Features(**values)


def test_repeated_rows_are_named(tmp_path):
    twice = pa.concat_tables([table(columns())] * 2)
    pq.write_table(twice, tmp_path / "f.parquet")
    with pytest.raises(FeaturesError, match=r"f\.parquet: row 5 \(000013, 0\) repeats row 0"):
        read_features(tmp_path / "f.parquet")


def test_two_boxes_of_one_image_are_no_repeat():
    assert len(Features(**(columns() | {"names": ["0"] * 5}))) == 5


def test_lengths_must_agree():
    with pytest.raises(FeaturesError, match=r"5 sources, 4 names"):
        Features(**(columns() | {"names": ["0"] * 4}))
    with pytest.raises(FeaturesError, match=r"5 sources, 1 titles"):
        Features(**(columns() | {"titles": ["Shirt"]}))
    with pytest.raises(FeaturesError, match=r"boxes \[5, 3\]"):
        Features(**(columns() | {"boxes": np.zeros((5, 3))}))


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FeaturesError, match=r"f\.parquet: no such features file"):
        read_features(tmp_path / "f.parquet")
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(FeaturesError, match=r"f\.parquet: not a readable Parquet file"):
        read_features(tmp_path / "f.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["box", "score"]), "no column box, score"),
        (lambda t: t.set_column(5, "embedding", pa.array(["x"] * 5)), "type string instead of lists"),
        (lambda t: t.set_column(5, "embedding", pa.array([[1.0], [1.0, 2.0]] + [[1.0]] * 3)), r"length \[1, 2\]"),
        (lambda t: t.set_column(5, "embedding", pa.array([[]] * 5, pa.list_(pa.float32()))), "vectors of length 0"),
        (lambda t: t.set_column(3, "box", pa.array([[1.0, 2.0, 3.0]] * 5)), r"length \[3\] where 4"),
        (lambda t: t.set_column(5, "embedding", pa.array([None, *[[1.0]] * 4])), "nulls"),
        (lambda t: t.set_column(0, "source", pa.array([None, *"abcd"])), "1 nulls"),
        (lambda t: t.set_column(4, "score", pa.array(list("abcde"))), "type string instead of float"),
    ],
)
def test_unsuitable_columns_are_refused(tmp_path, change, message):
    pq.write_table(change(table(columns())), tmp_path / "f.parquet")
    with pytest.raises(FeaturesError, match=message):
        read_features(tmp_path / "f.parquet")


def test_one_path_is_enough_and_none_is_refused(tmp_path):
    path = str(tmp_path / "f.parquet")
    pq.write_table(table(columns()), path)
    assert len(open_features(path)) == 5
    with pytest.raises(InputError, match="no features file given"):
        open_features([])
