import pytest

from benchmarks.gpu import main
from benchmarks.machine import query_gpus


@pytest.mark.skipif(bool(query_gpus(("name",))), reason="this machine has a GPU")
def test_without_a_gpu_it_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == ["benchmarks.gpu: no GPU: nvidia-smi is missing or lists none"]
