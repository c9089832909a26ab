from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from benchmarks.detector import main
from benchmarks.harness.results import read_results

pytestmark = pytest.mark.detectron2


@pytest.mark.slow
def test_every_round_has_both_times_and_their_ratio(tmp_path: Path) -> None:
    output = tmp_path / "detector.json"
    arguments = ["--config", "demo", "--height", "160", "--width", "200", "--rounds", "2", "--threads", "1"]
    assert main([*arguments, "--output", str(output)]) == 0
    figures = read_results(output)["figures"]
    assert len(figures["rounds"]) == 2
    for turn in figures["rounds"]:
        assert turn["speedup"] == pytest.approx(turn["detectron2_s"] / turn["onnxruntime_s"], rel=0.01)
    assert figures["image_size"] == [160, 200]
