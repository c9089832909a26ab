import json

import pytest

from livematch import FileFormatError, InputError, read_ground_truth
from livematch.media.annotations import Annotation


def test_a_part_is_read(part):
    truth = read_ground_truth(part)
    assert list(truth.images) == ["000013", "000021", "000034"]
    assert truth.images["000021"]["3"] == (Annotation("短裙", 0, 1, 200, (20, 10, 60, 70)),)
    assert list(truth.frames["000034"]) == [*range(0, 400, 40)]
    assert truth.frames["000034"][80] == ()
    assert truth.frames["000034"][120] == (Annotation("短裙", 0, 1, 300, (10, 20, 40, 80)),)
    assert truth.positive_videos() == ["000013", "000021", "000034"]


@pytest.mark.parametrize("folder", ["image_annotation", "video_annotation"])
def test_missing_folders_are_named(tmp_path, folder):
    for other in {"image_annotation", "video_annotation"} - {folder}:
        (tmp_path / other).mkdir()
    with pytest.raises(InputError, match=f"no folder {folder}"):
        read_ground_truth(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("image_annotation/7/0.json", "{"),
        ("image_annotation/7/0.json", {"annotations": [{"box": [1, 2, 3, 4]}]}),
        ("image_annotation/7/0.json", {"annotations": [{"instance_id": 1, "box": [1, 2, 3]}]}),
        ("video_annotation/7.json", {"frames": [{"annotations": []}]}),
        ("video_annotation/7.json", []),
    ],
)
def test_damaged_annotations_are_named(tmp_path, name, content):
    for folder in ("image_annotation/7", "video_annotation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(FileFormatError, match=name):
        read_ground_truth(tmp_path)
