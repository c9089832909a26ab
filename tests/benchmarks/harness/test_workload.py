import argparse
from pathlib import Path

import pytest

from benchmarks.harness.workload import (
    DEMO_CHECKPOINTS,
    add_server_arguments,
    checkpoints_of,
    default_output,
    describe_networks,
    prepare_world,
)


def test_a_given_world_is_used_unchanged(tmp_path: Path) -> None:
    assert prepare_world(tmp_path) == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "checkpoints", "output"),
    [
        ("", DEMO_CHECKPOINTS, "demo_models.json"),
        ("--precision fp16", DEMO_CHECKPOINTS, "demo_fp16_models.json"),
        ("--config production", None, "production_models.json"),
        ("--config production --checkpoints trained", Path("trained"), "production_models.json"),
    ],
)
def test_checkpoints_and_results_file_follow_the_options(arguments: str, checkpoints: Path | None, output: str) -> None:
    parser = argparse.ArgumentParser()
    add_server_arguments(parser, "models")
    options = parser.parse_args(arguments.split())
    assert checkpoints_of(options) == checkpoints
    assert default_output(options).name == output
    assert describe_networks(options)["weights"] == (str(checkpoints) if checkpoints else "random (seed 0)")
