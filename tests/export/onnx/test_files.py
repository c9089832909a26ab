"""Files contain the computation, without the exporter's notes."""

from pathlib import Path

import onnx
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
