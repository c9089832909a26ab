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
import onnx
import onnxruntime

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_SHAPES = ("input_type_shape", "output_type_shape")  # in a profile: [{"float": [1, 3, 4, 4]}, ...]
_SUFFIX = "_kernel_time"


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
    """The products of one run, on the CPU, of an ONNX file whose nodes have names."""
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
    sizes = _bytes_per_number(onnx.shape_inference.infer_shapes(onnx.load(model)).graph)
    runs = [event for event in events if event["name"].endswith(_SUFFIX) and event["args"]["op_name"] in _PRODUCTS]
    return [_product(event["args"], sizes[event["name"].removesuffix(_SUFFIX)]) for event in runs]


def bound_s(products: list[Product], rates: Rates) -> float:
    """The least time for these products, one after another: each waits for arithmetic or for memory (roofline).

    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
    """
    return sum(max(p.num_flop / rates.flop_per_s, p.num_bytes / rates.bytes_per_s) for p in products)


def _bytes_per_number(graph: onnx.GraphProto) -> dict[str, int]:
    """Of each product by its node's name, from the file: on a CPU the runtime computes halves as float32."""
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
    # Of every output number: the weights of one channel [C / groups, kh, kw], or the length of a row.
    num_terms = prod(second[1:]) if node["op_name"] == "Conv" else first[-1]
    return Product(2 * prod(outputs[0]) * num_terms, sum(map(prod, inputs + outputs)) * bytes_per_number)
