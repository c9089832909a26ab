import json
import multiprocessing
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.engine import launch

from training.datasets.images import AnnotatedImage, BoxAnnotation
from training.detector.config import DEMO
from training.detector.model import build_detector
from training.detector.progress import read_log
from training.detector.recipe import STAGES, Recipe, demo
from training.detector.splits import read_splits
from training.detector.train import main
from training.detector.trainer import DetectorTrainer, train
from training.detector.weights import load_checkpoint, load_weights

pytestmark = pytest.mark.detectron2

BOX = (20, 30, 80, 90)


def draw_pictures(directory: Path, num_items: int) -> list[AnnotatedImage]:
    """Photos of 100 × 120 pixels with a bright square on dark noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for item in range(num_items):
        pixels = rng.integers(0, 80, (120, 100, 3)).astype(np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] += 150
        path = directory / f"{item}.jpg"
        cv2.imwrite(str(path), pixels)
        pictures.append(AnnotatedImage(str(item), "0", path, None, (BoxAnnotation(BOX),)))
    return pictures


def write_part(directory: Path, num_items: int) -> Path:
    """The same photos as a part of the data set, without clips."""
    (directory / "video_annotation").mkdir(parents=True)
    for picture in draw_pictures(directory, num_items):
        image = directory / "image" / picture.item_id / "0.jpg"
        image.parent.mkdir(parents=True)
        picture.path.rename(image)
        write_annotation(directory, picture.item_id, BOX)
    return directory


def write_annotation(part: Path, item_id: str, *boxes: tuple[int, int, int, int]) -> None:
    entries = [{"label": "短裙", "viewpoint": 0, "display": 0, "instance_id": 7, "box": box} for box in boxes]
    path = part / "image_annotation" / item_id / "0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"annotations": entries}))


def write_clip(part: Path, item_id: str, *, num_frames: int, annotated: tuple[int, ...]) -> None:
    (part / "video").mkdir()
    with av.open(str(part / "video" / f"{item_id}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(num_frames):
            pixels = np.full((96, 64, 3), 20 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode())
    frames = [{"frame_index": index, "annotations": []} for index in annotated]
    (part / "video_annotation" / f"{item_id}.json").write_text(json.dumps({"frames": frames}))


def small_recipe(**changes: Any) -> Recipe:
    changes = {"batch_size": 2, "checkpoint_every": 15, "evaluate_every": 1000, "num_workers": 0, **changes}
    return replace(demo(), photo_short_sides_px=(64, 96), photo_test_short_side_px=64, warmup_iterations=1, **changes)


def curve(output: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_log(output / "log.jsonl") if "loss" in line]
    return [{name: value for name, value in line.items() if name != "s_per_iteration"} for line in lines]


def train_until_killed(output: Path, iteration: int, *arguments: Any) -> None:
    """Runs `train` in a process that is killed once the log has reached `iteration`."""
    process = multiprocessing.get_context("spawn").Process(target=train, args=(*arguments, output))
    process.start()
    while process.is_alive() and not any(line["iteration"] >= iteration for line in read_log(output / "log.jsonl")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_and_resumed_run_has_the_loss_curve_of_an_unbroken_one(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, 4)
    recipe = small_recipe(iterations=40)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(pictures[:3], pictures[3:], recipe, whole)
    train_until_killed(broken, 20, pictures[:3], pictures[3:], recipe)
    assert torch.load(broken / "last.pt", weights_only=True)["iteration"] == 15
    train(pictures[:3], pictures[3:], recipe, broken, resume=True)
    assert [line["iteration"] for line in curve(whole)] == [20, 40]
    assert curve(broken) == curve(whole)
    weights, resumed = (torch.load(path / "detector.pth", weights_only=True)["model"] for path in (whole, broken))
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    assert read_log(broken / "log.jsonl")[-1] == read_log(whole / "log.jsonl")[-1]  # the metrics


@pytest.mark.slow
def test_200_iterations_on_the_demo_world(tmp_path: Path, demo_world: Path) -> None:
    splits = read_splits([demo_world], (), tmp_path / "cache", max_bad_images=0)
    pictures, validation = splits.training, splits.validation
    recipe = replace(
        demo(),
        iterations=200,
        batch_size=4,
        warmup_iterations=20,
        photo_short_sides_px=(136, 176),
        frame_short_sides_px=(112, 144),
        photo_test_short_side_px=160,
        frame_test_short_side_px=128,
        evaluate_every=50,
        num_workers=0,
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(pictures, validation, recipe, whole)
    train_until_killed(broken, 120, pictures, validation, recipe)
    train(pictures, validation, recipe, broken, resume=True)
    assert len(curve(whole)) == 10 and curve(broken) == curve(whole)
    logs = [[line for line in read_log(path / "log.jsonl") if "ap" in line] for path in (whole, broken)]
    assert [line["iteration"] for line in logs[0]] == [50, 100, 150, 200] and logs[1] == logs[0]
    assert logs[0][-1]["ap50"] > 1.5 * logs[0][0]["ap50"] > 0


def test_two_processes_train_as_one_would_and_one_of_them_writes(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, 5)
    recipe = small_recipe(
        model=replace(DEMO, norm="FrozenBN"),  # else each process normalises its own half
        iterations=4,  # the losses are equal to four digits for five; then rounding decides which boxes are proposed
        batch_size=4,
        optimizer="sgd",
        learning_rate=1e-4,  # small, as differences grow from step to step
        rpn_batch_size=100_000,  # every anchor and proposal, so that nothing is drawn
        roi_batch_size=1000,
        train_post_nms_top_k=20,
    )
    train(pictures[:4], pictures[4:], recipe, tmp_path / "one")
    launch(train, 2, dist_url="auto", args=(pictures[:4], pictures[4:], recipe, tmp_path / "two"))
    start = DetectorTrainer(recipe).model.state_dict()
    steps = []
    for name in ("one", "two"):
        weights = torch.load(tmp_path / name / "detector.pth", weights_only=True)["model"]
        steps.append(torch.cat([(weights[name] - value).flatten() for name, value in start.items()]))
    assert torch.dist(*steps) < 1e-3 * steps[0].norm()
    lines = [line for line in read_log(tmp_path / "two/log.jsonl") if "num_photos" in line]
    assert [line["num_photos"] for line in lines] == [1]


def test_average_precision_rises_and_is_logged_on_the_way(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, 6)
    train(pictures[:4], pictures[4:], small_recipe(iterations=200, evaluate_every=10), tmp_path / "out")
    aps = {line["iteration"]: line["photo_ap"] for line in read_log(tmp_path / "out/log.jsonl") if "ap" in line}
    assert list(aps) == list(range(10, 201, 10))
    early, late = (np.mean([aps[iteration] for iteration in when]) for when in ((10, 20, 30), (180, 190, 200)))
    assert late > early + 0.15  # how fast it rises differs between processors
    assert late > 0.4


def test_command_writes_checkpoint_config_and_metrics(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part, output = write_part(tmp_path / "part", 2), tmp_path / "out"
    arguments = ["--config", "demo", "--data", str(part), "--output", str(output), "--iterations", "1"]
    assert main(arguments) == 0
    values = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert values["num_photos"] == 1
    assert 0 <= values["ap"] <= values["ap50"] <= 1
    model = build_detector(DEMO)
    load_weights(model, load_checkpoint(output / "detector.pth", DEMO), output / "detector.pth")
    assert (output / "detector.pth").stat().st_size <= 6e6
    assert main(arguments) == 2
    assert f"{output}/last.pt exists: continue that run with --resume" in capfd.readouterr().err
    difference = "--iterations 1 (here 2): pass the same to resume it, or remove the file to train anew"
    reason = f"{output}/last.pt was trained with {difference}"
    for num_processes in (1, 2):
        if torch.cuda.is_available() and torch.cuda.device_count() < num_processes:
            continue
        assert main([*arguments[:-1], "2", "--resume", "--num-gpus", str(num_processes)]) == 2
        errors = capfd.readouterr().err
        assert f"training.detector.train: {reason}\n" in errors and "Traceback" not in errors


def test_odd_boxes_are_counted_and_unreadable_images_logged_up_to_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, validation = write_part(tmp_path / "part", 6), write_part(tmp_path / "validation", 1)
    write_annotation(part, "1")  # no boxes
    write_annotation(part, "2", (200, 10, 260, 50), (80, 100, 130, 140))  # outside, overrunning
    write_annotation(part, "3", (50, 50, 51, 51))  # one pixel
    (part / "image/4/0.jpg").write_bytes(b"no image")
    (part / "image_annotation/5/0.json").write_text("{")
    write_clip(part, "1", num_frames=3, annotated=(0, 2, 40))
    arguments = ["--config", "demo", "--data", str(part), "--validation", str(validation), "--output", str(tmp_path)]
    arguments += ["--iterations", "1", "--max-bad-images"]
    assert main([*arguments, "2"]) == 2
    error = capsys.readouterr().err
    assert "3 images, boxes or annotation files are unusable, 2 allowed (--max-bad-images):\n" in error
    assert main([*arguments, "3"]) == 0
    log = read_log(tmp_path / "log.jsonl")
    for line, reason in zip(
        log,
        ("5/0.json: cannot be read: Expecting", "1.mp4: has 3 frames, so there is no frame 40", "4/0.jpg: not a"),
        strict=False,
    ):
        assert reason in line["bad_image"] and reason in error
    assert log[3]["num_bad_images"] == 3
    assert log[3]["training"] == {
        "num_images": 6,
        "num_boxes": 2,
        "num_clipped_boxes": 1,
        "num_dropped_boxes": 2,
        "num_images_without_boxes": 4,
    }
    assert log[3]["validation"]["num_images"] == log[-1]["num_photos"] == 1


def test_a_backbone_to_start_from_is_named_in_the_log(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path, 2)
    state_dict = build_detector(DEMO).state_dict()
    path = tmp_path / "backbone.pth"
    torch.save({"model": {k: v for k, v in state_dict.items() if k.startswith("backbone.bottom_up.")}}, path)
    train(pictures[:1], pictures[1:], small_recipe(iterations=1), tmp_path / "out", backbone_weights=path)
    assert read_log(tmp_path / "out/log.jsonl")[0]["start_from"] == str(path)


def test_a_stage_or_a_config_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for chosen in ([], ["--stage", "1", "--config", "demo"], ["--stage", "4"]):
        with pytest.raises(SystemExit):
            main([*chosen, "--data", "nowhere", "--output", "nowhere"])
    errors = capsys.readouterr().err
    assert main(["--stage", "2", "--data", "nowhere", "--output", "nowhere"]) == 2
    assert "needs --backbone-weights or --weights: there is no nowhere/stage1/detector.pth" in capsys.readouterr().err
    assert "one of the arguments --stage --config --config-file is required" in errors
    assert "not allowed with argument --stage" in errors and "invalid choice: 4" in errors


def test_the_stages_are_the_reference_solutions() -> None:
    recipes = [make() for make in STAGES]
    assert [recipe.name for recipe in recipes] == ["stage1", "stage2", "stage3"]
    assert [recipe.iterations for recipe in recipes] == [60_000, 60_000, 125_000]
    assert [recipe.batch_size for recipe in recipes] == [4, 2, 2]
    assert [recipe.learning_rate for recipe in recipes] == [0.003, 0.003, 0.0003]
    assert [recipe.schedule for recipe in recipes] == ["constant", "cosine", "cosine"]
    assert [recipe.photo_short_sides_px for recipe in recipes] == [(414, 576), (540, 800), (540, 800)]
    assert [recipe.max_side_px for recipe in recipes] == [800, 1100, 1100]
    assert all(recipe.model.norm == "FrozenBN" for recipe in recipes)
