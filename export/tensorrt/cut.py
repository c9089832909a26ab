"""Cut an ONNX file at operators that a compiler does not take, so that everything else can be compiled in pieces."""

from collections.abc import Collection, Sequence
from math import prod

import onnx
from onnx.utils import Extractor

from export.tensorrt.profiles import Profile, Range, Shape


def cut(model: onnx.ModelProto, operators: Collection[str]) -> list[onnx.ModelProto]:
    """Return the parts of a model that remain without its nodes of these operators.

    Part k has the nodes whose inputs come through k such nodes, along the longest path. What passes from one part to
    another, or to and from such a node, is an input or output of both. Every other node is in exactly one part, except
    that each part has the constants it needs.

    Args:
        model: its nodes in topological order, as ONNX requires; operators in the bodies of If, Loop and Scan are not
            looked at.
        operators: such as {"RoiAlign"}; a model without them is returned whole.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    depth: dict[str, int] = {}  # of each tensor that a node computes
    inputs: list[dict[str, None]] = []  # of each part; an ordered set, as are the outputs
    outputs: list[dict[str, None]] = []
    given = {tensor.name for tensor in model.graph.input}
    for node in model.graph.node:
        used = [name for name in node.input if name in producers or name in given]
        part = max((depth.get(name, 0) for name in used), default=0)
        is_cut = node.op_type in operators
        depth.update(dict.fromkeys(node.output, part + is_cut))
        while len(inputs) <= part + is_cut:
            inputs.append({})
            outputs.append({})
        for name in used:
            producer = producers.get(name)
            is_inside = producer is not None and producer.op_type not in operators and depth[name] == part
            if producer is not None and producer.op_type == "Constant":
                continue
            if not is_cut and not is_inside:
                inputs[part][name] = None
            if producer is not None and producer.op_type not in operators and (is_cut or not is_inside):
                outputs[depth[name]][name] = None
    for tensor in model.graph.output:
        if producers[tensor.name].op_type not in operators:
            outputs[depth[tensor.name]][tensor.name] = None
    extractor = Extractor(model)
    return [
        _extract(extractor, list(names), list(results))
        for names, results in zip(inputs, outputs, strict=True)
        if results
    ]


def _extract(extractor: Extractor, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    part: onnx.ModelProto = extractor.extract_model(inputs, outputs)
    return part


def part_profiles(whole: onnx.ModelProto, part: onnx.ModelProto, engine_profiles: Sequence[Profile]) -> list[Profile]:
    """Return the profiles of a part of `whole`, in the order of those of the whole.

    A size of an input of the part must be a number, the name of a size of an input of the whole, or a product of these,
    such as "1000*B"; ValueError otherwise.
    """
    return [Profile(profile.name, _ranges(whole, part, profile)) for profile in engine_profiles]


def _ranges(whole: onnx.ModelProto, part: onnx.ModelProto, profile: Profile) -> dict[str, Range]:
    found = {}
    for tensor in part.graph.input:
        if tensor.name in profile.inputs:
            found[tensor.name] = profile.inputs[tensor.name]
            continue
        points = []
        for point in ("minimum", "optimum", "maximum"):
            sizes = _sizes(whole, {name: getattr(shapes, point) for name, shapes in profile.inputs.items()})
            points.append(tuple(_evaluate(size, sizes, tensor.name) for size in _dimensions(tensor)))
        found[tensor.name] = Range(*points)
    return found


def _sizes(whole: onnx.ModelProto, shapes: dict[str, Shape]) -> dict[str, int]:
    """Return the sizes by name, such as B, that the shapes of the inputs give."""
    return {
        str(name): size
        for tensor in whole.graph.input
        for name, size in zip(_dimensions(tensor), shapes[tensor.name], strict=True)
    }


def _dimensions(tensor: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param or str(dim.dim_value) for dim in tensor.type.tensor_type.shape.dim]


def _evaluate(expression: str, sizes: dict[str, int], tensor: str) -> int:
    factors = expression.split("*")
    unknown = [factor for factor in factors if not factor.isdecimal() and factor not in sizes]
    if unknown:
        raise ValueError(f"tensor {tensor} has a dimension {expression!r}, and {unknown[0]!r} is no size of an input")
    return prod(int(factor) if factor.isdecimal() else sizes[factor] for factor in factors)


def without_size_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs have no names of sizes.

    TensorRT takes equal names for equal sizes, also where an expression such as "32*H" is only part of a name's use.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in (*copy.graph.input, *copy.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.ClearField("dim_param")
    return copy
