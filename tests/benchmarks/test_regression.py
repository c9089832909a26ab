import shutil
from pathlib import Path

import pytest

from benchmarks.harness.engines import Engines
from benchmarks.harness.images import sample_images
from benchmarks.harness.server import connect
from benchmarks.regression import measure_ratios, slower_stages
from export.config import demo
from livematch import LocalServer
from livematch.types import Pixels

SLEEP_S = 0.25


def ratios(**values: float) -> dict[str, dict[str, float]]:
    return {stage: {"ratio": value} for stage, value in values.items()}


def test_only_stages_slower_than_the_tolerance_are_named() -> None:
    stored = ratios(detector=1.0, crop=2.0)
    assert slower_stages(ratios(detector=1.49, crop=1.0), stored, 0.5) == []
    assert slower_stages(ratios(detector=1.51, crop=3.0), stored, 0.5) == ["detector: 1.51 times its engine, stored 1"]
    with pytest.raises(ValueError, match="crop"):
        slower_stages(ratios(detector=1.0), stored, 0.5)


@pytest.mark.slow
@pytest.mark.triton
def test_a_planted_sleep_shows_in_its_stage_and_is_reported(
    demo_repository: Path, demo_world: Path, tmp_path: Path
) -> None:
    """crop_and_embed sleeps a quarter of a second in every call; the engines and all other stages are as before."""
    images = sample_images(demo_world, "frame", 8, seed=0)
    engines = Engines(demo_repository, demo())
    slowed = tmp_path / "repository"
    shutil.copytree(demo_repository, slowed)
    code = slowed / "crop_and_embed" / "1" / "model.py"
    text = code.read_text()
    marker = "    async def execute(self, requests: list) -> list:\n"
    assert marker in text
    code.write_text(text.replace(marker, f"{marker}        __import__('time').sleep({SLEEP_S})\n"))

    usual = ratios_of(demo_repository, images, engines)
    slow = ratios_of(slowed, images, engines)
    added_ms = {stage: slow[stage]["server_ms"] - usual[stage]["server_ms"] for stage in usual}
    assert max(set(added_ms) - {"recognize_frame"}, key=added_ms.__getitem__) == "crop_and_embed"
    assert added_ms["crop_and_embed"] > 0.5 * SLEEP_S * 1e3
    assert any(line.startswith("crop_and_embed:") for line in slower_stages(slow, usual, tolerance=0.5))


def ratios_of(repository: Path, images: list[Pixels], engines: Engines) -> dict[str, dict[str, float]]:
    with LocalServer(repository) as local, connect(local.url, "frame", images, local.pid) as server:
        server.send_all()
        return measure_ratios(server, engines, num_rounds=2)
