"""Wrap an embedder that comes as an ONNX file, so that it maps uint8 crops to unit vectors as our own do.

The file stays as it is, in its own opset and precision; `onnx.compose` puts a few nodes before and after it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, parser

from export.config import OnnxEmbedderSettings
from export.graphs.prepare import bind
from export.onnx import files

MIN_OPSET = 9
MIN_IR_VERSION = 8
"""From version 4 on, weights need not be inputs too."""

MAX_BYTES = 2**31 - 1
"""The largest message of protobuf, and so the largest ONNX file that includes its weights."""

_TRIAL_BATCH = 7
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

_BEFORE = """<ir_version: {ir_version}, opset_import: ["" : {opset}]>
before (uint8[n, h, w, 3] crops, float[3, 1, 1] crops_mean, float[3, 1, 1] crops_std) => (float[n, 3, h, w] pixels) {{
    crops_float = Cast <to = 1> (crops)
    crops_planes = Transpose <perm = [0, 3, 1, 2]> (crops_float)
    crops_centred = Sub (crops_planes, crops_mean)
    crops_scaled = Div (crops_centred, crops_std)
    pixels = Cast <to = {input_type}> (crops_scaled)
}}"""

_AFTER = """<ir_version: {ir_version}, opset_import: ["" : {opset}]>
after (float[n, D] features, float[1] embedding_min_norm{axes_input}) => (float[n, D] embedding) {{
    embedding_float = Cast <to = 1> (features)
    embedding_norm = {reduce} (embedding_float{axes_argument})
    embedding_divisor = Max (embedding_norm, embedding_min_norm)
    embedding = Div (embedding_float, embedding_divisor)
}}"""


def wrap_embedder(
    path: Path,
    settings: OnnxEmbedderSettings,
    sizes: Sequence[tuple[int, int]],
    embedding_size: int | None = None,
) -> onnx.ModelProto:
    """Return the network of an ONNX file with the inputs and outputs of `export.signature.embedder_signature`.

    Args:
        path: has one input, float or float16 [n, 3, h, w] RGB, and an output of the same types [n, D].
        settings: how pixels are normalised, and which output is taken.
        sizes: height and width of all crops.
        embedding_size: D; without it, the output of the result has no shape.

    Raises ValueError, naming the file and what is wrong, for a file that cannot be read, has other inputs or outputs,
    does not take crops of these sizes, or takes only batches of one size that is part of the computation.
    """
    network = _read(path)
    image, features = _only_input(path, network), _chosen_output(path, network, settings.output)
    batch, _, height, width = (dim.dim_value or None for dim in image.type.tensor_type.shape.dim)
    for size in sizes:
        if height not in (None, size[0]) or width not in (None, size[1]):
            taken, given = f"{width or '?'}x{height or '?'}", f"{size[1]}x{size[0]}"
            raise ValueError(
                f"{path} takes only images of {taken}, and the pipeline has crops of {given}; "
                f"set its crops to {taken}, or export the network with dynamic height and width"
            )
    if batch is not None and not _admits_any_batch(network, features.name, sizes[0]):
        raise ValueError(
            f"{path} takes only batches of {batch}, and computes with that number; export it with a dynamic batch, "
            "in PyTorch: torch.onnx.export(…, dynamic_shapes=({0: torch.export.Dim('n')},), dynamo=True)"
        )
    with files.explain("cannot be joined with other nodes", path, (ValueError, onnx.checker.ValidationError)):
        wrapped = _join(network, image, features, settings)
    height, width = sizes[0] if len(set(sizes)) == 1 else ("h", "w")
    shape: list[str | int | None] | None = None if embedding_size is None else ["n", embedding_size]
    wrapped.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", height, width, 3])
    )
    wrapped.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape))
    return wrapped


def read_embedding_size(path: Path, settings: OnnxEmbedderSettings, sizes: Sequence[tuple[int, int]]) -> int:
    """Return D, the length of the embeddings that a wrapped file returns, after running it on two black crops per size.

    Raises the errors of `wrap_embedder`, and ValueError if ONNX Runtime cannot run the file, or if what it returns is
    not one embedding for each crop, of the same length for crops of all sizes.
    """
    session = files.open_session(path, wrap_embedder(path, settings, sizes))
    lengths: dict[int, tuple[int, int]] = {}
    for height, width in sizes:
        with files.explain(files.CANNOT_RUN, path):
            shape = session.run(["embedding"], {"crops": np.zeros((2, height, width, 3), np.uint8)})[0].shape
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(
                f"{path}: its output for 2 crops has the shape {list(shape)}, must be [2, D], one row per crop"
            )
        lengths[int(shape[1])] = height, width
    if len(lengths) > 1:
        found = ", ".join(f"{length} for {width}x{height}" for length, (height, width) in lengths.items())
        raise ValueError(f"{path}: the length of its embeddings depends on the crop: {found}; set crops to one size")
    return int(next(iter(lengths)))


def _read(path: Path) -> onnx.ModelProto:
    """Return the content of a file, whose weights are no inputs and whose IR version is at least MIN_IR_VERSION."""
    network = files.load(path)
    if network.ByteSize() > MAX_BYTES:
        raise ValueError(f"{path} and its weights have {network.ByteSize() / 1e9:.1f} GB, more than 2.1; use float16")
    with files.explain("not valid ONNX", path, (onnx.checker.ValidationError,)):
        onnx.checker.check_model(network)
    if _opset(network) < MIN_OPSET:
        raise ValueError(f"{path} is of opset {_opset(network)}; export it with opset {MIN_OPSET} or later")
    network.ir_version = max(network.ir_version, MIN_IR_VERSION)
    weights = {weight.name for weight in network.graph.initializer}
    inputs = [value for value in network.graph.input if value.name not in weights]
    del network.graph.input[:]
    network.graph.input.extend(inputs)
    return network


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain == ""), 0)


def _only_input(path: Path, network: onnx.ModelProto) -> onnx.ValueInfoProto:
    inputs: list[onnx.ValueInfoProto] = list(network.graph.input)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ValueError(f"{path} has {len(inputs)} inputs ({names}), must have one, the images")
    kind = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type not in _FLOATS or len(dims) != 4 or dims[1] != 3:
        hint = ": move the channels to the front" if len(dims) == 4 and dims[3] == 3 and dims[1] != 3 else ""
        raise ValueError(f"{path}: its input is {_describe(inputs[0])}, must be float or float16[n, 3, h, w]{hint}")
    return inputs[0]


def _chosen_output(path: Path, network: onnx.ModelProto, name: str | None) -> onnx.ValueInfoProto:
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in network.graph.output}
    names = ", ".join(outputs)
    if name is None and len(outputs) > 1:
        example = next(iter(outputs))
        raise ValueError(f'{path} has the outputs {names}; name one in {path.stem}.json, as in "output": "{example}"')
    if name is not None and name not in outputs:
        raise ValueError(f"{path} has no output {name!r}, only {names}")
    output = outputs[name] if name is not None else next(iter(outputs.values()))
    if output.type.tensor_type.elem_type not in _FLOATS:
        raise ValueError(f"{path}: its output is {_describe(output)}, must be float or float16[n, D]")
    return output


def _describe(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in kind.shape.dim)
    return f"{value.name}, {TensorProto.DataType.Name(kind.elem_type).lower()}[{dims}]"


def _admits_any_batch(network: onnx.ModelProto, features: str, size: tuple[int, int]) -> bool:
    """Tell whether a file with a fixed batch size computes the same for each image of any other batch.

    It does if ONNX's shape inference finds no contradiction with another size and carries that to the output.
    """
    trial = onnx.ModelProto()
    trial.CopyFrom(network)
    del trial.graph.value_info[:]
    for value in trial.graph.output:
        value.type.tensor_type.ClearField("shape")
    kind = trial.graph.input[0].type.tensor_type
    for dim, side in zip(kind.shape.dim, (_TRIAL_BATCH, 3, *size), strict=True):
        dim.dim_value = side
    try:
        inferred = onnx.shape_inference.infer_shapes(trial, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return False
    dims = next(value.type.tensor_type.shape.dim for value in inferred.graph.output if value.name == features)
    return len(dims) > 0 and dims[0].dim_value == _TRIAL_BATCH


def _join(
    network: onnx.ModelProto, image: onnx.ValueInfoProto, features: onnx.ValueInfoProto, settings: OnnxEmbedderSettings
) -> onnx.ModelProto:
    """Return the network with nodes before its input and after one of its outputs."""
    before, after = _before(network, image.type.tensor_type.elem_type, settings), _after(network)
    # Not of initializers: in bodies of If and Loop, onnx.compose would leave their old names.
    network = compose.add_prefix(network, "network/", rename_initializers=False)
    image_name, features_name = f"network/{image.name}", f"network/{features.name}"
    joined = compose.merge_models(before, network, [("pixels", image_name)], outputs=[features_name])
    joined = compose.merge_models(joined, after, [(features_name, "features")])
    del joined.graph.value_info[:]  # may state the file's own batch size
    del joined.opset_import[:]  # in which each of the merged ones is repeated
    joined.opset_import.extend(network.opset_import)
    return joined


def _before(network: onnx.ModelProto, input_type: int, settings: OnnxEmbedderSettings) -> onnx.ModelProto:
    """Return the graph from crops to the pixels that a network takes."""
    text = _BEFORE.format(ir_version=network.ir_version, opset=_opset(network), input_type=input_type)
    constants = {
        f"crops_{name}": np.array(values, np.float32).reshape(3, 1, 1)
        for name, values in (("mean", settings.mean), ("std", settings.std))
    }
    return bind(parser.parse_model(text), constants)


def _after(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph from what a network returns to embeddings of unit length."""
    opset = _opset(network)
    are_axes_inputs = opset >= 18
    text = _AFTER.format(
        ir_version=network.ir_version,
        opset=opset,
        axes_input=", int64[1] embedding_axes" if are_axes_inputs else "",
        axes_argument=", embedding_axes" if are_axes_inputs else "",
        reduce="ReduceL2" if are_axes_inputs else "ReduceL2 <axes = [1]>",
    )
    constants: dict[str, np.ndarray[Any, Any]] = {"embedding_min_norm": np.array([1e-12], np.float32)}
    if are_axes_inputs:
        constants["embedding_axes"] = np.array([1])
    return bind(parser.parse_model(text), constants)
