from pathlib import Path

import pytest

from benchmarks.concurrency import main


def test_fewer_clips_than_concurrency_are_refused(demo_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip's frames are sent one after another, so the extra concurrency would measure nothing."""
    assert main(["--world", str(demo_world), "--clips", "3", "--concurrency", "4"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--concurrency 4 needs as many clips, but there are 3")
