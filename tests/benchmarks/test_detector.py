import json

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from benchmarks.detector import interleaved, main

pytestmark = pytest.mark.detectron2


def test_calls_take_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []
    times = interleaved(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(seconds) for seconds in times] == [3, 3]


@pytest.mark.slow
def test_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "demo", "--height", "160", "--width", "200", "--rounds", "2", "--threads", "1"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["speedup"] == pytest.approx(report["detectron2_median_s"] / report["onnxruntime_median_s"], rel=0.05)
    assert report["image_size"] == [160, 200]
