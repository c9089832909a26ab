"""Cutting a graph loses no node, and the profiles of the parts follow from those of the whole."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from export.config import demo
from export.tensorrt.cut import clear_size_names, cut, part_profiles, tensor_shapes
from export.tensorrt.profiles import Profile, Range, profiles

# x ─ Relu ─ a ─ Erf ─ b ─ Add ─ c ─ Erf ─ y
#             └──────────────┘ └──── Neg ─ z
GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
g (float[B,4] x) => (float[B,4] y, float[B,4] z) <float[B,4] a, float[B,4] b, float[B,4] c> {
    a = Relu(x)
    b = Erf(a)
    c = Add(a, b)
    y = Erf(c)
    z = Neg(c)
}"""


def names(tensors: object) -> list[str]:
    return [tensor.name for tensor in tensors]  # type: ignore[attr-defined]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_parts_lie_between_the_cut_operators() -> None:
    first, second = cut(parser.parse_model(GRAPH), {"Erf"})
    assert operators(first) == ["Relu"] and operators(second) == ["Add", "Neg"]
    assert names(first.graph.input) == ["x"] and names(first.graph.output) == ["a"]
    assert names(second.graph.input) == ["a", "b"] and names(second.graph.output) == ["c", "z"]


def test_a_graph_without_the_operators_stays_whole() -> None:
    (whole,) = cut(parser.parse_model(GRAPH), {"RoiAlign"})
    assert operators(whole) == operators(parser.parse_model(GRAPH))
    assert names(whole.graph.output) == ["y", "z"]


@pytest.mark.parametrize("model", demo().networks)
@pytest.mark.parametrize("precision", ["demo", "half"])
def test_every_other_node_is_in_exactly_one_part(model: str, precision: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(f"{precision}_repository") / model / "1" / "model.onnx"
    whole = onnx.load(path)
    found = [node.name for part in cut(whole, {"RoiAlign", "NonMaxSuppression"}) for node in part.graph.node]
    expected = [n.name for n in whole.graph.node if n.op_type not in ("RoiAlign", "NonMaxSuppression")]
    assert sorted(found) == sorted(expected)


def test_the_parts_compute_what_the_whole_computes(half_repository: Path) -> None:
    """RoiAlign is computed by itself, between the two parts of the detector."""
    whole = onnx.load(half_repository / "detector" / "1" / "model.onnx")
    feeds = {
        "pixels": np.random.default_rng(0).normal(0, 60, (2, 3, 96, 64)).astype(np.float32),
        "image_size": np.array([[90, 64], [96, 50]], np.float32),
    }
    expected = _run(whole, feeds)
    first, second = cut(whole, {"RoiAlign"})
    known = feeds | _run(first, feeds)
    (roi_align,) = [node for node in whole.graph.node if node.op_type == "RoiAlign"]
    (middle,) = cut(whole, set())[:1]
    del middle.graph.node[:], middle.graph.output[:], middle.graph.input[:]
    middle.graph.node.append(roi_align)
    middle.graph.input.extend(tensor for tensor in first.graph.output if tensor.name in roi_align.input)
    middle.graph.output.extend(tensor for tensor in second.graph.input if tensor.name in roi_align.output)
    known |= _run(middle, known)
    found = _run(second, known)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        clear_size_names(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = [tensor.name for tensor in session.get_outputs()]
    given = {tensor.name: feeds[tensor.name] for tensor in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, given), strict=True))


def test_profiles_of_the_parts_follow_from_the_batch(half_repository: Path) -> None:
    whole = onnx.load(half_repository / "detector" / "1" / "model.onnx")
    first, second = cut(whole, {"RoiAlign"})
    engine_profiles = profiles("detector", demo())
    assert part_profiles(whole, first, engine_profiles) == engine_profiles
    for profile in part_profiles(whole, second, engine_profiles):
        pooled = profile.inputs["roi_align"]
        assert [shape[0] for shape in (pooled.minimum, pooled.optimum, pooled.maximum)] == [200, 800, 1600]
        assert pooled.maximum[1:] == (demo().detector_config.fpn_channels, 7, 7)


def test_a_size_that_does_not_follow_is_an_error() -> None:
    text = GRAPH.replace("b = Erf(a)", "b = Compress(a, m)").replace("float[B,4] x)", "float[B,4] x, bool[B] m)")
    model = parser.parse_model(text.replace("float[B,4] b, ", ""))
    _, second = cut(model, {"Compress", "Erf"})
    profile = Profile("any", {"x": Range((1, 4), (2, 4), (3, 4)), "m": Range((1,), (2,), (3,))})
    with pytest.raises(ValueError, match=r"tensor b: its dimension 0 \(unknown\) does not follow from the inputs"):
        part_profiles(model, second, [profile])


def test_sizes_may_be_expressions_of_the_batch(half_repository: Path) -> None:
    """The height of the feature atlas is not inferred, but follows from an expression in the file."""
    model = onnx.load(half_repository / "detector" / "1" / "model.onnx")
    (roi_align,) = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    shapes = tensor_shapes(model, {"pixels": (2, 3, 320, 480), "image_size": (2, 2)}, list(roi_align.input[:2]))
    # P2 to P5 of 80, 40, 20 and 10 rows, each with two more
    assert list(shapes.values()) == [(2, demo().detector_config.fpn_channels, 158, 120), (400, 4)]


CONSTANTS = """<ir_version: 8, opset_import: ["" : 18]>
g (float[B,4] x) => (float[B,4] x, float[B,4] z) {
    one = Constant<value = float {1.0}>()
    a = Add(x, one)
    unused = Neg(a)
    b = Erf(a)
    z = Add(b, one)
}"""


def test_constants_are_in_each_part_and_unused_tensors_in_one() -> None:
    first, second = cut(parser.parse_model(CONSTANTS), {"Erf"})
    assert operators(first) == ["Constant", "Add", "Neg"] and operators(second) == ["Constant", "Add"]
    assert names(first.graph.output) == ["a", "unused"] and names(second.graph.input) == ["b"]


def test_a_graph_of_nothing_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing remains without Erf"):
        cut(
            parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) {y = Erf(x)}'),
            {"Erf"},
        )
