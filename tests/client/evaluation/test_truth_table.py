import pytest

from livematch import InputError, read_truth_table

TRUTH = """\
video_id,item_id,start_s,end_s
v1,000004,0.00,7.96
v2,000004,,
v1,000016,8.00,15.96
v3,,,
v1,000004,16.00,20.00
"""


def test_items_of_clips_and_clips_without_items(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    assert read_truth_table(tmp_path / "truth.csv") == {"v1": {"000004", "000016"}, "v2": {"000004"}, "v3": set()}


def test_other_columns_are_not_needed(tmp_path):
    (tmp_path / "truth.csv").write_text("item_id,video_id\na,v1\n,v2\n,v2\n")
    assert read_truth_table(str(tmp_path / "truth.csv")) == {"v1": {"a"}, "v2": set()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1: no column video_id, item_id: expected a header video_id,item_id, got nothing"),
        ("v1,a\n", "1: no column video_id, item_id: expected a header video_id,item_id, got v1,a"),
        ("video_id,item\nv1,a\n", "1: no column item_id: expected a header video_id,item_id, got video_id,item"),
        ("video_id,item_id\nv1,a\n,b\n", "3: video_id is empty"),
        ("video_id,item_id\nv1,a,b\n", "2: 3 values for 2 columns; a value with a comma must be in double quotes"),
        ("video_id,item_id\nv1\n", "2: 1 values for 2 columns"),
        ('video_id,item_id\nv1,"a\n', "2: not CSV: unexpected end of data"),
        (b"video_id,item_id\nv1,a\nv2,\xc9\xcc\n", "3: not UTF-8; save the file as CSV in UTF-8"),
        ("video_id,item_id\nv1,a\nv2,\nv1,\n", "4: clip v1 shows no item, but an item in line 2"),
        ("video_id,item_id\nv1,\nv2,a\n\nv1,a\n", "5: clip v1 shows item a, but no item in line 2"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, content, message):
    path = tmp_path / "truth.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_truth_table(path)
    assert str(caught.value).startswith(f"{path}:{message}")
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "truth.csv").write_text("video_id,item_id\n,\n")
    with pytest.raises(InputError, match=r"truth\.csv: no clips below the header"):
        read_truth_table(tmp_path / "truth.csv")
