"""The demo repository with random weights: built, kept, rebuilt and served."""

import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional
from torchvision.ops import box_iou

import livematch
from export.build import Artifact, _bring_up_to_date, build, main, source_files
from export.checkpoints import resolve
from export.config import PipelineConfig, demo, production, repository_pipeline
from export.graphs.checkpoints import build_detector_graph, build_embedder
from export.onnx.files import open_onnx
from export.parity import reference
from export.parity.check import check_signature
from export.parity.compare import ParityError, Report
from export.signature import signatures
from export.triton.model_config import REPOSITORY, stale_files
from livematch.local.local_server import LocalServer
from training.detector.recipe import Recipe, stage1, stage2, stage3
from training.detector.recipe import demo as demo_recipe
from training.embedder.model import DEMO, Embedder
from training.embedder.recipe import RECIPES
from training.embedder.templates import nearest_template

ROOT = Path(__file__).parents[2]
SEED = 5
CONFIG = replace(demo(), image=replace(demo().image, min_score=0.79))  # untrained networks seldom score higher


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("built") / "model_repository"
    return folder, build(CONFIG, folder, random_seed=SEED)


def test_repository_is_complete(built: tuple[Path, str]) -> None:
    folder, identity = built
    for model, signature in signatures(CONFIG).items():
        assert (folder / model / "config.pbtxt").exists()
        if signature.kind in ("graph", "network"):
            check_signature(folder / model / "1" / "model.onnx", signature)
    assert identity.startswith("demo-") and len(identity) == len("demo-") + 12
    assert identity in (folder / "crop_and_embed" / "config.pbtxt").read_text()
    assert stale_files(CONFIG, folder) == ["crop_and_embed/config.pbtxt"]  # it has the identity


def test_files_do_not_contain_the_paths_of_this_machine(built: tuple[Path, str]) -> None:
    files = list(built[0].glob("*/1/model.onnx"))
    assert len(files) == 8
    for content in (path.read_bytes() for path in files):
        assert not [folder for folder in (ROOT, Path(torch.__file__).parent) if str(folder).encode() in content]


def test_only_what_is_stale_is_built_again(built: tuple[Path, str]) -> None:
    folder, identity = built
    files = {model: folder / model / "1" / "model.onnx" for model in ("crop", "prepare_image", "embedder_b7")}
    onnx.save(onnx.load(files["crop"]), files["crop"])
    times = {model: path.stat().st_mtime_ns for model, path in files.items()}
    (folder / "prepare_image" / "1" / "model.onnx.stamp").write_text("of another version")
    assert build(CONFIG, folder, random_seed=SEED) == identity
    changed = {model for model, path in files.items() if path.stat().st_mtime_ns != times[model]}
    assert changed == {"prepare_image"}


def test_an_engine_of_other_weights_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    engine = [tmp_path / "model.plan", tmp_path / "model.plan.json"]
    for weights, is_there in ((b"old", False), (b"old", True), (b"new", False)):
        for file in engine:
            file.write_bytes(b"of old weights")
        write = partial(Path.write_bytes, data=weights)
        _bring_up_to_date(Artifact("detector", write=write, check=lambda _: {}, inputs=(weights,)), path)
        assert [file.exists() for file in engine] == [is_there, is_there]


def test_a_file_that_fails_its_check_replaces_nothing(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("model.onnx", "model.onnx.stamp", "model.plan", "model.plan.json")}
    for name, file in files.items():
        file.write_text(f"good {name}")

    def check(path: Path) -> Report:
        raise ParityError(f"{path}: {path.read_text()}")

    artifact = Artifact("detector", write=partial(Path.write_text, data="a wrong graph"), check=check, inputs=())
    with pytest.raises(ParityError, match="a wrong graph"):
        _bring_up_to_date(artifact, files["model.onnx"])
    assert all(file.read_text() == f"good {name}" for name, file in files.items())


def test_onnxruntime_may_come_from_another_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu installs a module onnxruntime, but no distribution of that name."""
    find = importlib.metadata.Distribution.from_name

    def from_name(name: str) -> importlib.metadata.Distribution:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", from_name)
    assert Artifact("crop", write=lambda _: None, check=lambda _: {}, inputs=()).stamp()


def test_identity_depends_on_templates_and_code_but_not_on_scheduling(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, identity = built
    copy = tmp_path / "built"
    shutil.copytree(folder, copy)
    assert build(replace(CONFIG, crops="S"), copy, random_seed=SEED) != identity
    more = replace(CONFIG.serving.crop_and_embed, num_instances=5)
    rescheduled = replace(CONFIG, serving=replace(CONFIG.serving, crop_and_embed=more))
    assert build(rescheduled, copy, random_seed=SEED) == identity
    sources = tmp_path / "sources"
    shutil.copytree(REPOSITORY / "crop_and_embed", sources / "crop_and_embed")
    monkeypatch.setattr("export.build.REPOSITORY", sources)
    assert build(CONFIG, copy, random_seed=SEED) == identity
    with (sources / "crop_and_embed" / "1" / "detections.py").open("a") as file:
        file.write("# another rule\n")
    assert build(CONFIG, copy, random_seed=SEED) != identity


def test_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pipeline", "demo", "--checkpoints", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("export.build: ") and "detector.pth" in line


def test_exceeded_limit_is_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.parity.compare.MAX_PIXELS_DIFFERENCE", -1)
    assert main(["--pipeline", "demo", "--random-weights", "0", "--output", str(tmp_path)]) == 3
    assert "largest difference of pixels is" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx*"))


def test_stamp_covers_all_code_that_exports_and_checks() -> None:
    """Every project module that the exporters and checks import, however indirectly, is a source; see `_SOURCES`."""
    program = (
        "import sys, export.onnx.export, export.onnx.wrap, export.graphs.prepare, export.graphs.crop\n"
        "import export.parity.check\n"
        "files = [module.__file__ for name, module in sys.modules.items() if name.startswith(('export.', 'training.'))]"
        "\nprint(*filter(None, files), sep='\\n')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    imported = {Path(line) for line in printed.splitlines() if Path(line).stat().st_size}
    assert ROOT / "export" / "graphs" / "detector.py" in imported
    # The values of the config that a file depends on are among its artifact's inputs.
    assert imported - set(source_files()) == {ROOT / "export" / "config.py"}


def test_a_new_file_in_a_subfolder_changes_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.build._ROOT", tmp_path)
    for path in ("export/signature.py", "training/checkpoint.py", "export/graphs/deep/layers.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("old")
    artifact = Artifact("crop", write=lambda _: None, check=lambda _: {}, inputs=())
    before = artifact.stamp()
    (tmp_path / "export/graphs/deep/layers.py").write_text("new")
    assert artifact.stamp() != before


def test_checkpoints_of_another_pipeline_are_refused(tmp_path: Path) -> None:
    demo_checkpoints = ROOT / "training" / "demo" / "checkpoints"
    with pytest.raises(
        ValueError, match=r"detector\.json .*'production'.* backbone is 'vovnet_demo', not 'ese_vovnet99b'"
    ):
        build(production(), tmp_path / "out", checkpoints=demo_checkpoints)
    other_templates = replace(demo(), crops="SM")
    with pytest.raises(ValueError, match=r"embedder_b5a\.json .* template is 'XS', not 'SM'"):
        build(other_templates, tmp_path / "out", checkpoints=demo_checkpoints)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "prefix", "detectors"),
    [(production(), "", (stage1(), stage2(), stage3())), (demo(), "demo-", (demo_recipe(),))],
    ids=["production", "demo"],
)
def test_checkpoints_of_our_recipes_are_accepted(
    config: PipelineConfig, prefix: str, detectors: tuple[Recipe, ...], tmp_path: Path
) -> None:
    for model in config.networks:
        (tmp_path / f"{model}.pth").touch()
    for name in DEMO:
        RECIPES[prefix + name].model.save(tmp_path / f"embedder_{name}.json")
    for recipe in detectors:
        recipe.model.save(tmp_path / "detector.json")
        assert resolve(config, tmp_path) == config


def test_an_embedder_that_comes_as_an_onnx_file_is_built_with_the_others(
    tmp_path: Path, write_embedder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("detector.pth", "detector.json"):
        shutil.copy(ROOT / "training" / "demo" / "checkpoints" / name, tmp_path)
    source = write_embedder(tmp_path / "embedder_own.onnx")
    values = dataclasses.asdict(demo()) | {"name": "mine", "embedders": {"own": None}}
    (tmp_path / "mine.json").write_text(json.dumps(values))
    folder = tmp_path / "repository"
    arguments = ["--pipeline", str(tmp_path / "mine.json"), "-o", str(folder), "--precision", "fp16"]
    assert main([*arguments, "--checkpoints", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "export.build: embedder_own keeps the precision of its ONNX file" in printed.err.splitlines()
    identity = json.loads(printed.out.splitlines()[-1])["model_identity"]

    config = repository_pipeline(folder)
    assert config.embedding_size == 2 and stale_files(config, folder) == ["crop_and_embed/config.pbtxt"]
    for model, signature in signatures(config).items():
        if signature.kind in ("graph", "network"):
            check_signature(folder / model / "1" / "model.onnx", signature)
    crops = np.full((3, 64, 160, 3), (200, 7, 50), np.uint8)  # normalised (2, …, -1)
    embedding = open_onnx(folder / "embedder_own" / "1" / "model.onnx")({"crops": crops})["embedding"]
    np.testing.assert_allclose(embedding, [[2 / 20**0.5, -4 / 20**0.5]] * 3, atol=1e-6)

    assert main([*arguments, "--checkpoints", str(tmp_path)]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"model_identity": identity, "output": str(folder)}
    ]
    write_embedder(source, last="negated = Neg (pooled) embedding = Flatten <axis = 1> (negated)")
    assert main([*arguments, "--checkpoints", str(tmp_path)]) == 0
    rebuilt, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert rebuilt["model"] == "embedder_own" and last["model_identity"] != identity
    with pytest.raises(ValueError, match=r"embedder_own comes as an ONNX file, .*; give --checkpoints"):
        build(config, tmp_path / "random", random_seed=0)


def _embed(embedder: Embedder, crops: np.ndarray) -> torch.Tensor:
    pixels = (crops - np.float32(embedder.config.mean)) / np.float32(embedder.config.std)
    with torch.inference_mode():
        return functional.normalize(embedder(torch.from_numpy(pixels).permute(0, 3, 1, 2)))


@pytest.mark.triton
def test_served_responses_match_pytorch(built: tuple[Path, str]) -> None:
    """The whole ensemble matches the same networks in PyTorch, combined by a few lines of this test."""
    pytest.importorskip("pytriton", reason="needs nvidia-pytriton")
    folder, identity = built
    blocks = np.random.default_rng(2).integers(0, 256, (9, 6, 3), np.uint8)
    image = np.ascontiguousarray(blocks.repeat(50, axis=0).repeat(50, axis=1))
    with LocalServer(folder) as server, livematch.Client(server.url) as client:
        assert client.model_identity == identity
        found = client.recognize_image(image)

    prepared = reference.prepare(image[None], CONFIG, "image")
    detector = build_detector_graph(None, config=CONFIG.detector_config, random_seed=SEED)
    with torch.inference_mode():
        boxes, scores, _, _ = detector(torch.from_numpy(prepared["pixels"]), torch.from_numpy(prepared["image_size"]))
    is_kept = scores[0] > CONFIG.image.min_score
    expected_boxes = boxes[0, is_kept] / torch.from_numpy(prepared["scale"][0, [1, 0, 1, 0]])
    assert len(found) > 0
    assert len(found) == len(expected_boxes)
    overlaps, order = box_iou(torch.from_numpy(found.boxes.copy()), expected_boxes).max(dim=1)
    assert overlaps.min() > 0.98
    np.testing.assert_allclose(found.scores, scores[0, is_kept][order], atol=5e-3)

    embedders = [
        build_embedder(None, config=embedder, random_seed=SEED + position)
        for position, embedder in enumerate(CONFIG.embedder_models.values(), start=1)
    ]
    for box, embedding in zip(found.boxes, found.embeddings, strict=True):
        pixel_box = box.astype(np.int32)
        width, height = pixel_box[2] - pixel_box[0], pixel_box[3] - pixel_box[1]
        size = np.array(list(CONFIG.templates.values())[nearest_template(width, height)])
        crops = reference.crop(image[None], pixel_box[None], size).astype(np.float32)
        parts = [_embed(embedder, crops) for embedder in embedders]
        assert float(torch.from_numpy(embedding.copy()) @ torch.cat(parts, dim=1)[0] / 2) > 0.9999
