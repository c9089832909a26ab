"""Cut an ONNX file at operators that a compiler does not take, so that everything else can be compiled in parts."""

import ast
import operator
from collections.abc import Collection, Sequence

import onnx
from onnx.utils import Extractor

from export.tensorrt.profiles import Profile, Range, Shape


def cut(model: onnx.ModelProto, operators: Collection[str]) -> list[onnx.ModelProto]:
    """Return the parts of a model that remain without its nodes of these operators.

    Part k holds the nodes behind k such nodes, counted along the longest path. What passes between parts, or to and
    from such a node, becomes an input or output of them, as does a tensor that nothing uses. Every other node is in
    exactly one part, except that each part has the Constants it uses.

    Args:
        model: its nodes in topological order, as ONNX requires; the bodies of If, Loop and Scan are not cut.
        operators: such as {"RoiAlign"}; a model without them is returned whole.

    Raises ValueError if nothing remains, or if a cut would separate the body of a node from a tensor that it uses.
    """
    if not any(node.op_type in operators for node in model.graph.node):
        return [model]
    computed = {output for node in model.graph.node for output in node.output if output}
    given = {tensor.name for tensor in model.graph.input}
    depth = dict.fromkeys(given, 0)
    part_of: dict[str, int] = {}  # by tensor, of those that a part computes
    inputs: dict[int, dict[str, None]] = {}  # ordered sets
    outputs: dict[int, dict[str, None]] = {}
    used: set[str] = set()

    def give(name: str) -> None:
        if name in part_of:
            outputs.setdefault(part_of[name], {})[name] = None

    for node in model.graph.node:
        names = [name for name in node.input if name in depth]
        part = max((depth[name] for name in names), default=0)
        is_cut = node.op_type in operators
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute) and part:
            raise ValueError(f"node {node.name} ({node.op_type}) has a body behind a cut")
        if node.op_type == "Constant":
            continue
        for name in names:
            if is_cut or part_of.get(name) != part:
                give(name)
                if not is_cut:
                    inputs.setdefault(part, {})[name] = None
        used.update(names)
        depth.update((name, part + is_cut) for name in node.output if name)
        if not is_cut:
            part_of.update((name, part) for name in node.output if name)
    for name in (*(tensor.name for tensor in model.graph.output), *(part_of.keys() - used)):
        give(name)
    if not outputs:
        raise ValueError(f"nothing remains without {', '.join(sorted(operators))}")
    inferred = onnx.shape_inference.infer_shapes(model) if computed - _typed(model) else model
    extractor = Extractor(inferred)
    return [extractor.extract_model(list(inputs.get(part, {})), list(names)) for part, names in sorted(outputs.items())]


def _typed(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in (*model.graph.value_info, *model.graph.output)}


def part_profiles(whole: onnx.ModelProto, part: onnx.ModelProto, engine_profiles: Sequence[Profile]) -> list[Profile]:
    """Return the profiles of a part of `whole`, in the order of those of the whole.

    Raises ValueError, naming the tensor, if the shape of an input does not follow from the shapes of the whole's.
    """
    names = [tensor.name for tensor in part.graph.input]
    result = []
    for profile in engine_profiles:
        passed = [name for name in names if name not in profile.inputs]
        shapes = [
            tensor_shapes(whole, {name: getattr(found, point) for name, found in profile.inputs.items()}, passed)
            for point in ("minimum", "optimum", "maximum")
            if passed
        ]
        inputs = {name: profile.inputs[name] for name in names if name in profile.inputs}
        result.append(
            Profile(profile.name, inputs | {name: Range(*(found[name] for found in shapes)) for name in passed})
        )
    return result


def tensor_shapes(model: onnx.ModelProto, inputs: dict[str, Shape], names: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes of the tensors `names` when the inputs have these shapes.

    They are inferred; where that fails, they are calculated from expressions such as "15*s1 + 8" that the model holds,
    with the sizes that the same letters have elsewhere. Raises ValueError if neither is possible.
    """
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    for tensor in concrete.graph.input:
        for dim, size in zip(tensor.type.tensor_type.shape.dim, inputs[tensor.name], strict=True):
            dim.dim_value = size
    for tensor in concrete.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    del concrete.graph.value_info[:]
    found = onnx.shape_inference.infer_shapes(concrete, data_prop=True).graph
    inferred = {tensor.name: _dimensions(tensor) for tensor in (*found.input, *found.value_info, *found.output)}
    stated = {tensor.name: _dimensions(tensor) for tensor in (*model.graph.input, *model.graph.value_info)}
    sizes = {
        name: int(size)
        for tensor in stated
        for name, size in zip(stated[tensor], inferred.get(tensor, []), strict=False)
        if name.isidentifier() and size.isdecimal() and int(size)
    }
    return {name: _shape(name, inferred.get(name, []), stated.get(name, []), sizes) for name in names}


def _dimensions(tensor: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param or str(dim.dim_value) for dim in tensor.type.tensor_type.shape.dim]


def _shape(name: str, inferred: list[str], stated: list[str], sizes: dict[str, int]) -> Shape:
    shape = []
    for index in range(max(len(inferred), len(stated))):
        size = inferred[index] if index < len(inferred) else "0"
        if not (size.isdecimal() and int(size)) and index < len(stated):
            size = str(_evaluate(stated[index], sizes))
        if not (size.isdecimal() and int(size)):
            expression = stated[index] if index < len(stated) else "unknown"
            raise ValueError(f"tensor {name}: its dimension {index} ({expression}) does not follow from the inputs")
        shape.append(int(size))
    return tuple(shape)


_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def _evaluate(expression: str, sizes: dict[str, int]) -> int:
    """Return the value of a sum or product of integers and named sizes, 0 if it is anything else."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
                return int(_OPERATIONS[type(op)](value(left), value(right)))
        raise KeyError(node)

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return 0


def clear_size_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the names of sizes from inputs and outputs, in place.

    TensorRT takes sizes of equal names for equal, but does not know that "32*H" depends on H.
    """
    for tensor in (*model.graph.input, *model.graph.output):
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.ClearField("dim_param")
    return model
