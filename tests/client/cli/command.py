"""Run a command of `livematch` in the tests' own process."""

import json

from livematch.cli.main import main


def run_command(capsys, *command) -> tuple[int, dict, str]:
    """Exit code, summary (the last line of stdout) and stderr of a command."""
    code = main([str(argument) for argument in command])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return code, json.loads(lines[-1]) if lines else {}, captured.err
