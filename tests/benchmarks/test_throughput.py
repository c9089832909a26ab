from pathlib import Path

import pytest

from benchmarks.harness.results import read_results
from benchmarks.throughput import main
from livematch import Client, LocalServer


@pytest.mark.triton
def test_a_running_server_is_measured_by_its_answers_and_statistics(
    triton_server: LocalServer, demo_world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "figures.json"
    world = ["--world", str(demo_world), "--pictures", "4", "--output", str(output)]
    load = ["--concurrency", "2", "--window-s", "0.3", "--max-windows", "2"]
    assert main(["--server", triton_server.url, *world, *load]) == 0
    figures = read_results(output)["figures"]
    with Client(triton_server.url) as client:
        assert figures["model_identity"] == client.model_identity
    (point,) = figures["sweep"]
    assert point["pictures_per_s"] > 0 and point["usage"] is None
    assert point["stages"]["detector"]["compute_ms"] > 0
    assert "precision" not in figures
