"""Write ONNX files without the exporter's notes, so that the same weights give the same bytes in any folder."""

from pathlib import Path

import onnx
from google.protobuf.message import Message

from livematch.files import replace_file

_NOTES = ("metadata_props", "doc_string")


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
