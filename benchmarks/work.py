"""The work a model cannot avoid: floating-point operations and bytes of its convolutions and matrix products.

Counted from the shapes that ONNX Runtime itself reports for one run, so that sizes which depend on the picture (crops,
proposals, padding) are those of that run. What lies between the products (activations, norms, NMS, resizing) counts as
nothing: an ideal engine computes it while the products' numbers pass by.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

_BYTES_PER_NUMBER = {"float": 4, "float16": 2, "double": 8}
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Product:
    """One convolution or matrix product; a multiplication with its addition is two operations.

    num_bytes: its inputs, weights and output, each moved once.
    """

    num_flop: int
    num_bytes: int


@dataclass(frozen=True)
class Rates:
    """What the hardware does at best, as measured."""

    flop_per_s: float
    bytes_per_s: float


def count_products(model: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> list[Product]:
    """The products of one run of an ONNX file on the CPU."""
    options = onnxruntime.SessionOptions()
    # As written in the file: fused nodes have other names, and packed weights no shape.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="livematch-work-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return [_product(node) for node in nodes if node["op_name"] in _PRODUCTS]


def bound_s(products: list[Product], rates: Rates) -> float:
    """The least time for these products, one after another: each waits for arithmetic or for memory (roofline).

    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
    """
    return sum(max(p.num_flop / rates.flop_per_s, p.num_bytes / rates.bytes_per_s) for p in products)


def _product(node: dict[str, Any]) -> Product:
    tensors = [_shape(tensor) for tensor in node["input_type_shape"]]
    ((output, output_bytes),) = [_shape(tensor) for tensor in node["output_type_shape"]]
    first, second = tensors[0][0], tensors[1][0]
    # Of every output number: the weights of one channel [C / groups, kh, kw], or the length of a row.
    num_terms = prod(second[1:]) if node["op_name"] == "Conv" else first[-1]
    return Product(2 * prod(output) * num_terms, sum(num_bytes for _, num_bytes in tensors) + output_bytes)


def _shape(tensor: dict[str, list[int]]) -> tuple[list[int], int]:
    """The dimensions and the size in bytes of {"float": [1, 3, 4, 4]}."""
    ((dtype, shape),) = tensor.items()
    return shape, prod(shape) * _BYTES_PER_NUMBER[dtype]
