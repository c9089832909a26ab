from pathlib import Path

import onnxruntime
import pytest

from benchmarks.harness.engines import Engines
from export.config import demo


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime is built for GPUs"
)
def test_a_missing_gpu_is_an_error_not_a_measurement_of_the_cpu(
    demo_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloads: list[str] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: preloads.append("CUDA"))
    with pytest.raises(RuntimeError, match="detector cannot run on CUDAExecutionProvider"):
        Engines(demo_repository, demo(), provider="CUDAExecutionProvider")
    assert preloads == ["CUDA"]
