import json
from dataclasses import asdict, replace

import pytest

from livematch import FileFormatError, Match, Segment, read_matches, read_result, write_result
from livematch.evaluation.results import Answer, to_result, truncate_box, write_json, write_matches
from livematch.types import Pair

MATCHES = [
    Match("000021", "000034", 240, (Pair("5", (1.9, 2.2, 30.99, 40.5), (0.0, 0.4, 12.0, 13.7)),), 0.5, 3),
    Match(
        "000013", "000013", 100, (Pair("0", (5.0, 5.0, 9.0, 9.0), (7.0, 7.0, 8.0, 8.0)),), 0.25, 1, "裙", "https://a.b"
    ),
]


def test_result_is_the_dataset_s_own_format(tmp_path):
    write_result(MATCHES, tmp_path / "new" / "result.json")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == {
        "000013": {
            "item_id": "000013",
            "frame_index": 100,
            "result": [{"img_name": "0", "item_box": [5, 5, 9, 9], "frame_box": [7, 7, 8, 8]}],
        },
        "000021": {
            "item_id": "000034",
            "frame_index": 240,
            "result": [{"img_name": "5", "item_box": [1, 2, 30, 40], "frame_box": [0, 0, 12, 13]}],
        },
    }
    assert read_result(tmp_path / "new" / "result.json") == to_result(MATCHES)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1.9, 2.9, 5.1, 6.1), (1, 2, 5, 6)),
        ((-0.7, -1.5, 5.0, 6.0), (0, -1, 5, 6)),
        ((3.2, 4.4, 3.9, 4.8), (3, 4, 4, 5)),
    ],
)
def test_boxes_are_truncated_and_keep_a_pixel(box, expected):
    assert truncate_box(box) == expected


def test_several_pairs_per_clip_are_read(tmp_path):
    pair = {"img_name": "5", "item_box": [1, 2, 3, 4], "frame_box": [5, 6, 7, 8]}
    content = {"7": {"item_id": "8", "frame_index": 240, "result": [pair, pair]}}
    (tmp_path / "r.json").write_text(json.dumps(content))
    expected = Pair("5", (1, 2, 3, 4), (5, 6, 7, 8))
    assert read_result(tmp_path / "r.json") == {"7": Answer("8", 240, (expected, expected))}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"7": []}',
        '{"7": {"item_id": "8", "result": []}}',
        '{"7": {"item_id": "8", "frame_index": 0, "result": [{"img_name": "5", "item_box": [1], "frame_box": [1]}]}}',
    ],
)
def test_other_contents_are_refused_and_the_file_is_named(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"r\.json"):
        read_result(tmp_path / "r.json")


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"r\.json: cannot be read"):
        read_result(tmp_path / "r.json")


def test_matches_have_titles(tmp_path):
    write_matches(MATCHES, tmp_path / "matches.json")
    content = json.loads((tmp_path / "matches.json").read_text(encoding="utf-8"))
    assert content["version"] == 2
    first, second = content["matches"]
    assert (first["item_id"], first["title"], first["url"]) == ("000013", "裙", "https://a.b")
    assert (second["item_id"], second["title"], second["url"]) == ("000034", "", "")


FOUND = Match("7", "8", 80, (Pair("0", (1.5, 2, 3, 4), (5, 6, 7, 8.25)),), 0.5, 2, "裙", "https://a.b", 0.4)


def test_matches_are_read_back(tmp_path):
    write_matches(MATCHES, tmp_path / "matches.json")
    assert read_matches(tmp_path / "matches.json") == MATCHES[::-1]  # by distance
    found = [replace(FOUND, segments=(Segment(60, 80, 0.3), Segment(120, 120, 0.4))), FOUND]
    write_matches(found, tmp_path / "matches.json")
    assert read_matches(tmp_path / "matches.json") == found


def test_matches_of_version_1_are_a_list(tmp_path):
    entry = asdict(MATCHES[1])
    del entry["evidence"], entry["segments"]
    write_json([entry], tmp_path / "older.json")
    assert read_matches(tmp_path / "older.json") == [MATCHES[1]]


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "7", '{"version": 2, "matches": [{"video_id": "7"}]}'])
def test_other_contents_are_no_matches(tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"other\.json: (not a matches file|cannot be read)"):
        read_matches(tmp_path / "other.json")


@pytest.mark.parametrize("name", ["distance", "evidence"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(tmp_path, name, value):
    path = tmp_path / "matches.json"
    path.write_text(json.dumps([asdict(FOUND) | {name: "VALUE"}]).replace('"VALUE"', value))
    with pytest.raises(FileFormatError, match=rf"the {name} of 7 is (nan|inf)"):
        read_matches(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"7": {"item_id": "7", "frame_index": 1e999, "result": []}}',
        '{"7": {"item_id": "7", "frame_index": 0, "result": [{"img_name": "0", "item_box": [0, 0, 9, 1e999]}]}}',
        "[" * 100_000,
    ],
)
def test_numbers_and_nesting_beyond_all_bounds_are_one_line(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=r"not a result file|cannot be read"):
        read_result(path)
