"""Count the work a model cannot avoid: floating-point operations and bytes of its convolutions and matrix products.

The counts come from the tensor shapes that ONNX Runtime reports for one run, so that sizes which depend on the image
(crops, proposals, padding) are those of that run. Operations between the products (activations, norms, NMS, resizing)
count as nothing: an ideal engine computes them on the fly, on numbers it has already loaded.
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
    """One convolution or matrix product.

    Attributes:
        num_flop: operations; a multiplication with its addition counts as two.
        num_bytes: size of its inputs, weights and output, each moved once.
    """

    num_flop: int
    num_bytes: int


@dataclass(frozen=True)
class Rates:
    """The best rates measured on this hardware."""

    flop_per_s: float
    bytes_per_s: float


def count_products(model: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> list[Product]:
    """Run an ONNX file, whose nodes must have names, once on the CPU, and return the products it computed."""
    options = onnxruntime.SessionOptions()
    # Run the graph as it is in the file: fused nodes would have other names, and prepacked weights no shape.
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
    """Return the shortest possible time for these products, one after another, by the roofline model.

    Each product takes as long as its arithmetic or its memory traffic, whichever is slower. See Williams, Waterman,
    Patterson, "Roofline: an insightful visual performance model for multicore architectures", 2009.
    """
    return sum(max(p.num_flop / rates.flop_per_s, p.num_bytes / rates.bytes_per_s) for p in products)


def _bytes_per_number(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the bytes per number of each product, by node name.

    The file says it, not the run: on a CPU, ONNX Runtime computes float16 networks in float32.
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
    # Terms of the sum behind every output number: one channel's weights [C / groups, kh, kw], or the row length.
    num_terms = prod(second[1:]) if node["op_name"] == "Conv" else first[-1]
    return Product(2 * prod(outputs[0]) * num_terms, sum(map(prod, inputs + outputs)) * bytes_per_number)
