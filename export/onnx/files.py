"""Read, run and write ONNX files.

They are written without the exporter's notes, so that the same weights give the same bytes in any folder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message

from livematch.files import replace_file

Run = Callable[[dict[str, np.ndarray[Any, Any]]], dict[str, np.ndarray[Any, Any]]]
"""A function that runs a model: inputs by name to outputs by name."""

CANNOT_RUN = "ONNX Runtime cannot run it"

_NOTES = ("metadata_props", "doc_string")


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights, which may lie beside it; ValueError, naming the file, if that fails."""
    with explain("not an ONNX file", path, (DecodeError,)):
        model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise ValueError(f"{path}: not an ONNX file, or an empty one")
    weights = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    names = {entry.value for tensor in weights for entry in tensor.external_data if entry.key == "location"}
    if missing := sorted(name for name in names if not (path.parent / name).is_file()):
        raise ValueError(
            f"{path}: its weights are in {', '.join(missing)}, which is not beside it; put it there under that name, "
            "or export with external_data=False"
        )
    if links := sorted(name for name in names if (path.parent / name).is_symlink()):
        raise ValueError(
            f"{path}: its weights are in {', '.join(links)}, a link, which is not followed; copy the file to its place"
        )
    with explain("its weights cannot be read", path, (onnx.checker.ValidationError, ValueError)):
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def open_onnx(path: Path) -> Run:
    """Return a function that runs an ONNX file on the CPU; ValueError, also of the function, if that fails."""
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        with explain(CANNOT_RUN, path):
            return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def open_session(path: Path, model: onnx.ModelProto | None = None) -> Any:
    """Return ONNX Runtime's session of a file, or of `model`, which was made from it; ValueError if that fails."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, too
    content = path if model is None else model.SerializeToString()
    with explain(CANNOT_RUN, path):
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def explain(what: str, path: Path, errors: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Context manager: turn errors into a ValueError of one line: the file, `what` is wrong, and their message.

    The errors of ONNX Runtime have no other base class than Exception.
    """
    try:
        yield
    except errors as error:
        raise ValueError(f"{path}: {what}: {' '.join(str(error).split())}") from error


def save(model: onnx.ModelProto, path: Path) -> None:
    """Remove the exporter's notes (source paths and lines) from `model`, and write it with its weights to `path`."""
    _remove_notes(model)
    with replace_file(path) as temporary:
        onnx.save(model, temporary)


def precision_of(path: Path) -> str:
    """Return "fp16" for a file with weights in half precision, else "fp32"."""
    weights = onnx.load(path).graph.initializer
    return "fp16" if any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights) else "fp32"


def _remove_notes(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _NOTES:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                _remove_notes(child)
