import json

import pytest

from livematch import FileFormatError
from livematch.media.annotations import Annotation, read_image_annotations, read_video_annotations

GARMENT = {"label": "短裙", "viewpoint": 2, "display": 1, "instance_id": 7, "box": [1, 2, 30, 40]}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_all_fields_are_read_and_only_the_description_may_be_missing(tmp_path):
    path = write(tmp_path / "0.json", {"annotations": [GARMENT, {"instance_id": 0, "box": [0.9, 0, 5.5, 6]}]})
    assert read_image_annotations(path) == (
        Annotation("短裙", 2, 1, 7, (1, 2, 30, 40)),
        Annotation(None, None, None, 0, (0, 0, 5, 6)),
    )


def test_frames_keep_their_index(tmp_path):
    frames = [{"frame_index": 40, "annotations": []}, {"frame_index": 0, "annotations": [GARMENT]}]
    (empty, first) = read_video_annotations(write(tmp_path / "7.json", {"frames": frames}))
    assert empty == (40, ())
    assert first[0] == 0 and [annotation.instance_id for annotation in first[1]] == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": [1, 2, 3, float("nan")]}, "box is .*, not four numbers"),
        ({"box": [1, 2, 3, "4"]}, "box is .*, not four numbers"),
        ({"box": None}, "box is None, not a list"),
        ({"instance_id": "7"}, "instance_id is '7', not a whole number"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(tmp_path, change, message):
    path = write(tmp_path / "0.json", {"annotations": [GARMENT | change]})
    with pytest.raises(FileFormatError, match=rf"0\.json: {message}"):
        read_image_annotations(path)
