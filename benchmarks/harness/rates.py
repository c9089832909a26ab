"""Measure how fast this machine multiplies matrices and copies memory: the rates that engines are compared with."""

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from benchmarks.harness.roofline import Rates

GEMM_SIZE = 1024
GPU_GEMM_SIZE = 8192
COPY_BYTES = 256 << 20  # far more than fits a core's own caches
NUM_REPEATS = 8


def measure_rates(num_threads: int, *, num_repeats: int = NUM_REPEATS) -> Rates:
    """Measure the CPU with `num_threads`, in float32.

    Times the product of two square matrices of side GEMM_SIZE in PyTorch and in ONNX Runtime, and keeps the faster; a
    copy counts both the bytes read and those written. Each time is the best of `num_repeats`, since other work can only
    slow a measurement down.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(2))
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    session = _gemm_session(num_threads)
    source, target = (torch.zeros(COPY_BYTES // 4) for _ in range(2))
    num_threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        torch_s = _best_s(lambda: left @ right, num_repeats)
        copy_s = _best_s(lambda: target.copy_(source), num_repeats)
    finally:
        torch.set_num_threads(num_threads_before)
    onnx_s = _best_s(lambda: session.run(None, {"a": a, "b": b}), num_repeats)
    return Rates(flop_per_s=2 * GEMM_SIZE**3 / min(torch_s, onnx_s), bytes_per_s=2 * COPY_BYTES / copy_s)


def measure_gpu_rates(dtype: torch.dtype, *, num_repeats: int = NUM_REPEATS) -> Rates:
    """Measure the first CUDA device, with matrices of side GPU_GEMM_SIZE in float32 (without TF32) or float16."""
    a, b = (torch.rand(GPU_GEMM_SIZE, GPU_GEMM_SIZE, dtype=dtype, device="cuda") for _ in range(2))
    source = torch.zeros(4 * COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def multiply() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    gemm_s, copy_s = _best_s(multiply, num_repeats), _best_s(copy, num_repeats)
    return Rates(flop_per_s=2 * GPU_GEMM_SIZE**3 / gemm_s, bytes_per_s=2 * 4 * COPY_BYTES / copy_s)


def _gemm_session(num_threads: int) -> onnxruntime.InferenceSession:
    shape = [GEMM_SIZE, GEMM_SIZE]
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "gemm", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _best_s(call: Callable[[], object], num_repeats: int) -> float:
    call()
    times_s = []
    for _ in range(num_repeats):
        start_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)
