"""Trains the detector on parts of the Watch and Buy data set.

    python -m training.detector.train --config demo --data DIR [DIR…] --output DIR

Writes `detector.pth` and `detector.json` for the export, `last.pt` to resume from, and `log.jsonl`; the last line
printed is one JSON object with the metrics on the held-out items.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from training.detector.data import Batches
from training.detector.evaluate import evaluate
from training.detector.model import build_detector
from training.detector.recipe import RECIPES, Recipe
from training.wab.dataset import Picture, read_parts
from training.wab.frames import cache_frames

LOG_EVERY = 20
HELD_OUT = 0.05  # of the items, for the final evaluation


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(RECIPES), required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="parts of the data set")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--frame-cache", type=Path, metavar="DIR", help="default: OUTPUT/frames")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a detector.pth to start from")
    parser.add_argument("--iterations", type=int, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/last.pt if it is there")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    recipe = RECIPES[arguments.config]()
    if arguments.iterations is not None:
        recipe = replace(recipe, iterations=arguments.iterations)
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    pictures = cache_frames(read_parts(arguments.data), arguments.frame_cache or output / "frames")
    training, held_out = split_by_item(pictures)
    print(f"{len(training)} pictures to train on, {len(held_out)} held out", flush=True)

    model = train(training, recipe, output, weights=arguments.weights, resume=arguments.resume, seed=arguments.seed)
    recipe.model.save(output / "detector.json")
    torch.save({"model": model.state_dict()}, output / "detector.pth")
    print(json.dumps(evaluate(model, held_out, recipe)))
    return 0


def split_by_item(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Returns the pictures to train on and those of the last 5 % of the items (one at least), held out."""
    items = sorted({picture.item_id for picture in pictures})
    if len(items) < 2:
        raise ValueError(f"{len(items)} items; two are the least, as one is held out")
    held_out = set(items[-max(1, round(HELD_OUT * len(items))) :])
    return (
        [picture for picture in pictures if picture.item_id not in held_out],
        [picture for picture in pictures if picture.item_id in held_out],
    )


def train(
    pictures: Sequence[Picture], recipe: Recipe, output: Path, *, weights: Path | None, resume: bool, seed: int
) -> nn.Module:
    """Returns the trained model. Raises FloatingPointError when the loss is no longer finite."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_detector(
        recipe.model,
        rpn_batch_size=recipe.rpn_batch_size,
        roi_batch_size=recipe.roi_batch_size,
        train_pre_nms_top_k=recipe.train_pre_nms_top_k,
        train_post_nms_top_k=recipe.train_post_nms_top_k,
    )
    if weights is not None:
        load_weights(model, torch.load(weights, map_location="cpu", weights_only=True)["model"], weights)
    model.to(device=device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: learning_rate_factor(iteration, recipe))
    last = output / "last.pt"
    start = 0
    if resume and last.exists():
        state = torch.load(last, map_location=device, weights_only=True)
        load_weights(model, state["model"], last)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["iteration"]

    batches = Batches(pictures, recipe, seed)
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, recipe.iterations), num_workers=recipe.num_workers
    )
    progress = Progress(output / "log.jsonl", start)
    with EventStorage(start):
        for iteration, (inputs, num_dropped) in enumerate(loader, start=start + 1):
            torch.manual_seed(seed + iteration)  # the sampling of anchors and proposals, so that a resumed run repeats
            losses = model(inputs)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"loss is {loss.item()} at iteration {iteration}: {losses}")
            optimizer.zero_grad()
            loss.backward()
            if recipe.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            optimizer.step()
            progress.add(iteration, losses, num_dropped, scheduler.get_last_lr()[0])
            scheduler.step()
            if iteration % recipe.checkpoint_every == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "iteration": iteration,
                }
                torch.save(state, last.with_suffix(".part"))
                last.with_suffix(".part").replace(last)
    return model.to(memory_format=torch.contiguous_format)


def load_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: Path) -> None:
    """Raises ValueError, listing the keys, if they are not exactly the model's; RuntimeError names wrong shapes."""
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    if missing or unexpected:
        raise ValueError(f"{source}: missing keys {missing}, unexpected keys {unexpected}")


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay applies to convolution and linear weights only, not to biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9)
    raise ValueError(f"optimizer is {recipe.optimizer!r}, not 'adamw' or 'sgd'")


def learning_rate_factor(iteration: int, recipe: Recipe) -> float:
    """Rises linearly to 1 over the warm-up, then stays or falls to 0 along a half cosine at the last iteration."""
    warmup = min(1.0, (iteration + 1) / max(1, recipe.warmup_iterations))
    if recipe.schedule == "constant":
        return warmup
    if recipe.schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * iteration / recipe.iterations))
    raise ValueError(f"schedule is {recipe.schedule!r}, not 'constant' or 'cosine'")


class Progress:
    """Appends one JSON line per LOG_EVERY iterations, with the mean losses since the last one, and prints it."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        self.num_dropped_boxes = 0
        self._restart(iteration)

    def _restart(self, iteration: int) -> None:
        self.iteration, self.time_s, self.sums = iteration, time.perf_counter(), {}

    def add(self, iteration: int, losses: Mapping[str, torch.Tensor], num_dropped: int, learning_rate: float) -> None:
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss.item()
        self.num_dropped_boxes += num_dropped
        if iteration % LOG_EVERY:
            return
        count = iteration - self.iteration
        line: dict[str, Any] = {"iteration": iteration, "loss": round(sum(self.sums.values()) / count, 4)}
        line |= {name: round(total / count, 4) for name, total in self.sums.items()}
        line |= {
            "learning_rate": learning_rate,
            "s_per_iteration": round((time.perf_counter() - self.time_s) / count, 3),
            "num_dropped_boxes": self.num_dropped_boxes,
        }
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._restart(iteration)


if __name__ == "__main__":
    raise SystemExit(main())
