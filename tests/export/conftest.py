"""A small network as an ONNX file, with a JSON beside it, as people bring their embedders."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import parser

MEAN, STD = (100.0, 100.0, 100.0), (50.0, 50.0, 50.0)

_NETWORK = """<ir_version: {ir}, opset_import: ["" : {opset}]>
net ({inputs}) => ({outputs}) <float[2, 3, 1, 1] weight = {{1, 0, 0, 0, 0, 4}}> {{
    maps = Conv (images, weight)
    pooled = GlobalAveragePool (maps)
    {last}
}}"""


@pytest.fixture
def write_embedder() -> Callable[..., Path]:
    """A function that writes an embedder and its JSON: the red channel and four times the blue one, averaged."""

    def write(
        path: Path,
        *,
        inputs: str = "float[n, 3, h, w] images",
        outputs: str = "float[n, 2] embedding",
        last: str = "embedding = Flatten <axis = 1> (pooled)",
        opset: int = 18,
        ir: int = 8,
        settings: dict[str, object] | None = None,
    ) -> Path:
        text = _NETWORK.format(inputs=inputs, outputs=outputs, last=last, opset=opset, ir=ir)
        onnx.save(parser.parse_model(text), path)
        path.with_suffix(".json").write_text(json.dumps({"mean": MEAN, "std": STD} if settings is None else settings))
        return path

    return write
