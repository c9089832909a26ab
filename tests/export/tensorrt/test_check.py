"""Every rule finds its planted violation, and TensorRT compiles the real networks and refuses planted faults."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, parser

from export.config import demo, production
from export.onnx.export import export_detector, export_embedder
from export.tensorrt.build import BuildError
from export.tensorrt.check import check_model, compile_model, main
from export.triton.model_config import write_files

VIOLATIONS = {  # rule: graph in ONNX's text form, opset
    "opset": (
        "g (float[1,1,8,8] x, float[2,4] r, int64[2] i) => (float[2,1,7,7] y) "
        "{ y = RoiAlign<output_height = 7, output_width = 7, sampling_ratio = 0, "
        'coordinate_transformation_mode = "half_pixel">(x, r, i) }',
        15,
    ),
    "double": ("g (float[2] x) => (double[2] y) { y = Cast<to = 11>(x) }", 18),
    "roialign": (
        "g (float[1,1,8,8] x, float[2,4] r, int64[2] i) => (float[2,1,7,7] y) "
        '{ y = RoiAlign<coordinate_transformation_mode = "half_pixel", output_height = 7, output_width = 7>(x, r, i) }',
        18,
    ),
    "scatter-reduction": (
        'g (float[4] x, int64[2,1] i, float[2] u) => (float[4] y) { y = ScatterND<reduction = "none">(x, i, u) }',
        18,
    ),
    "nms-limit": (
        "g (float[1,5001,4] b, float[1,1,5001] s) => (int64[n,3] y) { y = NonMaxSuppression(b, s) }",
        18,
    ),
    "float32-island": ("g (float16[1,4] x) => (float16[1,4] y) { y = Softmax(x) }", 18),
}


def _model(graph: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {graph}')


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_planted_violation_is_found(rule: str) -> None:
    findings = check_model(_model(*VIOLATIONS[rule]))
    assert {finding.rule for finding in findings} == {rule}
    assert all(finding.source for finding in findings)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float", "bfloat16"])
def test_other_types_are_no_violation(dtype: str) -> None:
    assert check_model(_model(f"g ({dtype}[2] x) => ({dtype}[2] y) {{ y = Identity(x) }}", 18)) == []


def test_opsets_before_16_are_no_violation_without_roialign() -> None:
    assert check_model(_model("g (float[2] x) => (float[2] y) { y = Relu(x) }", 15)) == []


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("h = Cast<to = 10>(x) u = Softmax(h)", "float32-island"),
        ("h = Cast<to = 11>(x) u = Cast<to = 1>(h)", "double"),
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


def test_an_operator_of_a_custom_domain_is_found() -> None:
    text = '<ir_version: 8, opset_import: ["com.microsoft" : 1]> '
    model = parser.parse_model(text + "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }")
    assert [finding.rule for finding in check_model(model)] == ["domain"]


@pytest.mark.parametrize("model", demo().networks)
@pytest.mark.parametrize("precision", ["demo", "half"])
def test_demo_graphs_have_no_finding(model: str, precision: str, request: pytest.FixtureRequest) -> None:
    repository: Path = request.getfixturevalue(f"{precision}_repository")
    assert check_model(onnx.load(repository / model / "1" / "model.onnx")) == []


@pytest.mark.parametrize("model", demo().networks)
def test_demo_networks_compile_in_half_precision(model: str, half_repository: Path, rtx: Any) -> None:
    compiled = compile_model(rtx, onnx.load(half_repository / model / "1" / "model.onnx"), model, demo())
    assert compiled.num_parts == (2 if model == "detector" else 1)  # before and after RoiAlign
    # RoiAlign's image indices, which are an output of the first part only because of the cut
    assert [warning for warning in compiled.warnings if "Int64 binding" not in warning] == []
    assert len(compiled.memory.scratch_bytes) == len(compiled.memory.profiles) == (5 if model == "detector" else 12)
    assert all(size > 1e6 for size in compiled.memory.scratch_bytes)
    assert 0.9e6 < compiled.memory.weights_bytes < 4e6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("operator", r"part1_of_1: node 'planted' \(Unique\): UNSUPPORTED_NODE: "),
        ("type", r"part1_of_1: node 'planted' \(Add\): INVALID_NODE: .*must have same input types"),
        ("profile", "TensorRT refuses the profile 160x40: .*MIN<=OPT<=MAX"),
    ],
)
def test_planted_faults_are_refused(fault: str, message: str, half_repository: Path, rtx: Any) -> None:
    model = onnx.load(half_repository / "embedder_b5a" / "1" / "model.onnx")
    last = model.graph.node[-1]
    if fault == "operator":
        model.graph.node.append(onnx.helper.make_node("Unique", last.output[:1], ["unique"], name="planted"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("unique", TensorProto.FLOAT, [None]))
    elif fault == "type":
        half = onnx.helper.make_tensor("half", TensorProto.FLOAT16, [1], [1.0])
        model.graph.initializer.append(half)
        model.graph.node.append(onnx.helper.make_node("Add", [last.output[0], "half"], ["sum"], name="planted"))
        model.graph.output.append(onnx.helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, None]))
    config = demo()
    if fault == "profile":
        serving = replace(config.serving, embedder=replace(config.serving.embedder, max_batch=0))
        config = replace(config, serving=serving)
    with pytest.raises(BuildError, match=message):
        compile_model(rtx, model, "embedder_b5a", config)


def test_a_float32_detector_cannot_be_compiled_without_tensorrt_itself(demo_repository: Path, rtx: Any) -> None:
    model = onnx.load(demo_repository / "detector" / "1" / "model.onnx")
    with pytest.raises(BuildError, match="no NonMaxSuppression; export the detector with --precision fp16"):
        compile_model(rtx, model, "detector", demo())


def test_the_detectors_memory_includes_what_passes_the_cut(half_repository: Path, rtx: Any) -> None:
    model = onnx.load(half_repository / "detector" / "1" / "model.onnx")
    memory = compile_model(rtx, model, "detector", demo()).memory
    (landscape,) = [k for k, profile in enumerate(memory.profiles) if profile.name == "landscape"]
    # 8 maps of 48 float32 channels, as wide as P2 of a 320 x 4000 image and as high as P2 to P5 with two rows each
    atlas_bytes = 8 * 48 * (80 + 40 + 20 + 10 + 8) * 1000 * 4
    pooled_bytes = 8 * 200 * 48 * 7 * 7 * 4
    assert memory.scratch_bytes[landscape] > 400e6 + atlas_bytes + pooled_bytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["detector", "embedder_b5a", "embedder_b6", "embedder_b7"])  # b5b is b5a's graph
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_production_networks_compile(model: str, precision: str, tmp_path: Path, rtx: Any) -> None:
    if (model, precision) == ("detector", "fp32"):
        pytest.skip("TensorRT for RTX has no NonMaxSuppression")
    path = tmp_path / "model.onnx"
    config = production()
    network = config.detector if model == "detector" else config.embedder_models[model]
    export = export_detector if model == "detector" else export_embedder
    export(None, path, config=network, random_seed=0, precision=precision)
    whole = onnx.load(path)
    assert check_model(whole) == []
    compiled = compile_model(rtx, whole, model, config)
    if precision == "fp16":
        assert compiled.num_parts == (2 if model == "detector" else 1)
        assert compiled.memory.total_bytes < {"detector": 8e9}.get(model, 1.2e9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", ["vovnet_demo", "resnet50"])
def test_detectors_with_13_classes_compile(backbone: str, tmp_path: Path, rtx: Any) -> None:
    path = tmp_path / "model.onnx"
    pipeline = demo() if backbone == "vovnet_demo" else production()
    config = replace(pipeline.detector, backbone=backbone, num_classes=13)
    export_detector(None, path, config=config, random_seed=0, precision="fp16")
    whole = onnx.load(path)
    assert check_model(whole) == []
    assert compile_model(rtx, whole, "detector", pipeline).num_parts == 2


def test_command_prints_findings_and_memory(
    half_repository: Path, rtx: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [half_repository / model / "1" / "model.onnx" for model in ("embedder_b6", "embedder_b7")]
    assert main([*map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: compiles, in 1 part(s), with tensorrt_rtx")
    assert lines[2].split() == ["model", "profile", "batch", "scratch", "MB", "contexts", "sum", "MB"]
    assert lines[3].split()[:3] == ["embedder_b6", "160x40", "32"]
    assert [line.split()[0] for line in lines[3:-1]] == ["embedder_b6"] * 13 + ["embedder_b7"] * 13
    total_mb = sum(float(line.split()[-1]) for line in lines[3:-1])
    assert lines[-1] == f"sum: {total_mb / 1e3:.1f} of 12.0 GB"

    model = onnx.load(paths[0])
    embedding = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node("Cast", [embedding.name], ["wide"], name="planted", to=11))
    model.graph.output.append(onnx.helper.make_tensor_value_info("wide", TensorProto.DOUBLE, [None, 512]))
    onnx.save(model, tmp_path / "wide.onnx")
    assert main(["--pipeline", "demo", str(tmp_path / "wide.onnx")]) == 2  # an output more than an embedder has
    model.graph.output.pop()
    onnx.save(model, tmp_path / "wide.onnx")
    assert main(["--pipeline", "demo", str(tmp_path / "wide.onnx")]) == 3
    assert "planted: double: wide would be computed in float32 (" in capsys.readouterr().out


def test_files_that_are_no_network_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pipeline", "demo", str(tmp_path / "missing.onnx")]) == 2
    (tmp_path / "text.onnx").write_text("no graph")
    assert main(["--pipeline", "demo", str(tmp_path / "text.onnx")]) == 2
    onnx.save(_model(*VIOLATIONS["double"]), tmp_path / "other.onnx")
    assert main(["--pipeline", "demo", str(tmp_path / "other.onnx")]) == 2
    missing, text, other = capsys.readouterr().err.splitlines()
    assert "missing.onnx" in missing
    assert "text.onnx: not an ONNX file" in text
    assert "other.onnx: its inputs and outputs (x y) or their types are not those of the detector or an emb" in other


def test_a_file_in_the_folder_of_another_network_is_refused(
    half_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(demo(), tmp_path)
    shutil.copy(half_repository / "embedder_b6" / "1" / "model.onnx", tmp_path / "detector" / "1")
    assert main([str(tmp_path / "detector" / "1" / "model.onnx")]) == 2
    assert capsys.readouterr().err.rstrip().endswith("or their types are not those of detector")


def test_files_of_two_repositories_are_refused(
    half_repository: Path, demo_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / "embedder_b6" / "1" / "model.onnx" for folder in (half_repository, demo_repository)]
    assert main([str(path) for path in paths]) == 2
    assert "several files are embedder_b6" in capsys.readouterr().err


def test_without_any_tensorrt_one_line_and_exit_code_2(
    demo_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert main([str(demo_repository / "embedder_b6" / "1" / "model.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export.tensorrt.check: TensorRT cannot be imported (")
    assert line.endswith("; install tensorrt-rtx-cu13-libs and tensorrt-rtx-cu13-bindings, which need no GPU")
