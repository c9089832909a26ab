"""Compile ONNX files with TensorRT, and list what it refuses, warns of, or would silently compute differently.

python -m export.tensorrt.check R/detector/1/model.onnx R/embedder_*/1/model.onnx

Needs no GPU: without one, or without TensorRT, it compiles with TensorRT for RTX, which cannot take RoiAlign there; a
file is then cut and compiled in parts. Prints one line for each finding and a table of the GPU memory that the engines
need; the exit code is 3 if a file does not compile or is computed differently, 2 if the engines do not fit. Warnings of
TensorRT are printed, but are no failures.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from export.config import PipelineConfig, add_pipeline_option, load_pipeline, repository_pipeline
from export.onnx.files import load
from export.signature import Signature, signatures
from export.tensorrt.build import BuildError, build_engine
from export.tensorrt.cut import clear_size_names, cut, part_profiles, tensor_shapes
from export.tensorrt.library import is_for_rtx, load_compiler
from export.tensorrt.memory import ModelMemory, require_fit, table
from export.tensorrt.profiles import Profile, profiles
from livematch.cli.commands import EXIT_FAILURES, run_command

MIN_OPSET = 16  # RoiAlign of earlier opsets is silently unaligned
MAX_NMS_BOXES = 5000  # per image; TensorRT ignores the others
FLOAT32_ONLY = {
    *("Exp", "NonMaxSuppression", "Pow", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    *("RoiAlign", "Softmax", "TopK"),
}
"""Sums, powers and coordinates that overflow or round too coarsely in half precision."""


@dataclass(frozen=True)
class Finding:
    """What TensorRT accepts in a node, but computes differently from ONNX."""

    node: str
    rule: str
    message: str
    source: str  # documentation page

    def __str__(self) -> str:
        return f"{self.node}: {self.rule}: {self.message} ({self.source})"


@dataclass(frozen=True)
class Compiled:
    """What TensorRT says of one ONNX file."""

    memory: ModelMemory
    warnings: list[str]
    num_parts: int


def check_model(model: onnx.ModelProto) -> list[Finding]:
    """Return what TensorRT would silently compute differently, in the graph and in the bodies of If, Loop and Scan."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(" ".join(str(error).split())) from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), MIN_OPSET)
    return [
        Finding(node.name or "".join(node.output[:1]), *finding)
        for graph, tensors in _graphs(inferred.graph, {})
        for node in graph.node
        for finding in _check_node(node, tensors, opset)
    ]


Tensors = dict[str, tuple[int, list[int]]]  # data type and sizes, by name


def _graphs(graph: onnx.GraphProto, outer: Tensors) -> Iterator[tuple[onnx.GraphProto, Tensors]]:
    """Yield the graph and the bodies of its nodes, at any depth, each with the tensors that it sees."""
    tensors = dict(outer)
    for tensor in (*graph.input, *graph.value_info, *graph.output):
        kind = tensor.type.tensor_type
        tensors[tensor.name] = kind.elem_type, [dim.dim_value for dim in kind.shape.dim]
    tensors.update({tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer})
    yield graph, tensors
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g, tensors)


def _check_node(node: NodeProto, tensors: Tensors, opset: int) -> Iterator[tuple[str, str, str]]:
    """Yield rule, message and source of each `Finding`."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        message = (
            f"TensorRT takes {node.domain}::{node.op_type} for the operator {node.op_type} of ONNX, if there is one"
        )
        yield "domain", message, "onnx-tensorrt, Supported ONNX Operators"
    for name in node.output:
        if tensors.get(name, (0, []))[0] == TensorProto.DOUBLE:
            yield "double", f"{name} would be computed in float32", "onnx-tensorrt, Supported ONNX Operators"
    halves = [name for name in node.input if tensors.get(name, (0, []))[0] == TensorProto.FLOAT16]
    if node.op_type in FLOAT32_ONLY and halves:
        message = f"{node.op_type} of float16 tensor {halves[0]} must be computed in float32"
        yield "float32-island", message, "TensorRT, Strongly Typed Networks"
    match node.op_type:
        case "RoiAlign":
            for name in sorted({"coordinate_transformation_mode", "sampling_ratio"} - set(attributes)):
                message = f"{name} is not set, and the plugin's default differs from ONNX's"
                yield "roialign", message, "TensorRT, ROIAlign plugin"
            if opset < MIN_OPSET:
                yield "opset", f"opset is {opset}; RoiAlign is aligned from {MIN_OPSET} on", "TensorRT, ROIAlign plugin"
        case "ScatterND" if "reduction" in attributes:
            message = "TensorRT up to 10.7 refuses the attribute reduction, even with ONNX's default, none"
            yield "scatter-reduction", message, "onnx-tensorrt, issue 957 and pull request 1013"
        case "NonMaxSuppression" if node.input:
            shape = tensors.get(node.input[0], (0, []))[1]
            if len(shape) == 3 and shape[1] > MAX_NMS_BOXES:
                message = f"{shape[1]} boxes, of which only {MAX_NMS_BOXES} are considered"
                yield "nms-limit", message, "TensorRT, INMSLayer"


def compile_model(trt: Any, model: onnx.ModelProto, name: str, config: PipelineConfig) -> Compiled:
    """Compile the detector or an embedder, in parts where `trt` cannot take it whole.

    Args:
        trt: what `load_compiler` returns.
        name: the model's name in the repository, which decides its profiles.

    Raises:
        BuildError: TensorRT refuses the file, or a part of it; the message lists its errors.
        ValueError: `name` has no engine.
    """
    engine_profiles = profiles(name, config)
    if is_for_rtx(trt) and any(node.op_type == "NonMaxSuppression" for node in model.graph.node):
        raise BuildError("TensorRT for RTX has no NonMaxSuppression; export the detector with --precision fp16")
    parts = cut(model, {"RoiAlign"} if is_for_rtx(trt) else ())  # of RTX's, it needs a driver even to be parsed
    engines = []
    scratch_bytes = _passed_bytes(model, parts, engine_profiles)
    with tempfile.TemporaryDirectory() as folder:
        for index, part in enumerate(parts):
            path = Path(folder) / f"{name}_part{index + 1}_of_{len(parts)}.onnx"
            profiles_of_part = part_profiles(model, part, engine_profiles)
            onnx.save(clear_size_names(part), path)
            try:
                engines.append(build_engine(trt, path, profiles_of_part))
            except BuildError as error:
                raise BuildError(str(error).replace(str(path), path.stem)) from error
    # The parts run one after the other. What passes between them counts for all the time, which is an upper bound.
    largest = map(max, zip(*(engine.scratch_bytes for engine in engines), strict=True))
    scratch_bytes = [passed + size for passed, size in zip(scratch_bytes, largest, strict=True)]
    weights_bytes = sum(engine.weights_bytes for engine in engines)
    instances = config.serving_of(name).num_instances
    return Compiled(
        memory=ModelMemory(name, engine_profiles, scratch_bytes, weights_bytes, instances),
        warnings=[message for engine in engines for message in engine.messages],
        num_parts=len(parts),
    )


def _passed_bytes(whole: onnx.ModelProto, parts: Sequence[onnx.ModelProto], of: Sequence[Profile]) -> list[int]:
    """Return, for each profile, the bytes of the tensors at the cuts; in a whole engine they are scratch memory."""
    border = {tensor.name for tensor in (*whole.graph.input, *whole.graph.output)}
    tensors = {tensor.name: tensor for part in parts for tensor in (*part.graph.input, *part.graph.output)}
    names = [name for name in tensors if name not in border]
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(tensors[name].type.tensor_type.elem_type) for name in names}
    maxima = [{name: found.maximum for name, found in profile.inputs.items()} for profile in of]
    shapes = [tensor_shapes(whole, maximum, names) for maximum in maxima] if names else [{} for _ in maxima]
    return [sum(prod(shape) * dtypes[name].itemsize for name, shape in found.items()) for found in shapes]


def name_model(path: Path, model: onnx.ModelProto, config: PipelineConfig) -> str:
    """Return the name of the network in a file: that of its folder in a repository, else the first with its tensors.

    Raises ValueError if the tensors are those of no network of the pipeline, or not those of the folder's.
    """

    def tensors_of(model: onnx.ModelProto) -> set[tuple[str, int]]:
        tensors = (*model.graph.input, *model.graph.output)
        return {(tensor.name, tensor.type.tensor_type.elem_type) for tensor in tensors}

    found = tensors_of(model)
    fitting = [name for name in config.networks if _declared(signatures(config)[name]) == found]
    folder = path.absolute().parent.parent.name
    if not fitting or (folder in config.networks and folder not in fitting):
        names = " ".join(sorted(name for name, _ in found)) or "none"
        what = folder if folder in config.networks else "the detector or an embedder"
        raise ValueError(f"{path}: its inputs and outputs ({names}) or their types are not those of {what}")
    return folder if folder in fitting else fitting[0]


def _declared(signature: Signature) -> set[tuple[str, int]]:
    types = {"FP32": "FLOAT"}
    tensors = (*signature.inputs, *signature.outputs)
    return {(tensor.name, TensorProto.DataType.Value(types.get(tensor.dtype, tensor.dtype))) for tensor in tensors}


def _run(files: Iterable[Path], pipeline: Path | None) -> int:
    files = list(dict.fromkeys(path.absolute() for path in files))
    repository = files[0].parent.parent.parent
    config = repository_pipeline(repository) if pipeline is None else load_pipeline(pipeline)
    models = [(path, load(path)) for path in files]
    names = [name_model(path, model, config) for path, model in models]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several files are {', '.join(sorted(repeated))}; check one repository at a time")
    num_faults = 0
    memories = []
    for (path, model), name in zip(models, names, strict=True):
        try:
            for finding in check_model(model):
                print(f"{path}: {finding}")
                num_faults += 1
            trt = load_compiler()
            compiled = compile_model(trt, model, name, config)
        except ValueError as error:
            print(f"{path}: does not compile: {error}")
            num_faults += 1
            continue
        for warning in compiled.warnings:
            print(f"{path}: {warning}")
        print(f"{path}: compiles, in {compiled.num_parts} part(s), with {trt.__name__} {trt.__version__}")
        memories.append(compiled.memory)
    if memories:
        print(table(memories, config))
        require_fit(memories, config)
    return EXIT_FAILURES if num_faults else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    add_pipeline_option(parser, default="that of the repository that holds the first file")
    arguments = parser.parse_args(argv)
    return run_command("export.tensorrt.check", lambda: _run(arguments.files, arguments.pipeline))


if __name__ == "__main__":
    sys.exit(main())
