"""The production embedders with random weights, on every crop size that training or serving uses."""

from pathlib import Path

import pytest

from export.onnx.export import export_embedder
from export.parity.check import check_embedder
from training.embedder.model import PRODUCTION
from training.embedder.templates import TEMPLATES

SIZES = [(height, width) for name in ("S", "SM", "M") for width, height in TEMPLATES[name]]
BATCH_SIZES = (1, 3, 8)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", ["b5a", "b6", "b7"])
def test_onnx_equals_pytorch_on_every_template_and_batch(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_embedder(None, path, config=PRODUCTION[name], random_seed=5)
    report = check_embedder(
        path,
        None,
        sizes=[size for size in SIZES for _ in BATCH_SIZES],
        batch_sizes=BATCH_SIZES,
        config=PRODUCTION[name],
        random_seed=5,
    )
    assert report["min_embedding_cosine"] >= 0.99999


@pytest.mark.parametrize("name", ["b5a", "b6", "b7"])
def test_half_matches_float32(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_embedder(None, path, config=PRODUCTION[name], random_seed=5, precision="fp16")
    sizes = [(height, width) for width, height in TEMPLATES["SM"]]
    report = check_embedder(path, None, sizes=sizes, config=PRODUCTION[name], random_seed=5)
    assert report["min_embedding_cosine"] >= 0.999
