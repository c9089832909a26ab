"""`livematch evaluate --matches` with a table of what the clips show."""

import json
import subprocess
import sys

import pytest

from livematch import Match
from livematch.evaluation.results import write_matches
from tests.client.cli.command import run_command


@pytest.fixture
def command(tmp_path) -> tuple:
    """Two clips and one that shows no item; one answer is right, one wrong."""
    matches = [Match("v1", "a", 80, (), 0.4, 3, evidence=0.6), Match("v3", "a", 80, (), 0.5, 2, evidence=0.3)]
    write_matches(matches, tmp_path / "matches.json")
    (tmp_path / "truth.csv").write_text("video_id,item_id\nv1,a\nv2,a\nv3,\n")
    return ("evaluate", "--matches", tmp_path / "matches.json", "--truth", tmp_path / "truth.csv")


def test_scores_are_printed_and_written(command, tmp_path, capsys):
    pytest.importorskip("sklearn", reason="needs livematch[evaluation]")
    code, summary, stderr = run_command(capsys, *command, "-o", tmp_path / "score.json")
    assert (code, stderr) == (0, "")
    assert [summary[name]["value"] for name in ("precision", "recall", "f1")] == [0.5, 0.5, 0.5]
    assert 0 <= summary["f1"]["low"] < 0.5 < summary["f1"]["high"] <= 1
    assert (summary["average_precision"], summary["empty_clips_answered"]) == (0.5, 1)  # (1/1) / 2; 1 of 1
    written = json.loads((tmp_path / "score.json").read_text())
    assert (written.pop("wrong"), written.pop("missing")) == ([["v3", "a"]], [["v2", "a"]])
    assert written == summary


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("truth.csv", "video_id,item_id\nv1,a\n,a\n", "{path}:3: video_id is empty"),
        ("truth.csv", "video_id,item_id\nv1,a\nv1,\n", "{path}:3: clip v1 shows no item, but an item in line 2"),
        ("matches.json", "{}", "{path}: not a matches file: KeyError 'matches'"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(command, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    code, summary, stderr = run_command(capsys, *command, "-o", tmp_path / "score.json")
    assert (code, summary, stderr) == (2, {}, f"livematch: {message.format(path=path)}\n")
    assert not (tmp_path / "score.json").exists()


def test_a_truth_of_the_other_kind_is_one_line(command, tmp_path, capsys):
    code, _, stderr = run_command(capsys, *command[:-1], tmp_path)
    reason = "cannot be read: Is a directory; expected a CSV file video_id,item_id"
    assert (code, stderr) == (2, f"livematch: {tmp_path}: {reason}\n")
    (tmp_path / "result.json").write_text("{}")
    code, _, stderr = run_command(capsys, "evaluate", "--result", tmp_path / "result.json", *command[3:])
    assert (code, stderr.count("\n")) == (2, 1)
    assert "truth.csv is not an annotated part: it has no folder image_annotation" in stderr


def test_a_missing_scikit_learn_is_reported_in_one_line(command):
    code = (
        "import sys; sys.modules['sklearn'] = None; from livematch.cli import main;"
        f"sys.exit(main({[*map(str, command)]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "livematch: scores of matches need scikit-learn: pip install 'livematch[evaluation]'\n"
    assert (done.returncode, done.stderr) == (2, expected)
