"""Trains one embedder on parts of Watch and Buy (or demo worlds).

    python -m training.embedder.train --config b5a --data PART [PART …] --output DIR [--pretrained F] [--resume]

Writes DIR/embedder_<name>.pth and .json, and after each epoch DIR/<name>.resume.pth, from which --resume continues
the same schedule.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from training.embedder.crops import AspectBatches, Crop, CropDataset, prepare_crops
from training.embedder.losses import ArcFace, CrossBatchMemory
from training.embedder.model import Embedder, save_embedder
from training.embedder.recipe import RECIPES, Recipe


class Run:
    """A training run: networks, optimizer, schedule and where it stands."""

    def __init__(self, recipe: Recipe, crops: Sequence[Crop], *, pretrained: Path | bool = False) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dataset = CropDataset(crops)
        self.batches = AspectBatches(
            crops, batch_size=recipe.batch_size, template_sets=recipe.template_sets, seed=recipe.seed
        )
        model = Embedder(recipe.model, pretrained=pretrained)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        size = recipe.model.embedding_size
        self.arcface = ArcFace(size, self.dataset.num_identities, scale=recipe.scale, margin=recipe.margin)
        self.arcface.to(self.device)
        self.memory = CrossBatchMemory(recipe.memory_size, size).to(self.device)
        trained = [p for p in (*self.model.parameters(), *self.arcface.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        self.autocast = torch.autocast(self.device.type, dtype)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.epoch = 0

    def _factor(self, step: int) -> float:
        """Factor of the learning rate at a step, counted over both cosines."""
        first = self.recipe.num_epochs * len(self.batches)
        if step < first or not self.recipe.restart_epochs:
            return warmup_cosine(step, first, self.recipe.warmup_share)
        return 0.5 * warmup_cosine(step - first, self.recipe.restart_epochs * len(self.batches), 0.0)

    def train_epoch(self, num_workers: int) -> dict[str, float]:
        """Runs one epoch; returns mean losses and speed. Raises FloatingPointError if a loss is not finite."""
        self.batches.epoch = self.epoch
        torch.manual_seed(self.recipe.seed * 1000 + self.epoch)  # for augmentation, so that resuming changes nothing
        self.model.train()
        loader = DataLoader(self.dataset, batch_sampler=self.batches, num_workers=num_workers)
        start = time.perf_counter()
        sums = {"arcface": 0.0, "memory": 0.0}
        for pixels, identities in loader:
            losses = self.step(pixels.to(self.device), identities.to(self.device))
            for name, value in losses.items():
                sums[name] += value
        self.epoch += 1
        crops_per_s = len(self.batches) * self.recipe.batch_size / (time.perf_counter() - start)
        means = {name: round(value / len(self.batches), 4) for name, value in sums.items()}
        return {"epoch": self.epoch, **means, "crops_per_s": round(crops_per_s, 1)}

    def step(self, pixels: torch.Tensor, identities: torch.Tensor) -> dict[str, float]:
        """One optimizer step on uint8 [n, 3, h, w] pixels and int64 [n] identities; returns the two losses."""
        mean = torch.tensor(self.recipe.model.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.recipe.model.std, device=self.device)[:, None, None]
        pixels = ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        with self.autocast:
            embeddings = self.model(pixels)
        losses = {"arcface": self.arcface(embeddings, identities)}
        if self.recipe.memory_size:
            losses["memory"] = self.recipe.memory_weight * self.memory.loss(embeddings, identities)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"loss is {total.item()} in epoch {self.epoch + 1}; the run stops here")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return {name: value.item() for name, value in losses.items()}

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]:
        names = ("model", "arcface", "memory", "optimizer", "schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save({"epoch": self.epoch, **{name: part.state_dict() for name, part in self._parts().items()}}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.epoch = state["epoch"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def warmup_cosine(step: int, num_steps: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear up during the warm-up, then half a cosine down to zero."""
    warmup = max(1, round(warmup_share * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(RECIPES), required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="parts of the data set")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="frames and crops (default: OUTPUT/cache)")
    parser.add_argument("--pretrained", type=Path, help="backbone weights in timm's naming")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/NAME.resume.pth if it is there")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--num-threads", type=int, help="CPU threads of PyTorch")
    arguments = parser.parse_args(argv)
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    recipe = RECIPES[arguments.config]
    name = arguments.config.removeprefix("demo-")
    cache = arguments.cache or arguments.output / "cache"
    crops = prepare_crops(arguments.data, cache, max_side=recipe.max_crop_side)
    run = Run(recipe, crops, pretrained=arguments.pretrained or False)
    resume = arguments.output / f"{name}.resume.pth"
    if arguments.resume and resume.exists():
        run.load(resume)
    print(json.dumps({"crops": len(crops), "identities": run.dataset.num_identities, "batches": len(run.batches)}))
    while run.epoch < recipe.num_epochs + recipe.restart_epochs:
        print(json.dumps(run.train_epoch(arguments.num_workers)), flush=True)
        run.save(resume)
    save_embedder(run.model.float().cpu(), arguments.output / f"embedder_{name}.pth")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
