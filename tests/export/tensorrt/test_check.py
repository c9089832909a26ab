"""Every rule of the static check finds its planted violation, and the real graphs have none."""

from pathlib import Path

import onnx
import pytest
from onnx import parser

from export.config import production
from export.onnx.export import export_detector, export_embedder
from export.signature import EMBEDDERS
from export.tensorrt.check import check_model, main

VIOLATIONS = {  # rule: graph in ONNX's text form, opset
    "opset": ("g (float[2] x) => (float[2] y) { y = Relu(x) }", 15),
    "uint8-border": ("g (uint8[2,3] x) => (uint8[3,2] y) { y = Transpose(x) }", 18),
    "type": ("g (float[2] x) => (double[2] y) { y = Cast<to = 11>(x) }", 18),
    "roialign": (
        "g (float[1,1,8,8] x, float[2,4] r, int64[2] i) => (float[2,1,7,7] y) "
        '{ y = RoiAlign<coordinate_transformation_mode = "half_pixel", output_height = 7, output_width = 7>(x, r, i) }',
        18,
    ),
    "topk-sorted": (
        "g (float[9] x) => (float[2] y, int64[2] i) <int64[1] k = {2}> { y, i = TopK<sorted = 0>(x, k) }",
        18,
    ),
    "topk-limit": (
        "g (float[5000] x) => (float[3841] y, int64[3841] i) <int64[1] k = {3841}> { y, i = TopK(x, k) }",
        18,
    ),
    "antialias": (
        "g (float[1,1,8,8] x) => (float[1,1,4,4] y) <int64[4] s = {1, 1, 4, 4}> "
        '{ y = Resize<mode = "linear", antialias = 1>(x, , , s) }',
        18,
    ),
    "resize": (
        "g (float[1,1,8,8] x) => (float[1,1,4,4] y) <int64[4] s = {1, 1, 4, 4}> "
        '{ y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric">(x, , , s) }',
        19,
    ),
    "scatter-reduction": (
        'g (float[4] x, int64[2,1] i, float[2] u) => (float[4] y) { y = ScatterND<reduction = "none">(x, i, u) }',
        18,
    ),
    "nms-limit": (
        "g (float[1,5001,4] b, float[1,1,5001] s) => (int64[n,3] y) { y = NonMaxSuppression(b, s) }",
        18,
    ),
    "pooling": (
        "g (float[1,1,8,8] x) => (float[1,1,6,6] y, int64[1,1,6,6] i) { y, i = MaxPool<kernel_shape = [3, 3]>(x) }",
        18,
    ),
    "operator": ("g (float[4] x) => (float[N] y) { y = Unique(x) }", 18),
    "data-dependent": ("g (float[4] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }", 18),
    "constant-axes": ("g (float[4,4] x, int64[1] a) => (float[b,c] y) { y = ReduceMean(x, a) }", 18),
    "float32-island": ("g (float16[1,4] x) => (float16[1,4] y) { y = Softmax(x) }", 18),
}


def _model(graph: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}')


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_planted_violation_is_found(rule: str) -> None:
    findings = check_model(_model(*VIOLATIONS[rule]))
    assert {finding.rule for finding in findings} == {rule}
    assert all(finding.source for finding in findings)


def test_uint8_at_the_border_is_no_violation() -> None:
    assert check_model(_model("g (uint8[2] x) => (float[2] y) { y = Cast<to = 1>(x) }", 18)) == []


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[4,4] x, int64[1] a) => (float[b,c,d] y) { y = Unsqueeze(x, a) }",
        "g (float[4,4] x, int64[1] a, int64[1] e, int64[1] i) => (float[b,c] y) { y = Slice(x, a, e, i) }",
    ],
)
def test_axes_of_other_operators_must_be_constant(graph: str) -> None:
    assert [finding.rule for finding in check_model(_model(graph, 18))] == ["constant-axes"]


def test_sizes_from_values_are_data_dependent() -> None:
    graph = "g (float[1,1,8,8] x, int64[4] s) => (float[a,b,c,d] y) { y = Resize(x, , , s) }"
    assert [finding.rule for finding in check_model(_model(graph, 18))] == ["data-dependent"]


def test_non_zero_is_data_dependent() -> None:
    findings = check_model(_model("g (float[4] x) => (int64[1,N] y) { y = NonZero(x) }", 18))
    assert [finding.rule for finding in findings] == ["data-dependent"]


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint32", "uint64", "string", "complex128"])
def test_types_that_are_not_listed_are_found(dtype: str) -> None:
    graph = f"g ({dtype}[2] x) => ({dtype}[2] y) {{ y = Identity(x) }}"
    assert {finding.rule for finding in check_model(_model(graph, 18))} == {"type"}


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float", "bfloat16"])
def test_types_that_are_listed_are_no_violation(dtype: str) -> None:
    assert check_model(_model(f"g ({dtype}[2] x) => ({dtype}[2] y) {{ y = Identity(x) }}", 18)) == []


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("u = Unique(x)", "operator"),
        ("h = Cast<to = 10>(x) u = Softmax(h)", "float32-island"),
        ("h = Cast<to = 11>(x) u = Cast<to = 1>(h)", "type"),
        ("u = Expand(x, s)", "data-dependent"),
        ("u = ReduceSum(x, s)", "constant-axes"),
    ],
)
@pytest.mark.parametrize(
    "node",
    [
        "y = If(c) <then_branch = t () => (float[k] u) { BODY }, else_branch = e () => (float[k] v) { v = Neg(x) }>",
        "y = Loop(m, c) <body = b (int64 i, bool d) => (bool e, float[k] u) { e = Identity(d) BODY }>",
        "y = Scan<num_scan_inputs = 1, body = b (float[4] r) => (float[k] u) { BODY }>(z)",
        "y = If(c) <then_branch = t () => (float[k] w) "
        "{ w = If(c) <then_branch = p () => (float[k] u) { BODY }, else_branch = q () => (float[k] v) { v = Neg(x) }> "
        "}, else_branch = e () => (float[k] f) { f = Neg(x) }>",
    ],
    ids=["If", "Loop", "Scan", "nested"],
)
def test_bodies_are_checked(node: str, body: str, rule: str) -> None:
    inputs = "bool c, int64 m, int64[1] s, float[4] x, float[2,4] z"
    graph = f"g ({inputs}) => (float[N] y) {{ {node.replace('BODY', body)} }}"
    assert [finding.rule for finding in check_model(_model(graph, 18))] == [rule]


def test_a_body_may_use_constants_from_outside() -> None:
    graph = """g (bool c, float[4] x) => (float[1] y) <int64[1] a = {0}> {
        y = If(c) <
            then_branch = t () => (float[1] u) { u = ReduceSum(x, a) },
            else_branch = e () => (float[1] v) { v = ReduceMax(x, a) }
        >
    }"""
    assert check_model(_model(graph, 18)) == []


@pytest.mark.parametrize("constant", ["value_int = 1", "value_ints = [1]", "value = int64[1] {1}"])
def test_a_constants_attribute_may_have_any_name(constant: str) -> None:
    graph = f"g (float[4,4] x) => (float[a,b] y) {{ a = Constant<{constant}>() y = ReduceMean(x, a) }}"
    assert check_model(_model(graph, 18)) == []


def test_resize_may_be_tensorflows() -> None:
    graph = (
        "g (float[1,1,8,8] x) => (float[1,1,4,4] y) <int64[4] s = {1, 1, 4, 4}> "
        '{ y = Resize<mode = "nearest", coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, , , s) }'
    )
    assert check_model(_model(graph, 18)) == []


def test_an_operator_of_a_custom_domain_is_found() -> None:
    text = '<ir_version: 8, opset_import: ["com.microsoft" : 1]> '
    model = parser.parse_model(text + "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }")
    assert [finding.rule for finding in check_model(model)] == ["operator"]


@pytest.mark.parametrize("model", ["detector", *EMBEDDERS])
def test_demo_graphs_have_no_finding(model: str, demo_repository: Path) -> None:
    assert check_model(onnx.load(demo_repository / model / "1" / "model.onnx")) == []


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
@pytest.mark.parametrize("model", ["detector", "embedder_b5a", "embedder_b6", "embedder_b7"])  # b5b is b5a's graph
def test_production_graphs_have_no_finding(model: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    config = production()
    network = config.detector if model == "detector" else config.embedder(model)
    export = export_detector if model == "detector" else export_embedder
    export(None, path, config=network, random_seed=0, precision=precision)
    assert check_model(onnx.load(path)) == []


def test_command_lists_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_model(*VIOLATIONS["topk-limit"]), path)
    assert main([str(path)]) == 3
    assert "topk-limit: K is 3841, limit 3840 (TensorRT, ITopKLayer)" in capsys.readouterr().out
    assert main([str(tmp_path / "missing.onnx")]) == 2
    (tmp_path / "text.onnx").write_text("no graph")
    assert main([str(tmp_path / "text.onnx")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("text.onnx: not an ONNX file")
