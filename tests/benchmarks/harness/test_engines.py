from pathlib import Path

import onnxruntime
import pytest

from benchmarks.harness.engines import Engines
from export.config import demo
from livematch.errors import LivematchError


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime is built for GPUs"
)
def test_a_missing_gpu_is_an_error_not_a_measurement_of_the_cpu(demo_repository: Path) -> None:
    with pytest.raises(LivematchError, match=r"detector cannot run on the GPU: .*CUDAExecutionProvider"):
        Engines(demo_repository, demo(), device="cuda")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare_.*model\.onnx does not exist"):
        Engines(tmp_path, demo())
