import argparse
from pathlib import Path

import pytest

from benchmarks.harness.options import new_parser
from benchmarks.harness.workload import (
    DEMO_CHECKPOINTS,
    add_server_arguments,
    describe_networks,
    prepare_world,
    run_workload,
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
    def check(options: argparse.Namespace) -> int:
        assert options.checkpoints == checkpoints
        assert options.output.name == output
        assert describe_networks(options)["weights"] == (str(checkpoints) if checkpoints else "random (seed 0)")
        return 7

    parser = new_parser("models", None)
    add_server_arguments(parser)
    assert run_workload(parser, arguments.split(), check) == 7
