"""ONNX files that hold what is computed and nothing else: the same weights make the same file in any folder."""

from pathlib import Path

import onnx
from google.protobuf.message import Message

_NOTES = ("metadata_props", "doc_string")


def save(model: onnx.ModelProto, path: Path) -> None:
    """Takes the exporter's notes (paths and lines of source) out of `model`, and writes it, weights inside.

    Raises FileNotFoundError if the folder is missing.
    """
    _remove_notes(model)
    onnx.save(model, path)


def precision_of(path: Path) -> str:
    """Returns "fp16" for a file with half weights, else "fp32"."""
    weights = onnx.load(path).graph.initializer
    return "fp16" if any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights) else "fp32"


def _remove_notes(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _NOTES:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                _remove_notes(child)
