"""The whole pipeline as a user runs it, with a real tritonserver: from folders to result, score and report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from livematch.cli import main
from livematch.pipeline.failures import read_failures

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def outcome(demo_repository: Path, demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of `livematch run` on the demo world with some odd and broken files added."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(demo_world / "image", folder / "image")
    shutil.copytree(demo_world / "video", folder / "video")
    first = folder / "image/000001/0.jpg"
    with Image.open(first) as photo:
        photo.convert("CMYK").save(folder / "image/000001/90.jpg")
        photo.convert("L").save(folder / "image/000001/91.jpg")
        turned = photo.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # rotate clockwise by 90 degrees to see it upright
        turned.save(folder / "image/000001/92.jpg", exif=exif, quality=95)
    (folder / "image/000002/93.jpg").write_bytes(first.read_bytes()[:2000])
    (folder / "video/999999.mp4").write_bytes(b"")
    command = ["run", "--repository", str(demo_repository), "--images", str(folder / "image")]
    command += ["--videos", str(folder / "video"), "--truth", str(demo_world), "-o", str(folder / "out")]
    command += ["--rule", "contest", "--memory", "16G"]  # this process also has PyTorch loaded
    assert main(command) == 3
    return folder / "out"


def test_clips_are_matched_to_their_products(outcome: Path) -> None:
    score = json.loads((outcome / "score.json").read_text())
    assert score["s1"]["f1"] >= 0.8
    assert score["s2"]["f1"] >= 0.8
    assert score["s3"]["f1"] >= 0.6


def test_what_cannot_be_read_is_listed(outcome: Path) -> None:
    failures = read_failures(outcome / "failures.parquet")
    assert [(f.source, f.name, f.stage) for f in failures] == [("000002", "93", "decode"), ("999999", "", "decode")]


def test_report_is_self_contained(outcome: Path) -> None:
    page = (outcome / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= 2 * len(json.loads((outcome / "result.json").read_text()))
    assert "http://" not in page and "https://" not in page
    assert not (outcome / "report_pictures").exists()


def test_other_encodings_of_a_photo_give_the_same_boxes(outcome: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(outcome / "features/images.parquet")
    rows = table.filter(pyarrow.compute.equal(table["source"], "000001")).to_pylist()
    boxes = {name: [np.array(row["box"]) for row in rows if row["name"] == name] for name in ("0", "90", "91", "92")}
    assert boxes["0"]
    for name in ("90", "92"):
        assert len(boxes[name]) == len(boxes["0"])
        for box, expected in zip(boxes[name], boxes["0"], strict=True):
            assert np.abs(box - expected).max() < 25
    assert {len(row["embedding"]) for row in rows} == {2048}
