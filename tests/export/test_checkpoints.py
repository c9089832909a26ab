"""Folders of checkpoints: what they hold, and that every mistake is a line that says what to do."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.build import main
from export.checkpoints import find_checkpoint, resolve
from export.config import PIPELINES, OnnxEmbedderConfig, PipelineConfig, demo, load_pipeline
from export.signature import signatures
from training.embedder import model as embedder_model

CHECKPOINTS = Path(__file__).parents[2] / "training" / "demo" / "checkpoints"


def pipeline(folder: Path, **changes: Any) -> Path:
    """Write the demo's pipeline with some keys replaced."""
    path = folder / "mine.json"
    path.write_text(json.dumps(json.loads((PIPELINES / "demo.json").read_text()) | changes))
    return path


def take_detector(folder: Path) -> None:
    for name in ("detector.pth", "detector.json"):
        shutil.copy(CHECKPOINTS / name, folder)


def refusal(pipeline_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Return what export.build prints, which must be one line."""
    arguments = ["--pipeline", str(pipeline_path), "--checkpoints", str(folder), "-o", str(folder / "out")]
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("export.build: ")
    assert not (folder / "out").exists()
    return line


def test_architectures_may_come_from_the_checkpoints(tmp_path: Path) -> None:
    config = load_pipeline(pipeline(tmp_path, detector=None, embedders={"b6": None, "b7": None}))
    with pytest.raises(ValueError, match="does not describe detector"):
        signatures(config)
    resolved = resolve(config, CHECKPOINTS)
    assert resolved.detector == demo().detector
    assert resolved.embedders == {name: demo().embedders[name] for name in ("b6", "b7")}
    assert list(signatures(resolved)["crop_and_embed"].outputs[3].shape) == ["B", "N", 1024]


def test_the_detector_may_be_of_the_model_zoo(tmp_path: Path) -> None:
    config = load_pipeline(pipeline(tmp_path, detector=None, class_names=None, embedders={"b6": None}))
    (tmp_path / "detector.pkl").touch()
    (tmp_path / "detector.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: GeneralizedRCNN, BACKBONE: {NAME: build_resnet_fpn_backbone}, "
        "RESNETS: {DEPTH: 101, OUT_FEATURES: [res2, res3, res4, res5]}, "
        "FPN: {IN_FEATURES: [res2, res3, res4, res5]}, RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}, "
        "ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}, "
        "ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 13}, "
        "ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7}}\n"
    )
    (tmp_path / "embedder_b6.pth").touch()
    embedder_model.DEMO["b6"].save(tmp_path / "embedder_b6.json")
    resolved = resolve(config, tmp_path)
    detector = resolved.detector_config
    assert resolved.labels == [str(label) for label in range(13)]
    with pytest.raises(ValueError, match="class_names has 2 names, the detector 13 class"):
        resolve(replace(config, class_names=("shirt", "hat")), tmp_path)
    assert (detector.num_classes, detector.max_detections) == (13, 100) and "101" in detector.backbone
    assert find_checkpoint(tmp_path, "detector") == (tmp_path / "detector.pkl", tmp_path / "detector.yaml")


@pytest.mark.parametrize(("stated", "expected"), [(None, ["hat"]), (["shirt"], ["shirt"])])
def test_class_names_come_from_the_pipeline_or_else_from_training(
    tmp_path: Path, stated: list[str] | None, expected: list[str]
) -> None:
    config = load_pipeline(pipeline(tmp_path, class_names=stated, embedders={"b6": None}))
    (tmp_path / "detector.pth").touch()
    replace(demo().detector_config, class_names=("hat",)).save(tmp_path / "detector.json")
    (tmp_path / "embedder_b6.pth").touch()
    embedder_model.DEMO["b6"].save(tmp_path / "embedder_b6.json")
    assert resolve(config, tmp_path).labels == expected


def test_an_embedder_that_contradicts_its_checkpoint_is_named() -> None:
    other = replace(demo(), embedders=demo().embedders | {"b7": replace(embedder_model.DEMO["b7"], embedding_size=256)})
    with pytest.raises(ValueError, match=r"embedder_b7\.json does not match .* embedding_size is 512, not 256"):
        resolve(other, CHECKPOINTS)


def test_missing_checkpoints_are_all_named_and_what_there_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "embedder_b.pth").touch()
    (tmp_path / "embedder_c.onnx").touch()
    line = refusal(pipeline(tmp_path, embedders={"a": None, "b": None}), tmp_path, capfd)
    names = ("detector.pth or .pkl", "detector.json or .yaml", "embedder_a.pth or .onnx", "embedder_a.json")
    missing = ", ".join(str(tmp_path / name) for name in (*names, "embedder_b.json"))
    assert line == f"export.build: missing: {missing}; {tmp_path} holds embedder_b, embedder_c"
    with pytest.raises(FileNotFoundError, match=r"; .*nowhere holds no embedder$"):
        resolve(demo(), tmp_path / "nowhere")


def test_a_missing_json_of_an_onnx_file_is_spelled_out(
    tmp_path: Path, write_embedder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    take_detector(tmp_path)
    path = pipeline(tmp_path, embedders={"a": None})
    write_embedder(tmp_path / "embedder_a.onnx")
    (tmp_path / "embedder_a.json").unlink()
    line = refusal(path, tmp_path, capfd)
    example = line[line.index("{") :]
    assert f"missing: {tmp_path / 'embedder_a.json'}; " in line and "RGB in 0..255" in line
    (tmp_path / "embedder_a.json").write_text(example)
    embedder = resolve(load_pipeline(path), tmp_path).embedders["a"]
    assert isinstance(embedder, OnnxEmbedderConfig) and embedder.mean == embedder_model.IMAGENET_MEAN


def test_a_pth_and_an_onnx_file_of_the_same_name_are_refused(tmp_path: Path) -> None:
    for suffix in (".pth", ".onnx"):
        (tmp_path / f"embedder_a{suffix}").touch()
    with pytest.raises(ValueError, match=r"holds embedder_a\.pth and embedder_a\.onnx; keep one of them"):
        find_checkpoint(tmp_path, "embedder_a")


def onnx_pipeline(folder: Path, **changes: Any) -> PipelineConfig:
    take_detector(folder)
    return load_pipeline(pipeline(folder, **changes))


def test_an_onnx_embedder_may_be_described_and_is_then_compared(
    tmp_path: Path, write_embedder: Callable[..., Path]
) -> None:
    write_embedder(tmp_path / "embedder_a.onnx")
    stated = {"mean": [100, 100, 100], "std": [50, 50, 50], "embedding_size": 2}
    resolved = resolve(onnx_pipeline(tmp_path, embedders={"a": stated}), tmp_path)
    assert resolved == resolve(onnx_pipeline(tmp_path, embedders={"a": None}), tmp_path)
    assert resolved.embedding_size == 2 and resolved.embedder_models["embedder_a"].std == (50, 50, 50)
    (tmp_path / "pipeline.json").write_text(resolved.to_json())
    assert load_pipeline(tmp_path / "pipeline.json") == resolved
    other = onnx_pipeline(tmp_path, embedders={"a": stated | {"embedding_size": 3}})
    with pytest.raises(ValueError, match=r"embedder_a\.json does not match .* embedding_size is 2, not 3"):
        resolve(other, tmp_path)
    with pytest.raises(ValueError, match=r"embedder_a\.onnx is not of the kind that embedders\.a .* describes"):
        resolve(onnx_pipeline(tmp_path, embedders={"a": {"backbone": "resnet18"}}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "float[n, 3, h, w] images, float[n] scale"}, "has 2 inputs (images, scale), must have one"),
        (
            {"inputs": "float[n, h, w, 3] images"},
            "its input is images, float[n, h, w, 3], must be float or float16[n, 3",
        ),
        ({"inputs": "float[n, h, w, 3] images"}, "[n, 3, h, w]: move the channels to the front"),
        ({"inputs": "float[n, 1, h, w] images"}, "its input is images, float[n, 1, h, w], must be"),
        ({"inputs": "int8[n, 3, h, w] images"}, "its input is images, int8[n, 3, h, w], must be"),
        ({"inputs": "float[n, 3, 224, 224] images"}, "takes only images of 224x224, and the pipeline has crops of 40x"),
        (
            {"last": "embedding = Neg (pooled)", "outputs": "float embedding"},
            "has the shape [2, 2, 1, 1], must be [2, ",
        ),
        ({"last": "embedding = ReduceMean (pooled)", "outputs": "float embedding"}, "has the shape [1, 1, 1, 1], must"),
        ({"last": "embedding = Flatten <axis = 1> (lost)"}, "embedder_a.onnx: not valid ONNX: "),
        (
            {
                "last": "size = Constant <value_ints = [3, 7]> () embedding = Reshape (pooled, size)",
                "outputs": "float embedding",
            },
            "embedder_a.onnx: ONNX Runtime cannot run it: ",
        ),
        (
            {"last": "embedding = ArgMax <axis = 1> (pooled)", "outputs": "int64 embedding"},
            "its output is embedding, int64[], must be",
        ),
        (
            {"outputs": "float maps, float[n, 2] embedding"},
            "has the outputs maps, embedding; name one in embedder_a.js",
        ),
        ({"opset": 8, "ir": 4}, "is of opset 8; export it with opset 9 or later"),
        (
            {"settings": {"mean": [0, 0, 0], "std": [1, 1, 1], "output": "features"}},
            "has no output 'features', only embedding",
        ),
        ({"settings": {"mean": [0, 0, 0], "std": [0.2, 1, 1]}}, "not on the scale 0..255: multiply mean and std by 25"),
        ({"settings": {"mean": [0, 0, 0]}}, "embedder_a.json: std: is missing"),
        ({"settings": {"mean": [0, 0], "std": [1, 1, 1]}}, "embedder_a.json: mean"),
        ({"settings": {"means": [0, 0, 0], "std": [1, 1, 1]}}, "means: unknown key, did you mean mean?"),
    ],
)
def test_each_embedder_that_does_not_fit_is_one_line(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    write_embedder: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    take_detector(tmp_path)
    write_embedder(tmp_path / "embedder_a.onnx", **changes)
    line = refusal(pipeline(tmp_path, embedders={"a": None}), tmp_path, capfd)
    assert f"{tmp_path / 'embedder_a'}." in line and message in line


@pytest.mark.parametrize("content", [b"", b"no network", None])
def test_a_damaged_file_is_one_line(
    content: bytes | None, tmp_path: Path, write_embedder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    take_detector(tmp_path)
    path = write_embedder(tmp_path / "embedder_a.onnx")
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    line = refusal(pipeline(tmp_path, embedders={"a": None}), tmp_path, capfd)
    assert f"{path}: not an ONNX file" in line
