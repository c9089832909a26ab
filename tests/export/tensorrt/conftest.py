"""TensorRT for RTX, which compiles without a GPU."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
