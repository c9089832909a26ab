"""Files contain the computation, without the exporter's notes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from export.onnx import files as onnx_files


def test_notes_are_removed_everywhere(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        h = Add (x, w)
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Relu (h) },
            else_branch = e () => (float[2] b) { b = Neg (h) }
        >
    }"""
    plain = onnx.shape_inference.infer_shapes(parser.parse_model(text))
    noted = onnx.ModelProto()
    noted.CopyFrom(plain)
    graph = noted.graph
    then = graph.node[1].attribute[0].g
    for message in (
        *(noted, graph, *graph.node, *graph.node[1].attribute, *graph.initializer),
        *(*graph.input, *graph.output, *graph.value_info, then, then.node[0]),
    ):
        message.doc_string = "made in /home"
        if not isinstance(message, onnx.AttributeProto):
            message.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/model.py", line 3')
    onnx_files.save(noted, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == plain


def test_weights_in_another_file_are_read_and_named_if_they_are_missing(tmp_path: Path) -> None:
    values = np.arange(6000, dtype=np.float32)
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [6000]) for name in "xy"]
    weights = [onnx.numpy_helper.from_array(values, "w")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:], weights))
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    loaded = onnx_files.load(tmp_path / "a.onnx")
    assert onnx.numpy_helper.to_array(loaded.graph.initializer[0]).tolist() == values.tolist()
    (tmp_path / "a.data").write_bytes(values.tobytes()[:400])
    with pytest.raises(ValueError, match=r"a\.onnx: its weights cannot be read: "):
        onnx_files.load(tmp_path / "a.onnx")
    (tmp_path / "a.data").rename(tmp_path / "b.data")
    with pytest.raises(ValueError, match=r"a\.onnx: its weights are in a\.data, which is not beside it"):
        onnx_files.load(tmp_path / "a.onnx")
    (tmp_path / "a.data").symlink_to(tmp_path / "b.data")
    with pytest.raises(ValueError, match=r"a\.onnx: its weights are in a\.data, a link, .* copy the file to its place"):
        onnx_files.load(tmp_path / "a.onnx")
