"""Bound the time of a model: count the work it cannot avoid, and measure how fast this machine can do such work.

The work is the floating-point operations and the bytes of its convolutions and matrix products; the rates are those of
a matrix product and of a memory copy.

The counts come from the tensor shapes that ONNX Runtime reports for one run, so that sizes which depend on the image
(crops, proposals, padding) are those of that run. Operations between the products (activations, norms, NMS, resizing)
are not counted: an ideal engine computes them on numbers that it has already loaded.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
import torch

from benchmarks.harness.engines import open_session
from benchmarks.harness.figures import seconds

GEMM_SIZE = 1024
GPU_GEMM_SIZE = 8192
COPY_BYTES = 256 << 20  # far more than fits a core's own caches
NUM_REPEATS = 8

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_SHAPES = ("input_type_shape", "output_type_shape")  # in a profile: [{"float": [1, 3, 4, 4]}, ...]
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Product:
    """One convolution or matrix product."""

    num_flop: int  # operations; a multiplication with its addition counts as two
    num_bytes: int  # size of its inputs, weights and output, each moved once


@dataclass(frozen=True)
class Rates:
    """The best rates measured on this machine."""

    flop_per_s: float
    bytes_per_s: float


def count_products(model: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> list[Product]:
    """Run an ONNX file, whose nodes must have names, once on the CPU, and return the products it computed."""
    options = onnxruntime.SessionOptions()
    # Without optimization: fused nodes would have other names, and prepacked weights no shape.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="livematch-work-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    sizes = _bytes_per_number(onnx.shape_inference.infer_shapes(onnx.load(model)).graph)
    runs = [event for event in events if event["name"].endswith(_SUFFIX) and event["args"]["op_name"] in _PRODUCTS]
    return [_product(event["args"], sizes[event["name"].removesuffix(_SUFFIX)]) for event in runs]


def measure_rates(device: str, dtype: torch.dtype, *, num_repeats: int = NUM_REPEATS) -> Rates:
    """Measure the CPU, with PyTorch's number of threads, or the first CUDA device (without TF32).

    Times the product of two square matrices in PyTorch and, on the CPU in float32, also in ONNX Runtime, and keeps the
    faster; a copy counts both the bytes read and those written. Each time is the best of `num_repeats`, since other
    work can only slow a measurement down.
    """
    size, num_bytes = (GPU_GEMM_SIZE, 4 * COPY_BYTES) if device == "cuda" else (GEMM_SIZE, COPY_BYTES)
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    source, target = (torch.zeros(num_bytes // dtype.itemsize, dtype=dtype, device=device) for _ in range(2))

    def best_s(call: Callable[[], object]) -> float:
        def call_and_wait() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        call_and_wait()
        return min(seconds(call_and_wait) for _ in range(num_repeats))

    gemm_s = best_s(lambda: a @ b)
    copy_s = best_s(lambda: target.copy_(source))
    if device == "cpu":
        header, matrix = '<ir_version: 10, opset_import: ["" : 18]>', f"float[{size}, {size}]"
        gemm = f"gemm ({matrix} a, {matrix} b) => ({matrix} c) {{ c = MatMul(a, b) }}"
        model = onnx.parser.parse_model(f"{header} {gemm}")
        session = open_session(model.SerializeToString(), torch.get_num_threads())
        feeds = {"a": a.numpy(), "b": b.numpy()}
        gemm_s = min(gemm_s, best_s(lambda: session.run(None, feeds)))
    return Rates(flop_per_s=2 * size**3 / gemm_s, bytes_per_s=2 * num_bytes / copy_s)


def bound_s(products: list[Product], rates: Rates) -> float:
    """Return the shortest possible time for these products, one after another, by the roofline model.

    Each product takes as long as its arithmetic or its memory traffic, whichever is slower. See Williams, Waterman,
    Patterson, "Roofline: an insightful visual performance model for multicore architectures", 2009.
    """
    return sum(max(p.num_flop / rates.flop_per_s, p.num_bytes / rates.bytes_per_s) for p in products)


def _bytes_per_number(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the bytes per number of each product, by node name.

    They come from the file, not from the run, because ONNX Runtime computes float16 networks in float32 on a CPU.
    """
    values = [*graph.input, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    return {
        node.name: onnx.helper.tensor_dtype_to_np_dtype(types[node.input[0]]).itemsize
        for node in graph.node
        if node.op_type in _PRODUCTS
    }


def _product(node: dict[str, Any], bytes_per_number: int) -> Product:
    inputs, outputs = ([shape for tensor in node[key] for shape in tensor.values()] for key in _SHAPES)
    first, second = inputs[:2]
    # Each output number is a sum of this many products: of one channel's weights [C / groups, kh, kw], or of one row.
    num_terms = prod(second[1:]) if node["op_name"] == "Conv" else first[-1]
    return Product(2 * prod(outputs[0]) * num_terms, sum(map(prod, inputs + outputs)) * bytes_per_number)
