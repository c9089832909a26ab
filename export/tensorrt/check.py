"""List what TensorRT would refuse in an ONNX file, or silently compute differently; works without TensorRT.

python -m export.tensorrt.check model.onnx …

Prints one line for each finding: file, node, rule, what is wrong, and the page that documents the rule. The exit code
is 3 if there are findings.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto

from export.tensorrt import operators
from livematch.cli.commands import EXIT_FAILURES, run_command

Violation = tuple[str, str, str]  # of a rule by one node: rule, message and source of a `Finding`

_OPERATORS = "onnx-tensorrt, Supported ONNX Operators"


@dataclass(frozen=True)
class Finding:
    node: str  # the node's name; a tensor's name, or "graph", where no node is at fault
    rule: str
    message: str
    source: str  # documentation page

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message} ({self.source})"


class _Graph:
    """Look-ups by tensor name in a graph or in the body of an If, Loop or Scan, which also sees the tensors outside."""

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
        for node in self.nodes:
            for attribute in node.attribute:
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


def _check_opset(graph: _Graph) -> Iterator[Finding]:
    if graph.opset is not None and graph.opset < operators.MIN_OPSET:
        yield Finding("graph", "opset", f"opset is {graph.opset}, must be at least {operators.MIN_OPSET}", _OPERATORS)


def _check_types(graph: _Graph) -> Iterator[Finding]:
    for name, dtype in graph.own_types.items():
        if dtype not in operators.SUPPORTED_TYPES:
            node = graph.producers.get(name)
            message = f"tensor of type {TensorProto.DataType.Name(dtype)}"
            yield Finding(node.name if node is not None else name, "type", message, _OPERATORS)


def _check_uint8(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    for name in (*node.input, *node.output):
        is_border = node.op_type == "Cast" and name in graph.border
        if graph.types.get(name) == TensorProto.UINT8 and not is_border:
            message = f"{node.op_type} has UINT8 tensor {name}; only a Cast at the border may"
            yield "uint8-border", message, _OPERATORS


def _check_one_operator(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    """Apply the rules that concern a single operator."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    match node.op_type:
        case "RoiAlign":
            for name in sorted({"coordinate_transformation_mode", "sampling_ratio"} - set(attributes)):
                message = f"{name} is not set, and the plugin's default differs from ONNX's"
                yield "roialign", message, "TensorRT, ROIAlign plugin"
        case "TopK":
            if not attributes.get("sorted", 1):
                yield "topk-sorted", "sorted=0 is not supported", _OPERATORS
            constant = graph.constants.get(node.input[1])
            if constant is not None and (k := int(onnx.numpy_helper.to_array(constant).item())) > operators.MAX_TOPK:
                yield "topk-limit", f"K is {k}, limit {operators.MAX_TOPK}", "TensorRT, ITopKLayer"
        case "Resize":
            if attributes.get("antialias", 0):
                yield "antialias", "antialias=1 is not supported", _OPERATORS
            for name, supported in operators.RESIZE_ATTRIBUTES.items():
                value = attributes[name].decode() if name in attributes else supported[0]
                if value not in supported:
                    yield "resize", f"{name}={value} is not supported", _OPERATORS
        case "ScatterND" if "reduction" in attributes:
            message = "TensorRT up to 10.7 refuses the attribute reduction, even with ONNX's default, none"
            yield "scatter-reduction", message, "onnx-tensorrt, issue 957 and pull request 1013"
        case "NonMaxSuppression":
            shape = graph.shapes.get(node.input[0], [])
            if len(shape) == 3 and shape[1] > operators.MAX_NMS_BOXES:
                message = f"{shape[1]} boxes, of which only {operators.MAX_NMS_BOXES} are considered"
                yield "nms-limit", message, "TensorRT, INMSLayer"
        case "AveragePool" | "LpPool" | "MaxPool":
            if any(dilation != 1 for dilation in attributes.get("dilations", ())):
                yield "pooling", "dilations other than 1 are not supported", _OPERATORS
            if len(node.output) > 1 and node.output[1]:
                yield "pooling", "the output Indices is not supported", _OPERATORS


def _check_supported(_: _Graph, node: NodeProto) -> Iterator[Violation]:
    if node.op_type in operators.UNSUPPORTED or node.domain not in ("", "ai.onnx"):
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        yield "operator", f"{operator} is not supported", "TensorRT, ONNX operator support"


def _check_data_dependence(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    source = "TensorRT, Working with Dynamic Shapes"
    if node.op_type == "NonZero":
        yield "data-dependent", "the output's size depends on the values", source
    for position in operators.SHAPE_OPERANDS.get(node.op_type, ()):
        if position < len(node.input) and graph.is_data_dependent(node.input[position]):
            message = f"the shape operand {node.input[position]} of {node.op_type} depends on an input's values"
            yield "data-dependent", message, source


def _check_axes(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    position = 1 if node.op_type.startswith("Reduce") else operators.AXES.get(node.op_type, len(node.input))
    for name in node.input[position : position + 1]:
        if name and name not in graph.constants:
            yield "constant-axes", f"axes {name} are not constant", _OPERATORS


def _check_islands(graph: _Graph, node: NodeProto) -> Iterator[Violation]:
    halves = [name for name in node.input if graph.types.get(name) == TensorProto.FLOAT16]
    if node.op_type in operators.FLOAT32_ONLY and halves:
        message = f"{node.op_type} of float16 tensor {halves[0]} must be computed in float32"
        yield "float32-island", message, "TensorRT, Strongly Typed Networks"


_GRAPH_RULES = (_check_opset, _check_types)
_NODE_RULES = (
    _check_uint8,
    _check_one_operator,
    _check_supported,
    _check_data_dependence,
    _check_axes,
    _check_islands,
)


def check_model(model: onnx.ModelProto) -> list[Finding]:
    """Return every violation of TensorRT's documented rules, in the graph and in the bodies of its nodes.

    A model without findings may still be refused or computed differently for a reason that is not documented.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    graph = _Graph(onnx.shape_inference.infer_shapes(model).graph, opset)
    findings = []
    for scope in graph.with_bodies():
        findings += [finding for rule in _GRAPH_RULES for finding in rule(scope)]
        for rule in _NODE_RULES:
            findings += [Finding(node.name, *violation) for node in scope.nodes for violation in rule(scope, node)]
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
