"""Find what TensorRT's ONNX parser refuses or silently computes differently, from the graph alone, without TensorRT.

python -m export.tensorrt.check model.onnx …

Prints one line for each finding: file, node, rule, what is wrong, and the page that documents the rule. The exit code
is 3 if there are findings.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto

from export.tensorrt.operators import (
    AXES,
    FLOAT32_ONLY,
    MAX_NMS_BOXES,
    MAX_TOPK,
    MIN_OPSET,
    RESIZE_ATTRIBUTES,
    SHAPE_OPERANDS,
    SUPPORTED_TYPES,
    UNSUPPORTED,
)
from livematch.cli.commands import EXIT_FAILURES, run_command

_OPERATORS = "onnx-tensorrt, Supported ONNX Operators"
_SUPPORT_MATRIX = "TensorRT, ONNX operator support"


@dataclass(frozen=True)
class Finding:
    node: str  # its name; or a tensor's name, or "graph", if no node is at fault
    rule: str
    message: str
    source: str  # documentation page

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message} ({self.source})"


class _Graph:
    """A graph, or the body of a node in it, with look-ups by tensor name; a body sees the tensors outside it."""

    def __init__(self, graph: onnx.GraphProto, opset: int | None, outer: "_Graph | None" = None) -> None:
        self.opset = opset
        self.nodes = list(graph.node)
        self.inputs = {tensor.name for tensor in graph.input}
        self.border = self.inputs | {tensor.name for tensor in graph.output}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and (constant := _constant(node)) is not None:
                self.constants[node.output[0]] = constant
        declared = [*graph.input, *graph.value_info, *graph.output]
        self.shapes = {tensor.name: [dim.dim_value for dim in tensor.type.tensor_type.shape.dim] for tensor in declared}
        self.own_types = {tensor.name: tensor.type.tensor_type.elem_type for tensor in declared}
        self.own_types |= {name: tensor.data_type for name, tensor in self.constants.items()}
        self.types = self.own_types
        if outer is not None:
            self.inputs = outer.inputs | self.inputs
            self.border = outer.border  # inputs and outputs of the network
            self.producers = outer.producers | self.producers
            self.constants = outer.constants | self.constants
            self.shapes = outer.shapes | self.shapes
            self.types = outer.types | self.own_types

    def with_bodies(self) -> Iterator["_Graph"]:
        """Yield this graph and the bodies of If, Loop and Scan, at any depth."""
        yield self
        for attribute in (attribute for node in self.nodes for attribute in node.attribute):
            if attribute.type == AttributeProto.GRAPH:
                yield from _Graph(attribute.g, None, self).with_bodies()

    def is_data_dependent(self, name: str) -> bool:
        """Return whether a tensor depends on the values of an input, not only on the shapes of tensors."""
        pending, seen = [name], set()
        while pending:
            current = pending.pop()
            if not current or current in seen or current in self.constants:
                continue
            seen.add(current)
            if current in self.inputs:
                return True
            node = self.producers[current]
            if node.op_type not in ("Shape", "Size"):
                pending.extend(node.input)
        return False


def _constant(node: NodeProto) -> TensorProto | None:
    """Return the value of a Constant node that holds a tensor or integers, such as axes, else None."""
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_int", "value_ints"):
        return onnx.numpy_helper.from_array(np.array(value, np.int64))
    return value if attribute.name == "value" else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _check_opset(graph: _Graph) -> Iterator[Finding]:
    if graph.opset is not None and graph.opset < MIN_OPSET:
        yield Finding("graph", "opset", f"opset is {graph.opset}, must be at least {MIN_OPSET}", _OPERATORS)


def _check_uint8(graph: _Graph) -> Iterator[Finding]:
    def is_uint8(name: str) -> bool:
        return graph.types.get(name) == TensorProto.UINT8

    for node in graph.nodes:
        for name in (*node.input, *node.output):
            is_border = node.op_type == "Cast" and name in graph.border
            if is_uint8(name) and not is_border:
                message = f"{node.op_type} has UINT8 tensor {name}; only a Cast at the border may"
                yield Finding(node.name, "uint8-border", message, _OPERATORS)


def _check_types(graph: _Graph) -> Iterator[Finding]:
    for name, dtype in graph.own_types.items():
        if dtype not in SUPPORTED_TYPES:
            message = f"tensor of type {TensorProto.DataType.Name(dtype)}"
            node = graph.producers.get(name)
            yield Finding(node.name if node is not None else name, "type", message, _OPERATORS)


def _check_roi_align(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "RoiAlign":
            for name in ("coordinate_transformation_mode", "sampling_ratio"):
                if name not in _attributes(node):
                    message = f"{name} is not set, and the plugin's default differs from ONNX's"
                    yield Finding(node.name, "roialign", message, "TensorRT, ROIAlign plugin")


def _check_topk(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type != "TopK":
            continue
        if not _attributes(node).get("sorted", 1):
            yield Finding(node.name, "topk-sorted", "sorted=0 is not supported", _OPERATORS)
        constant = graph.constants.get(node.input[1])
        if constant is not None and (k := int(onnx.numpy_helper.to_array(constant).item())) > MAX_TOPK:
            yield Finding(node.name, "topk-limit", f"K is {k}, limit {MAX_TOPK}", "TensorRT, ITopKLayer")


def _check_resize(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "Resize" and _attributes(node).get("antialias", 0):
            yield Finding(node.name, "antialias", "antialias=1 is not supported", _OPERATORS)
        for name, supported in RESIZE_ATTRIBUTES.items() if node.op_type == "Resize" else ():
            value = _attributes(node).get(name, supported[0].encode())
            if value not in [text.encode() for text in supported]:
                yield Finding(node.name, "resize", f"{name}={value.decode()} is not supported", _OPERATORS)


def _check_scatter(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "ScatterND" and "reduction" in _attributes(node):
            message = "TensorRT up to 10.7 refuses the attribute reduction, even with ONNX's default, none"
            yield Finding(node.name, "scatter-reduction", message, "onnx-tensorrt, issue 957 and pull request 1013")


def _check_nms(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        shape = graph.shapes.get(node.input[0], []) if node.op_type == "NonMaxSuppression" else []
        if len(shape) == 3 and shape[1] > MAX_NMS_BOXES:
            message = f"{shape[1]} boxes, of which only {MAX_NMS_BOXES} are considered"
            yield Finding(node.name, "nms-limit", message, "TensorRT, INMSLayer")


def _check_pooling(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in ("AveragePool", "LpPool", "MaxPool"):
            continue
        if any(dilation != 1 for dilation in _attributes(node).get("dilations", ())):
            yield Finding(node.name, "pooling", "dilations other than 1 are not supported", _OPERATORS)
        if len(node.output) > 1 and node.output[1]:
            yield Finding(node.name, "pooling", "the output Indices is not supported", _OPERATORS)


def _check_operators(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type in UNSUPPORTED or node.domain not in ("", "ai.onnx"):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            yield Finding(node.name, "operator", f"{operator} is not supported", _SUPPORT_MATRIX)


def _check_data_dependence(graph: _Graph) -> Iterator[Finding]:
    source = "TensorRT, Working with Dynamic Shapes"
    for node in graph.nodes:
        if node.op_type == "NonZero":
            yield Finding(node.name, "data-dependent", "the output's size depends on the values", source)
        for position in SHAPE_OPERANDS.get(node.op_type, ()):
            if position < len(node.input) and graph.is_data_dependent(node.input[position]):
                message = f"the shape operand {node.input[position]} of {node.op_type} depends on an input's values"
                yield Finding(node.name, "data-dependent", message, source)


def _check_axes(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        position = 1 if node.op_type.startswith("Reduce") else AXES.get(node.op_type, len(node.input))
        for name in node.input[position : position + 1]:
            if name and name not in graph.constants:
                yield Finding(node.name, "constant-axes", f"axes {name} are not constant", _OPERATORS)


def _check_islands(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        halves = [name for name in node.input if graph.types.get(name) == TensorProto.FLOAT16]
        if node.op_type in FLOAT32_ONLY and halves:
            message = f"{node.op_type} of float16 tensor {halves[0]} must be computed in float32"
            yield Finding(node.name, "float32-island", message, "TensorRT, Strongly Typed Networks")


_RULES: tuple[Callable[[_Graph], Iterator[Finding]], ...] = (
    _check_opset,
    _check_uint8,
    _check_types,
    _check_roi_align,
    _check_topk,
    _check_resize,
    _check_scatter,
    _check_nms,
    _check_pooling,
    _check_operators,
    _check_data_dependence,
    _check_axes,
    _check_islands,
)


def check_model(model: onnx.ModelProto) -> list[Finding]:
    """Return every violation; without any, TensorRT computes the graph as ONNX defines it, as far as documented."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    graph = _Graph(onnx.shape_inference.infer_shapes(model).graph, opset)
    return [finding for scope in graph.with_bodies() for rule in _RULES for finding in rule(scope)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    files = parser.parse_args(argv).files
    return run_command("export.tensorrt.check", lambda: _check_files(files))


def _check_files(files: Sequence[Path]) -> int:
    num_findings = 0
    for path in files:
        try:
            model = onnx.load(path)
        except DecodeError as error:
            raise ValueError(f"{path}: not an ONNX file") from error
        for finding in check_model(model):
            print(f"{path}: {finding}")
            num_findings += 1
    return EXIT_FAILURES if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
