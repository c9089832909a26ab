"""The demo's model repository, a server for it and a small world, each created once for all tests that use it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from livematch.local.local_server import LocalServer

ROOT = Path(__file__).parents[1]

# Otherwise MKL, on Intel processors, sums in an order that depends on memory alignment, and no two trainings are equal.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")


@pytest.fixture(scope="session")
def demo_repository() -> Path:
    """The committed checkpoints, exported; kept in build/ between runs and rebuilt when the sources change."""
    from export.build import build
    from export.config import demo

    output = ROOT / "build" / "tests" / "model_repository"
    build(demo(), output, checkpoints=ROOT / "training" / "demo" / "checkpoints")
    return output


@pytest.fixture(scope="session")
def half_repository() -> Path:
    """The same as `demo_repository` in half precision, for a GPU."""
    from export.build import build
    from export.config import demo

    output = ROOT / "build" / "tests" / "half_repository"
    build(demo(), output, checkpoints=ROOT / "training" / "demo" / "checkpoints", precision="fp16")
    return output


@pytest.fixture(scope="session")
def triton_server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with LocalServer(demo_repository, log_path=tmp_path_factory.mktemp("triton") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def demo_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six items, which are two families of lookalikes, from a seed that nothing was tuned on."""
    from training.demo.world import render_world

    path = tmp_path_factory.mktemp("demo") / "world"
    render_world(path, seed=4242, num_items=6, render_every=20)
    return path
