import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.embedder.ablation import EMBEDDERS, SQUARE, VARIANTS, Size, crops_of, main, measure, plan, table
from training.embedder.crops import class_labels, prepare_crops


def test_each_variant_differs_from_the_full_recipe_in_one_thing(tmp_path: Path) -> None:
    trainings = plan(Size(num_seeds=1), "", tmp_path)
    changed = {}
    for variant in VARIANTS:
        ours, full = trainings[variant, 0, "b7"].recipe, trainings["full", 0, "b7"].recipe
        changed[variant] = {name for name in vars(full) if getattr(ours, name) != getattr(full, name)}
    assert changed == {
        "full": set(),
        "without aspect buckets": set(),
        "without GeM": {"model"},
        "without memory": {"memory_size"},
        "without multi-scale": {"template_sets"},
        "without heavy augmentation": {"heavy_augmentation"},
    }
    without_gem = trainings["without GeM", 0, "b7"].recipe.model
    assert without_gem.gem_p == 1 and not without_gem.gem_learnable


def test_seeds_differ_and_what_a_variant_does_not_change_is_trained_once(tmp_path: Path) -> None:
    trainings = plan(Size(), "", tmp_path)
    assert trainings["full", 0, "b7"].recipe.seed != trainings["full", 1, "b7"].recipe.seed
    assert trainings["without memory", 0, "b5a"] == trainings["full", 0, "b5a"]  # it has none anyway
    assert trainings["without aspect buckets", 0, "b5a"] != trainings["full", 0, "b5a"]
    assert len(set(trainings.values())) == len({training.result for training in trainings.values()}) == 33


def test_results_are_those_of_their_recipe_and_worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results(size: Size, worlds: str = "") -> set[Path]:
        return {training.result for training in plan(size, worlds, tmp_path).values()}

    ours = results(Size())
    assert ours < results(Size(num_seeds=4))
    assert ours.isdisjoint(results(Size(num_epochs=9)) | results(Size(), "of another seed"))
    monkeypatch.setitem(VARIANTS, "without GeM", lambda recipe: replace(recipe, learning_rate=1.0))
    assert {path.parent.name for path in ours - results(Size())} == {"without_GeM"}


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for variant in list(VARIANTS)[1:]:
        monkeypatch.delitem(VARIANTS, variant)
    size = ["--num-training-items", "3", "--num-test-items", "3", "--num-epochs", "1", "--num-seeds", "1"]
    command = ["-o", str(tmp_path / "out"), "--result", str(tmp_path / "result.json"), *size]
    assert main(command) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["rows"]) == ["full", "without fusion"] and result["num_trainings"] == 2
    assert table(result["rows"]) in capsys.readouterr().out
    (tmp_path / "out/training/thesis.txt").touch()
    (tmp_path / "out/training/world.json").unlink()
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("training.embedder.ablation: ")


def test_without_aspect_buckets_every_crop_is_square(demo_world: Path, tmp_path: Path) -> None:
    assert {crop.aspect for crop in crops_of("without aspect buckets", demo_world, tmp_path)} == {SQUARE}
    assert len({crop.aspect for crop in crops_of("full", demo_world, tmp_path)}) > 1


def test_table_of_perfect_and_of_random_embeddings(demo_world: Path, tmp_path: Path) -> None:
    size = Size(num_seeds=2)
    crops = prepare_crops([demo_world], tmp_path / "cache", max_side_px=240)
    trainings = plan(size, "", tmp_path)
    numbers = class_labels(crops)
    perfect = np.eye(len(numbers))[[numbers[crop.identity] for crop in crops]]
    rng = np.random.default_rng(0)
    for training in set(trainings.values()):
        training.result.parent.mkdir(exist_ok=True)
        noise = rng.standard_normal(perfect.shape)
        is_perfect = training.variant == "full" and training.embedder == "b5a"
        np.save(training.result, perfect if is_perfect else noise / np.linalg.norm(noise, axis=1, keepdims=True))
    rows = measure(trainings, size, crops)
    assert list(rows) == ["full", "without fusion", *list(VARIANTS)[1:]]
    assert all(len(values) == 2 for metrics in rows.values() for values in metrics.values())
    assert min(rows["full"]["video_to_item_map"]) > max(rows["without GeM"]["video_to_item_map"])
    assert rows["without fusion"]["video_to_item_r1"][0] >= 1 / len(EMBEDDERS)
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and lines[2].startswith("| full | ")


def test_the_readme_has_the_table_of_the_committed_result() -> None:
    root = Path(__file__).parents[3]
    result = json.loads((root / "benchmarks" / "results" / "ablation.json").read_text(encoding="utf-8"))
    assert table(result["rows"]) in (root / "training" / "README.md").read_text(encoding="utf-8")
