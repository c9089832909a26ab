import subprocess
from pathlib import Path

import pytest

from livematch.local.process import _children, is_running


def test_a_process_runs_until_it_ends():
    process = subprocess.Popen(["sleep", "60"])
    assert is_running(process.pid)
    process.kill()
    process.wait()
    assert not is_running(process.pid)


@pytest.mark.parametrize(("ask", "answer"), [(is_running, False), (_children, set())])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_process_that_ends_while_it_is_looked_at(monkeypatch, ask, answer, is_open):
    process = subprocess.Popen(["sleep", "60"])

    def end() -> None:
        process.kill()
        process.wait()

    def read_text(path: Path) -> str:
        if not is_open:
            end()
        with path.open() as file:
            end()
            return file.read()

    monkeypatch.setattr(Path, "read_text", read_text)
    assert ask(process.pid) == answer
