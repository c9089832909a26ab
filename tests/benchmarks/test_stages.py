from pathlib import Path

import pytest

from benchmarks.stage_times import Stages, StageTimes
from benchmarks.stages import ENSEMBLE, MODELS, idle, measure, overhead, table
from livematch import read_image
from livematch.server import LocalServer

COMPUTE_MS = {"prepare_image": 100, "detector": 500, "crop_and_embed": 300, "crop": 20}


@pytest.fixture
def stages() -> Stages:
    """Ten requests of 100 ms, with one crop each in calls of two; an embedder computes for 5 ms per request."""
    stages = {
        model: StageTimes(10, 0, 5, 10, 0, COMPUTE_MS.get(model, 50) + 6, 1, 2, COMPUTE_MS.get(model, 50), 3)
        for model in MODELS
    }
    return stages | {ENSEMBLE: StageTimes(10, 0, 10, 10, 0, 1000, 0, 0, 900, 0)}


def test_overhead_and_idle(stages: Stages) -> None:
    assert overhead(stages) == pytest.approx(1 - 900 / 1000)
    assert idle(stages, num_cpus=1) == pytest.approx(1 - (100 + 500 + 20 + 200) / 1000)
    assert idle(stages, num_cpus=16) == pytest.approx(1 - (100 + 500 + 20 + 50) / 1000)


def test_the_table_is_per_request(stages: Stages) -> None:
    lines = {line.split()[0]: line.split()[1:] for line in table(stages).splitlines()}
    assert lines["detector"] == ["0.50", "2.00", "50.60", "0.10", "0.20", "50.00", "0.30"]


@pytest.mark.slow
@pytest.mark.triton
def test_the_ensemble_adds_little_to_its_steps(demo_repository: Path, demo_world: Path) -> None:
    pictures = [read_image(path) for path in sorted((demo_world / "image").glob("*/*.jpg"))]
    with LocalServer(demo_repository) as server:
        stages, _ = measure(server.url, pictures, num_requests=60, num_clients=1)
    print(table(stages))
    assert overhead(stages) < 0.15
