from pathlib import Path

import pytest

from benchmarks.concurrency import main


def test_fewer_clips_than_sources_at_once_are_refused(demo_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip's frames go one after another: the others would wait for nothing, and one be compared with one."""
    with pytest.raises(SystemExit, match="2"):
        main(["--world", str(demo_world), "--clips", "3", "--concurrency", "4"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("4 sources at once take as many clips, there are 3")
