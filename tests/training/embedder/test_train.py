from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.datasets.wab import FRAMES
from training.demo.world import render_world
from training.embedder.augment import FILL, Cutout, RandomCLAHE, augmentation
from training.embedder.crops import Crop, class_labels, prepare_crops
from training.embedder.data import AspectBatches, read_crop
from training.embedder.evaluate import embed_crops, retrieval_in_both_directions
from training.embedder.recipe import demo
from training.embedder.train import main
from training.embedder.trainer import EmbedderTrainer, warmup_cosine


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    folder = tmp_path_factory.mktemp("embedder")
    render_world(folder / "world", seed=21, num_items=3, render_every=40)
    return prepare_crops([folder / "world"], folder / "cache", max_side_px=240)


def small_run(crops: list[Crop]) -> EmbedderTrainer:
    return EmbedderTrainer(replace(demo("b6"), batch_size=4, num_epochs=3, memory_size=8), crops)


def test_crops_are_of_garments_with_an_instance(crops: list[Crop]) -> None:
    assert {crop.item_id for crop in crops} == {"000001", "000002", "000003"}
    assert all(crop.instance_id > 0 for crop in crops)
    assert any(crop.is_frame for crop in crops) and not all(crop.is_frame for crop in crops)
    assert {int(crop.path.stem[1:].split("_")[0]) for crop in crops if crop.is_frame} <= set(FRAMES)


def test_a_crop_without_jitter_is_its_box(crops: list[Crop]) -> None:
    pixels = read_crop(crops[0], (60, 50))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 50, 60)
    wider = read_crop(crops[0], (60, 50), np.array([0.0, 0.0, 1.0, 1.0]))
    assert not torch.equal(pixels, wider)


def test_a_batch_has_one_template(crops: list[Crop]) -> None:
    batches = AspectBatches(crops, batch_size=3, template_sets=("S", "M"), seed=5)
    epoch = list(batches)
    assert len(epoch) == len(batches) == len(crops) // 3
    for batch in epoch:
        assert len({(template_set, aspect) for _, template_set, aspect in batch}) == 1
    numbers = [number for batch in epoch for number, _, _ in batch]
    assert len(numbers) == len(set(numbers))
    assert epoch == list(batches)
    batches.epoch = 1
    assert epoch != list(batches)


def test_crops_of_rare_aspect_ratios_join_a_neighbouring_bucket() -> None:
    aspects = [2] * 5 + [3] * 1 + [7] * 6 + [9] * 3
    crops = [Crop(Path(), (0, 0, 1, 1), 1, "1", False, aspect) for aspect in aspects]
    batches = AspectBatches(crops, batch_size=4, template_sets=("S",), seed=5)
    trained_as = set()
    for epoch in range(30):
        batches.epoch = epoch
        trained_as |= {(number, aspect) for batch in batches for number, _, aspect in batch}
    assert {number for number, _ in trained_as} == set(range(len(crops)))
    neighbours = {(2, 2), (2, 7), (3, 2), (3, 7), (7, 2), (7, 7), (9, 2), (9, 7)}
    assert {(aspects[number], aspect) for number, aspect in trained_as} == neighbours


def test_too_large_a_batch_is_an_error(crops: list[Crop]) -> None:
    with pytest.raises(ValueError, match="crops cannot fill a batch of 1000"):
        AspectBatches(crops, batch_size=1000, template_sets=("S",), seed=0)


def test_augmentation_keeps_shape_and_depends_on_the_seed() -> None:
    image = torch.arange(3 * 40 * 30, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(3, 40, 30)
    transform = augmentation()
    torch.manual_seed(3)
    first = [transform(image) for _ in range(8)]
    torch.manual_seed(3)
    assert all(torch.equal(a, transform(image)) for a in first)
    assert all(a.dtype == torch.uint8 and a.shape == image.shape for a in first)
    assert len({a.numpy().tobytes() for a in first}) == 8


def test_cutout_paints_one_rectangle() -> None:
    torch.manual_seed(0)
    holes = [(Cutout()(torch.zeros(3, 100, 100, dtype=torch.uint8)) == FILL).all(0) for _ in range(50)]
    for hole in holes:
        rows, columns = hole.any(1).sum(), hole.any(0).sum()
        assert hole.sum() == rows * columns and rows < 63 and columns < 63
    assert max(int(hole.any(1).sum()) for hole in holes) > 50


def test_clahe_spreads_each_part_of_the_image_on_its_own() -> None:
    torch.manual_seed(0)
    faint = torch.randint(60, 68, (1, 80, 80)).repeat(3, 1, 1)
    faint[:, :, 40:] += 120
    spread = RandomCLAHE()(faint.to(torch.uint8))
    assert spread.dtype == torch.uint8 and spread.shape == faint.shape
    dark, bright = spread[:, :, :30].float(), spread[:, :, 50:].float()
    assert dark.std() > 1.5 * faint[:, :, :30].float().std() and bright.std() > 1.5 * faint[:, :, 50:].float().std()
    assert dark.mean() < bright.mean() - 60
    assert (spread.int() - spread[:1].int()).abs().max() <= 2  # gray stays gray


def test_schedule() -> None:
    factors = [warmup_cosine(step, 100, 0.05) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0 and warmup_cosine(100, 100, 0.05) == pytest.approx(0)
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_each_restart_begins_at_half_the_rate(crops: list[Crop]) -> None:
    run = EmbedderTrainer(replace(demo("b5a"), batch_size=4, num_epochs=2, num_restarts=2, restart_epochs=1), crops)
    steps = len(run.batches)
    factors = [run._factor(step) for step in range(4 * steps)]
    assert run.recipe.total_epochs == 4
    assert factors[2 * steps - 1] < 0.1 and factors[2 * steps] == 0.5
    assert factors[3 * steps : 4 * steps] == factors[2 * steps : 3 * steps]


def test_resumed_run_has_the_losses_of_an_unbroken_one(crops: list[Crop], tmp_path: Path) -> None:
    unbroken = small_run(crops)
    expected = [unbroken.train_epoch(0) for _ in range(3)]
    broken = small_run(crops)
    broken.train_epoch(0)
    broken.save(tmp_path / "resume.pth")
    resumed = small_run(crops)
    resumed.load(tmp_path / "resume.pth")
    for epoch in (1, 2):
        losses = resumed.train_epoch(0)
        assert losses["arcface"] == pytest.approx(expected[epoch]["arcface"], rel=1e-3)
        assert losses["memory"] == pytest.approx(expected[epoch]["memory"], rel=1e-3)


def test_only_the_same_run_is_resumed(crops: list[Crop], tmp_path: Path) -> None:
    path = tmp_path / "resume.pth"
    small_run(crops).save(path)
    with pytest.raises(ValueError, match=r"resume\.pth was trained with --batch 4 \(here 2\); seed 3 \(here 7\): pass"):
        EmbedderTrainer(replace(small_run(crops).recipe, batch_size=2, seed=7), crops).load(path)
    renumbered = [replace(crop, instance_id=crop.instance_id + 1) for crop in crops]
    for others in (crops[1:], crops[::-1], renumbered):
        with pytest.raises(
            ValueError, match=r"was trained with other images, boxes or identities in --data: pass the same to"
        ):
            small_run(others).load(path)
    moved = [replace(crop, path=Path("elsewhere") / crop.path.name) for crop in crops]
    small_run(moved).load(path)


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b6.resume.pth").touch()
    arguments = ["--config", "demo-b6", "--data", str(tmp_path / "nothing"), "--output", str(tmp_path)]
    assert main(arguments) == 2
    error = f"{tmp_path}/b6.resume.pth exists: continue that run with --resume, or remove the file"
    assert capsys.readouterr().err == f"training.embedder.train: {error}\n"


def test_a_users_mistake_is_one_line(crops: list[Crop], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = crops[0].path.parents[3] / "world"
    (tmp_path / "not_weights.pth").write_text("no weights")
    small_run(crops).save(tmp_path / "resume/b6.resume.pth")
    for options, message in (
        (["--data", str(tmp_path / "nothing")], "nothing: no such file or folder"),
        (["--data", str(world), "--pretrained", str(tmp_path / "nothing.pth")], "nothing.pth: no such file"),
        (["--data", str(world), "--pretrained", str(tmp_path / "not_weights.pth")], "is not a readable checkpoint"),
        (["--data", str(world), "--output", str(tmp_path / "resume"), "--resume"], "--epochs 3 (here 12)"),
    ):
        arguments = ["--config", "demo-b6", "--output", str(tmp_path), "--cache", str(crops[0].path.parents[2])]
        assert main([*arguments, *options]) == 2
        output = capsys.readouterr().err.splitlines()
        lines = [line for line in output if line.strip() and "cutting crops" not in line]  # without progress bars
        assert len(lines) == 1 and lines[0].startswith("training.embedder.train: ") and message in lines[0], lines


def test_loss_that_is_not_finite_stops_the_run(crops: list[Crop]) -> None:
    run = small_run(crops)
    torch.nn.init.constant_(run.model.projection.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        run.train_epoch(0)


def test_training_lowers_the_loss_and_embeddings_are_unit_vectors(crops: list[Crop]) -> None:
    run = EmbedderTrainer(replace(demo("b5a"), batch_size=4, num_epochs=30), crops)
    losses = [run.train_epoch(0)["arcface"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    embeddings = embed_crops(run.model.eval(), crops)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert retrieval_in_both_directions(embeddings, crops)["item_to_video"]["r5"] > 0.3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_overfits_32_identities(tmp_path: Path) -> None:
    """With mirroring and jitter of boxes only, every crop must find its own garment on the other side."""
    render_world(tmp_path / "world", seed=22, num_items=30, render_every=20)
    crops = prepare_crops([tmp_path / "world"], tmp_path / "cache", max_side_px=240)
    numbers = class_labels(crops)
    crops = [crop for crop in crops if numbers[crop.identity] < 32]
    recipe = replace(demo("b5a"), num_epochs=40, num_restarts=0, batch_size=8, heavy_augmentation=False)
    run = EmbedderTrainer(recipe, crops)
    for _ in range(recipe.num_epochs):
        run.train_epoch(0)
    for metrics in retrieval_in_both_directions(embed_crops(run.model.eval(), crops), crops).values():
        assert metrics["r1"] == 1.0
