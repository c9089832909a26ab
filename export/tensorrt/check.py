"""What TensorRT's ONNX parser refuses or silently computes differently, found in the graph, without TensorRT.

python -m export.tensorrt.check model.onnx …

Prints a line per finding: file, node, rule, what is wrong and the page that documents the rule; exit code 1 if any.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto

MIN_OPSET = 16  # RoiAlign of earlier ones is silently unaligned
MAX_TOPK = 3840
MAX_NMS_BOXES = 5000  # of an image
_OPERATORS = "onnx-tensorrt, Supported ONNX Operators"
_SUPPORT_MATRIX = "TensorRT, ONNX operator support"

_UNSUPPORTED = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "DFT",
        "Det",
        "DynamicQuantizeLinear",
        "HammingWindow",
        "HannWindow",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "STFT",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)
# Sums, powers and coordinates that overflow or round too coarsely in half.
_FLOAT32_ONLY = frozenset(
    [
        "Exp",
        "NonMaxSuppression",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "RoiAlign",
        "Softmax",
        "TopK",
    ]
)
_SHAPE_OPERANDS = {  # positions of inputs that decide the output's shape
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
    "TopK": (1,),
}
_AXES = {"CumSum": 1, "Pad": 3, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}  # position of the input; Reduce* besides
_RESIZE_ATTRIBUTES = {  # the values that are supported; the first is ONNX's default
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    "keep_aspect_ratio_policy": ("stretch",),
}
_SUPPORTED_TYPES = frozenset(  # DOUBLE is, too, but computed in FLOAT
    {
        TensorProto.UNDEFINED,  # shape inference does not know it, or it is no tensor
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT8,
        TensorProto.INT4,
        TensorProto.UINT8,
        TensorProto.BOOL,
    }
)


@dataclass(frozen=True)
class Finding:
    node: str  # its name, or that of the tensor or "graph" where no node is to blame
    rule: str
    message: str
    source: str  # documentation page

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message} ({self.source})"


class _Graph:
    """A graph, or the body of a node in it, with look-ups by tensor name; a body sees what is outside."""

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
            self.border = outer.border  # of the network
            self.producers = outer.producers | self.producers
            self.constants = outer.constants | self.constants
            self.shapes = outer.shapes | self.shapes
            self.types = outer.types | self.own_types

    def with_bodies(self) -> Iterator["_Graph"]:
        """This graph and the bodies of If, Loop and Scan, however deep."""
        yield self
        for attribute in (attribute for node in self.nodes for attribute in node.attribute):
            if attribute.type == AttributeProto.GRAPH:
                yield from _Graph(attribute.g, None, self).with_bodies()

    def is_data_dependent(self, name: str) -> bool:
        """Whether a value depends on what is in an input, not on the shapes of tensors alone."""
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
    """What a Constant holds, if it is a tensor or integers, as axes are."""
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name in ("value_int", "value_ints"):
        return onnx.numpy_helper.from_array(np.array(value, np.int64))
    return value if attribute.name == "value" else None


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _check_opset(graph: _Graph) -> Iterator[Finding]:
    if graph.opset is not None and graph.opset < MIN_OPSET:
        yield Finding("graph", "opset", f"opset {graph.opset}, at least {MIN_OPSET} needed", _OPERATORS)


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
        if dtype not in _SUPPORTED_TYPES:
            message = f"tensor of type {TensorProto.DataType.Name(dtype)}"
            node = graph.producers.get(name)
            yield Finding(node.name if node is not None else name, "type", message, _OPERATORS)


def _check_roi_align(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "RoiAlign":
            for name in ("coordinate_transformation_mode", "sampling_ratio"):
                if name not in _attributes(node):
                    message = f"{name} is not written, and the plugin's default differs from ONNX's"
                    yield Finding(node.name, "roialign", message, "TensorRT, ROIAlign plugin")


def _check_topk(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type != "TopK":
            continue
        if not _attributes(node).get("sorted", 1):
            yield Finding(node.name, "topk-sorted", "sorted=0; only sorted output exists", _OPERATORS)
        constant = graph.constants.get(node.input[1])
        if constant is not None and (k := int(onnx.numpy_helper.to_array(constant).item())) > MAX_TOPK:
            yield Finding(node.name, "topk-limit", f"K is {k}, at most {MAX_TOPK} possible", "TensorRT, ITopKLayer")


def _check_resize(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "Resize" and _attributes(node).get("antialias", 0):
            yield Finding(node.name, "antialias", "antialias=1 is not supported", _OPERATORS)
        for name, supported in _RESIZE_ATTRIBUTES.items() if node.op_type == "Resize" else ():
            value = _attributes(node).get(name, supported[0].encode())
            if value not in [text.encode() for text in supported]:
                yield Finding(node.name, "resize", f"{name}={value.decode()} is not supported", _OPERATORS)


def _check_scatter(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "ScatterND" and "reduction" in _attributes(node):
            message = "TensorRT up to 10.7 refuses the attribute reduction, even ONNX's default, none"
            yield Finding(node.name, "scatter-reduction", message, "onnx-tensorrt, issue 957 and pull request 1013")


def _check_nms(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        shape = graph.shapes.get(node.input[0], []) if node.op_type == "NonMaxSuppression" else []
        if len(shape) == 3 and shape[1] > MAX_NMS_BOXES:
            message = f"{shape[1]} boxes, at most {MAX_NMS_BOXES} are looked at"
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
        if node.op_type in _UNSUPPORTED or node.domain not in ("", "ai.onnx"):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            yield Finding(node.name, "operator", f"{operator} is not supported", _SUPPORT_MATRIX)


def _check_data_dependence(graph: _Graph) -> Iterator[Finding]:
    source = "TensorRT, Working with Dynamic Shapes"
    for node in graph.nodes:
        if node.op_type == "NonZero":
            yield Finding(node.name, "data-dependent", "the output's size depends on the values", source)
        for position in _SHAPE_OPERANDS.get(node.op_type, ()):
            if position < len(node.input) and graph.is_data_dependent(node.input[position]):
                message = f"the shape operand {node.input[position]} of {node.op_type} depends on an input's values"
                yield Finding(node.name, "data-dependent", message, source)


def _check_axes(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        position = 1 if node.op_type.startswith("Reduce") else _AXES.get(node.op_type, len(node.input))
        for name in node.input[position : position + 1]:
            if name and name not in graph.constants:
                yield Finding(node.name, "constant-axes", f"axes {name} are no constant", _OPERATORS)


def _check_islands(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        halves = [name for name in node.input if graph.types.get(name) == TensorProto.FLOAT16]
        if node.op_type in _FLOAT32_ONLY and halves:
            message = f"{node.op_type} of half {halves[0]} has to be computed in float32"
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
    """Every violation in the graph; none means that TensorRT computes what ONNX says, as far as that is documented."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    graph = _Graph(onnx.shape_inference.infer_shapes(model).graph, opset)
    return [finding for scope in graph.with_bodies() for rule in _RULES for finding in rule(scope)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    num_findings = 0
    for path in parser.parse_args(argv).files:
        if not path.is_file():
            print(f"{path}: no such file", file=sys.stderr)
            return 2
        try:
            model = onnx.load(path)
        except DecodeError:
            print(f"{path}: not an ONNX file", file=sys.stderr)
            return 2
        for finding in check_model(model):
            print(f"{path}: {finding}")
            num_findings += 1
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
