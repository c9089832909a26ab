"""Pipeline files: what they hold, and that every mistake in one is a line that names the key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.build import main
from export.config import PIPELINES, demo, load_pipeline, production, repository_pipeline
from export.signature import signatures
from training.detector.config import DEMO, PRODUCTION
from training.embedder import model as embedder_model


def write(folder: Path, **changes: Any) -> Path:
    """Write the demo's pipeline with some keys replaced, or removed where the value is None."""
    values = json.loads((PIPELINES / "demo.json").read_text()) | changes
    path = folder / "mine.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


def test_our_pipelines_are_those_that_training_knows() -> None:
    for config, detector, embedders in (
        (production(), PRODUCTION, embedder_model.PRODUCTION),
        (demo(), DEMO, embedder_model.DEMO),
    ):
        assert config.detector == detector
        assert config.embedders == embedders
        assert config.embedding_size == 2048


def test_a_pipeline_is_written_with_all_values_and_read_again(tmp_path: Path) -> None:
    config = load_pipeline(write(tmp_path, name="mine", crops="224x112"))
    (tmp_path / "pipeline.json").write_text(config.to_json())
    assert repository_pipeline(tmp_path) == config
    assert config.crop_sizes == [(112, 224)] and list(config.templates) == [2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": 1}, r"gpu: unknown key$"),
        ({"embeders": {}}, r"embeders: unknown key, did you mean embedders\?"),
        (
            {"embedders": {"onnx": {"mean": [0, 0, 0], "sdt": [1, 1, 1], "embedding_size": 2}}},
            r"embedders\.onnx\.sdt: .* std\?",
        ),
        ({"embedders": {"a": {}}}, r"embedders\.a\.backbone: is missing"),
        ({"name": None}, r"name: is missing"),
        (
            {"image": {"short_side": 320, "min_score": 0.9}},
            r"image\.short_side_px: .*image\.short_side: .* mean short_side_px\?",
        ),
        ({"frame": {"short_side_px": 0, "min_score": 0.9}}, r"frame\.short_side_px: .*greater than 0"),
        ({"frame": {"short_side_px": 256, "min_score": 1.5}}, r"frame\.min_score: .*less than or equal to 1"),
        ({"max_side_px": "large"}, r"max_side_px: "),
        ({"crops": "XXL"}, r"crops is 'XXL', not one of XS-S, .* or a size such as '224x224'"),
        ({"crops": "0x0"}, r"crops is '0x0'"),
        ({"embedders": {}}, r"embedders: .*at least 1"),
        ({"embedders": {"a b": {"backbone": "resnet18"}}}, r"embedders\.a b"),
        (
            {"embedders": {"a": {"backbones": "resnet18"}}},
            r"embedders\.a\.backbone: .*embedders\.a\.backbones: .* mean backbone\?",
        ),
        (
            {"embedders": {"a": {"backbone": "resnet18", "embedding_size": 0}}},
            r"embedders\.a: embedding_size is 0, not positive",
        ),
        ({"detector": {"backbone": "vovnet_demo", "num_anchors": 3}}, r"detector\.num_anchors: unknown key"),
        ({"detector": {"norm": "GN"}}, r"detector.*norm is 'GN', not 'FrozenBN' or 'BN'"),
        ({"class_names": [" "]}, "class_names has an empty name"),
        ({"class_names": ["shirt", "shirt"]}, "class_names has a name twice: shirt, shirt"),
        ({"class_names": ["shirt", "hat"]}, "class_names has 2 names, the detector 1 class"),
        ({"serving": {"detector": {"max_batch": -1}}}, r"serving\.detector\.max_batch: "),
        ({"gpu_memory_gb": 0}, r"gpu_memory_gb: "),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_pipeline(path)
    assert main(["--pipeline", str(path), "--random-weights", "0", "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"export.build: {path}: ")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.json").write_text("no pipeline")
    with pytest.raises(ValueError, match=r"text\.json: .*JSON"):
        load_pipeline(tmp_path / "text.json")
    with pytest.raises(SystemExit, match="2"):
        main(["--pipeline", "nowhere", "--random-weights", "0", "-o", str(tmp_path)])
    assert "'nowhere' is no file, nor one of demo, production" in capsys.readouterr().err


def test_batches_grow_with_the_memory_of_the_gpu() -> None:
    config = production(80)
    assert config.gpu_memory_gb == 80
    assert [config.serving_of(model).max_batch for model in ("recognize_image", "prepare_frame", "detector")] == [5] * 3
    assert config.serving_of("embedder_b6").max_batch == 5 * production().serving.embedder.max_batch
    assert config.serving_of("crop_and_embed") == production().serving.crop_and_embed


def test_embeddings_of_any_sizes_are_joined() -> None:
    sizes = {"one": 64, "two": 192, "three": 1000}
    embedders = {name: replace(embedder_model.DEMO["b6"], embedding_size=size) for name, size in sizes.items()}
    config = replace(demo(), embedders=embedders)
    assert config.networks == ["detector", "embedder_one", "embedder_two", "embedder_three"]
    models = signatures(config)
    assert models["embedder_two"].outputs[0].shape == ("n", 192)
    assert models["recognize_image"].outputs[3].shape == ("B", "N", 1256)
