from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from benchmarks.harness.roofline import Product, Rates, bound_s, count_products, measure_rates


def write_network(path: Path, dtype: npt.DTypeLike) -> Path:
    """x [n, 4, h, w] → a grouped 3×3 convolution to 6 channels, stride 2 → their mean → a product with [6, 5]."""
    rng = np.random.default_rng(0)
    weights = {"kernel": (6, 2, 3, 3), "matrix": (6, 5)}
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv", group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
        helper.make_node("GlobalAveragePool", ["z"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["rows"], name="rows"),
        helper.make_node("Gemm", ["rows", "matrix"], ["out"], name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", number, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("out", number, ["n", 5])],
        [numpy_helper.from_array(rng.random(shape).astype(dtype), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "small.onnx", np.float32)


def test_products_are_counted_by_hand(network: Path) -> None:
    """n 3, h 8, w 10: the convolution writes [3, 6, 4, 5], each number of 2·3·3 terms; the product [3, 5], 6 terms."""
    conv, gemm = count_products(network, {"x": np.zeros((3, 4, 8, 10), np.float32)})
    assert conv == Product(2 * 360 * 18, 4 * (3 * 4 * 8 * 10 + 6 * 2 * 3 * 3 + 360))
    assert gemm == Product(2 * 15 * 6, 4 * (3 * 6 + 6 * 5 + 15))


def test_half_precision_moves_half_the_bytes_though_the_cpu_computes_in_float32(network: Path) -> None:
    half = write_network(network.with_name("half.onnx"), np.float16)
    full = count_products(network, {"x": np.zeros((2, 4, 8, 10), np.float32)})
    assert count_products(half, {"x": np.zeros((2, 4, 8, 10), np.float16)}) == [
        Product(product.num_flop, product.num_bytes // 2) for product in full
    ]


def test_work_grows_with_the_image_and_leaves_no_file(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(network.parent)
    small, large = (
        sum(p.num_flop for p in count_products(network, {"x": np.zeros((1, 4, side, side), np.float32)}))
        for side in (16, 32)
    )
    assert large - small == 2 * 6 * 18 * (16 * 16 - 8 * 8)
    assert [path.name for path in network.parent.iterdir()] == ["small.onnx"]


def test_each_product_waits_for_the_slower_of_arithmetic_and_memory() -> None:
    rates = Rates(flop_per_s=100.0, bytes_per_s=10.0)
    assert bound_s([Product(400, 10), Product(100, 50)], rates) == pytest.approx(4 + 5)


def test_an_embedders_work_is_proportional_to_its_crops(demo_repository: Path) -> None:
    """Twice the crops are twice the work, weights aside."""
    path = demo_repository / "embedder_b5a" / "1" / "model.onnx"
    one, two = (count_products(path, {"crops": np.zeros((n, 96, 64, 3), np.uint8)}) for n in (1, 2))
    assert [2 * product.num_flop for product in one] == [product.num_flop for product in two]
    assert all(a.num_bytes < b.num_bytes < 2 * a.num_bytes for a, b in zip(one, two, strict=True))


def test_measured_rates_are_plausible() -> None:
    rates = measure_rates("cpu", torch.float32, num_repeats=1)
    assert 1e8 < rates.flop_per_s < 1e13
    assert 1e7 < rates.bytes_per_s < 1e12
