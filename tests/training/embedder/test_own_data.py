"""The commands on a folder per identity and on CSV files, with a backbone that no recipe has."""

import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from training.embedder import evaluate, train
from training.embedder.crops import prepare_crops
from training.embedder.evaluate import retrieval
from training.embedder.model import PRODUCTION, load_embedder
from training.embedder.recipe import RECIPES, Recipe

NUM_IDENTITIES = 4
OPTIONS = ("--backbone", "test_efficientnet", "--image-size", "64x48", "--batch", "4", "--epochs", "1")


def draw(path: Path, identity: int, seed: int) -> None:
    """An image of 90 × 60 pixels (width × height) in the colour of its identity, with noise."""
    color = np.random.default_rng(identity).integers(0, 200, 3)
    pixels = color + np.random.default_rng((identity, seed)).integers(0, 50, (60, 90, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels.astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four identities with three images each."""
    for identity in range(NUM_IDENTITIES):
        for seed in range(3):
            draw(tmp_path / f"data/coat {identity}/{seed}.png", identity, seed)
    return tmp_path / "data"


def write_clip(path: Path) -> None:
    """Ten frames of 64 × 64 pixels, the left half of which is brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(10):
            pixels = np.full((64, 64, 3), 20 * index, np.uint8)
            pixels[:, :32] += 60
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode())


def run(output: Path, data: Path, *options: str) -> int:
    return train.main(["--data", str(data), "--output", str(output), *OPTIONS, *options])


def recipe_of(*options: object) -> Recipe:
    arguments = ["--data", "nowhere", "--output", "nowhere", *map(str, options)]
    return train.recipe_of(train.build_parser().parse_args(arguments))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_per_identity_trains_and_is_evaluated(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(output, folders, "--name", "mine", "--embedding-size", "24") == 0
    first, epoch = lines(capsys)
    assert first == {"crops": 12, "identities": NUM_IDENTITIES, "batches": 3} and epoch["epoch"] == 1
    config = load_embedder(output / "embedder_mine.pth").config
    assert (config.backbone, config.template, config.embedding_size) == ("test_efficientnet", "64x48", 24)
    checkpoints = ["--checkpoints", str(output), "--data", str(folders), "--cache", str(tmp_path / "cache")]
    assert evaluate.main(checkpoints) == 0
    (line,) = lines(capsys)
    assert line["models"] == ["embedder_mine"] and line["crops"] == 12
    assert 0 <= line["leave_one_out"]["r1"] <= 1
    assert evaluate.main([*checkpoints, "--detections", "nowhere.parquet"]) == 2
    assert "--detections needs a part of WAB in --data" in capsys.readouterr().err


def test_rows_of_one_split_train_and_those_of_the_other_are_evaluated(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clip.mp4")
    table = tmp_path / "data.csv"
    rows = ["path,identity,x0,y0,x1,y1,frame,split"]
    rows += [f"data/coat {i}/{seed}.png,{i}/red,5,5,60,50,,train" for i in (0, 1) for seed in (0, 1, 2)]
    rows += [f"data/coat {i}/{seed}.png,{i}/red,,,,,,test" for i in (2, 3) for seed in (0, 1)]
    rows += ["clip.mp4,2/red,0,0,32,64,7,test", "clip.mp4,3/red,32,0,64,64,7,test"]
    table.write_text("\n".join(rows))
    output = tmp_path / "out"
    assert run(output, table) == 0
    assert lines(capsys)[0] == {"crops": 6, "identities": 2, "batches": 1}
    cache = output / "cache"
    checkpoint = str(output / "embedder_test_efficientnet.pth")
    assert evaluate.main(["--checkpoints", checkpoint, "--data", str(table), "--cache", str(cache)]) == 0
    (line,) = lines(capsys)
    assert line["crops"] == 6 and {"item_to_video", "video_to_item"} < set(line)
    left, right = prepare_crops([table], cache, max_side_px=240, split="test")[-2:]
    levels = [cv2.imread(str(crop.path)).mean() for crop in (left, right)]
    assert abs(levels[0] - 195) < 15 and abs(levels[1] - 145) < 15  # with a margin of the other half


def test_leave_one_out_by_hand(folders: Path, tmp_path: Path) -> None:
    """Three vectors of one identity, two of another, and one that has no counterpart."""
    crops = prepare_crops([folders], tmp_path / "cache", max_side_px=240)
    crops = [*crops[:3], *crops[3:5], crops[6]]
    angles = np.radians([0, 10, 40, 30, 90, 60])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1)
    # Ranks of the identity's others: 0°: 1 (10°), 3 (40°); 10°: 1 (0°), 3 (40°); 40°: 3 (10°), 4 (0°);
    # 30°: 5 (90°); 90°: 3 (30°).
    precisions = [(1 + 2 / 3) / 2, (1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2, 1 / 5, 1 / 3]
    result = retrieval(embeddings, crops)
    assert result == {"leave_one_out": {"r1": 0.4, "r5": 1.0, "map": round(sum(precisions) / 5, 4)}}
    with pytest.raises(ValueError, match="no query has a counterpart"):
        retrieval(embeddings[:2], [crops[0], crops[3]])


def test_each_epoch_leaves_a_checkpoint(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is stopped in its second epoch."""
    output, saved = tmp_path / "out", []
    original = train.EmbedderTrainer.train_epoch

    def interrupted(self: Any, num_workers: int) -> dict[str, float]:
        if self.epoch == 1:
            saved.append(load_embedder(output / "embedder_test_efficientnet.pth").state_dict())
            raise KeyboardInterrupt
        return original(self, num_workers)

    with monkeypatch.context() as patch:
        patch.setattr(train.EmbedderTrainer, "train_epoch", interrupted)
        assert run(output, folders, "--epochs", "2") == 130
    state = torch.load(output / "test_efficientnet.resume.pth", weights_only=True)
    assert saved and all(torch.equal(value, saved[0][name]) for name, value in state["model"].items())
    assert run(output, folders, "--epochs", "2", "--resume") == 0
    after = load_embedder(output / "embedder_test_efficientnet.pth").state_dict()
    assert not torch.equal(after["projection.weight"], saved[0]["projection.weight"])


def test_what_to_pass_to_resume_is_said_in_one_line(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(output, folders) == 0
    for options, difference in (
        (["--epochs", "2"], "--epochs 1 (here 2)"),
        (
            ["--backbone", "resnet10t", "--name", "test_efficientnet"],
            "--backbone 'test_efficientnet' (here 'resnet10t')",
        ),
        (["--embedding-size", "8"], "--embedding-size 512 (here 8)"),
    ):
        assert run(output, folders, "--resume", *options) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "was trained with" in line]
        assert f"resume.pth was trained with {difference}: pass the same to resume it" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--backbone MODEL or --config RECIPE is needed"),
        (["--backbone", "resnet_5"], "timm has no model 'resnet_5'"),
        (["--backbone", "resnet18", "--image-size", "224"], "'224', not one of XS-S, XS, XS-M, S, SM, M or a size"),
        (["--backbone", "resnet18", "--batch", "0"], "--batch is 0, not a positive number"),
        (["--config", "b6", "--lr", "-1"], "--lr is -1.0, not a positive number"),
        (["--config", "b6", "--name", "a b"], "--name is 'a b'; it may have letters, digits and _ only"),
        (["--config", "demo-b6"], "2 crops cannot fill a batch of 32: pass a smaller --batch"),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "data/a/0.png", 0, 0)
    draw(tmp_path / "data/b/0.png", 1, 0)
    assert train.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]  # without a progress bar
    assert line.lstrip().startswith("training.embedder.train: ") and message in line


def test_one_identity_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        draw(tmp_path / f"data/a/{seed}.png", 0, seed)
    assert run(tmp_path / "out", tmp_path / "data") == 2
    assert "identities in the data: 1, but at least two are needed" in capsys.readouterr().err


def test_a_backbone_has_its_own_preprocessing_and_the_size_that_it_needs() -> None:
    recipe = recipe_of("--backbone", "vit_small_patch16_224.augreg_in21k")
    assert recipe.model.mean == recipe.model.std == (127.5, 127.5, 127.5)
    assert recipe.model.template == "224x224" and recipe.template_sets == ("224x224",)
    assert (recipe.num_epochs, recipe.batch_size) == (10, 32)
    recipe = recipe_of("--config", "demo-b6", "--backbone", "resnet18", "--epochs", "3", "--image-size", "M")
    assert recipe.model.mean == PRODUCTION["b5a"].mean and recipe.model.backbone_options == {}
    assert (recipe.total_epochs, recipe.memory_size) == (3, 256)
    assert recipe.template_sets == ("M",) and recipe.max_crop_side_px == 600


def test_cached_crops_are_large_enough_for_the_recipe() -> None:
    assert {name: recipe.max_crop_side_px for name, recipe in RECIPES.items()} == {
        name: 240 if name.startswith("demo-") else 600 for name in RECIPES
    }
    assert recipe_of("--backbone", "resnet18", "--image-size", "512x800").max_crop_side_px == 1000
