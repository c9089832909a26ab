from pathlib import Path

import pytest

from benchmarks.harness.results import read_results
from benchmarks.harness.stage_times import StageTimes, crops_per_call, describe_stages, overhead
from benchmarks.throughput import main


def times(total_ms: float, compute_ms: float, *, num_calls: int = 10, num_rows: int = 10) -> StageTimes:
    return StageTimes(10, 0, num_calls, num_rows, 0, total_ms, 1, 2, compute_ms, 3)


STAGES = {
    "recognize_image": times(1000, 0),
    "prepare_image": times(106, 100),
    "detector": times(506, 500),
    "crop_and_embed": times(306, 300),
    "embedder_b5a": times(56, 50, num_calls=4, num_rows=10),
}
"""Ten requests of 100 ms with one crop each, which four calls of an embedder took."""


def test_overhead_is_what_no_step_computes() -> None:
    assert overhead(STAGES, "image") == pytest.approx(1 - 900 / 1000)
    without_boxes = {stage: figures for stage, figures in STAGES.items() if stage != "crop_and_embed"}
    assert overhead(without_boxes, "image") == pytest.approx(1 - 600 / 1000)


def test_crops_per_call() -> None:
    assert crops_per_call(STAGES) == 2.5
    assert crops_per_call({"detector": STAGES["detector"]}) == 0


def test_stages_are_described_per_image() -> None:
    row = describe_stages(STAGES, 10)["embedder_b5a"]
    assert (row["calls_per_picture"], row["rows_per_call"], row["total_ms"], row["compute_ms"]) == (0.4, 2.5, 5.6, 5.0)


@pytest.mark.slow
@pytest.mark.triton
def test_the_ensemble_adds_little_to_its_steps(demo_world: Path, tmp_path: Path) -> None:
    main(["--world", str(demo_world), "--output", str(tmp_path / "figures"), "--concurrency", "1", "--kind", "image"])
    (point,) = read_results(tmp_path / "figures")["figures"]["sweep"]
    assert point["latency"]["num_failures"] == 0
    assert point["overhead"] < 0.15
