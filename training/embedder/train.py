"""Trains one embedder on parts of Watch and Buy (or demo worlds).

    python -m training.embedder.train --config b5a --data PART [PART …] --output DIR [--pretrained F] [--resume]
    torchrun --nproc-per-node 4 -m training.embedder.train …

Several processes share each batch: the recipe's batch size is that of all of them together, and so is the loss, so a
recipe means the same on one GPU and on eight. Writes DIR/embedder_<name>.pth and .json, and after each epoch
DIR/<name>.resume.pth, from which --resume continues the same schedule on the same crops. Without --resume a run that is
there is not overwritten.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from training.checkpoint import check_gradients, check_identity, save_whole
from training.embedder import distributed
from training.embedder.augment import augmentation
from training.embedder.crops import AspectBatches, Crop, CropDataset, digest, prepare_crops
from training.embedder.losses import ArcFace, CrossBatchMemory
from training.embedder.model import Embedder, save_embedder
from training.embedder.recipe import RECIPES, Recipe
from training.wab.dataset import add_bad_pictures_option

CPU = torch.device("cpu")


class EmbedderTrainer:
    """A training run: networks, optimizer, schedule and where it stands."""

    def __init__(
        self,
        recipe: Recipe,
        crops: Sequence[Crop],
        *,
        pretrained: Path | bool = False,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.identity = {**asdict(recipe), "crops": digest(crops)}  # what a saved state must agree in
        self.rank, num_processes = distributed.rank_and_size()
        self.device = device
        self.dataset = CropDataset(crops, augmentation(heavy=recipe.heavy_augmentation))
        self.batches = AspectBatches(
            crops,
            batch_size=recipe.batch_size,
            template_sets=recipe.template_sets,
            seed=recipe.seed,
            share=(self.rank, num_processes),
        )
        model = Embedder(recipe.model, pretrained=pretrained)
        if num_processes > 1 and device.type == "cuda":
            model = convert_sync_batchnorm(model)
        self.model = model.to(device, memory_format=torch.channels_last)
        size = recipe.model.embedding_size
        self.arcface = ArcFace(size, self.dataset.num_identities, scale=recipe.scale, margin=recipe.margin)
        self.arcface.to(device)
        self.memory = CrossBatchMemory(recipe.memory_size, size).to(device)
        self.embed: nn.Module = self.model
        self.classify: nn.Module = self.arcface
        if num_processes > 1:
            self.embed = DistributedDataParallel(self.model)
            self.classify = DistributedDataParallel(self.arcface)  # the same on all; this keeps it so
        self.trained = [p for p in (*self.model.parameters(), *self.arcface.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        # Not bfloat16 on a CPU: without instructions for it that is slower than float32.
        is_half = device.type == "cuda"
        self.autocast = torch.autocast(device.type, torch.float16, enabled=is_half)
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.epoch = 0

    def _factor(self, step: int) -> float:
        """Factor of the learning rate at a step, counted over all cosines."""
        first = self.recipe.num_epochs * len(self.batches)
        if step < first or not self.recipe.num_restarts:
            return warmup_cosine(step, first, self.recipe.warmup_share)
        restart = self.recipe.restart_epochs * len(self.batches)
        return 0.5 * warmup_cosine((step - first) % restart, restart, 0.0)

    def train_epoch(self, num_workers: int) -> dict[str, float]:
        """Runs one epoch; returns mean losses and speed.

        Raises FloatingPointError if a loss or, at full precision or a scale below 1, a gradient is not finite.
        """
        self.batches.epoch = self.epoch
        # For augmentation: other for every process, and so that resuming changes nothing.
        torch.manual_seed(self.recipe.seed * 1000 + self.epoch + 1_000_000 * self.rank)
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
        """One optimizer step on this process's uint8 [n, 3, h, w] pixels and int64 [n] identities.

        Returns the two losses of the whole batch.
        """
        mean = torch.tensor(self.recipe.model.mean, device=self.device)[:, None, None]
        std = torch.tensor(self.recipe.model.std, device=self.device)[:, None, None]
        pixels = ((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        with self.autocast:
            embeddings = self.embed(pixels)
        embeddings, identities = distributed.gather_batch(embeddings, identities)
        losses = {"arcface": self.classify(embeddings, identities)}
        if self.recipe.memory_size:
            losses["memory"] = self.recipe.memory_weight * self.memory.loss(embeddings, identities)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"loss is {total.item()} in epoch {self.epoch + 1}; the run stops here")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        check_gradients(norm, self.scaler, f"in epoch {self.epoch + 1}; the run stops here")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return {name: value.item() for name, value in losses.items()}

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]:
        names = ("model", "arcface", "memory", "optimizer", "schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        """Replaces `path` by the whole state."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self._parts().items()}
        save_whole({"identity": self.identity, "epoch": self.epoch, **state}, path)

    def load(self, path: Path) -> None:
        """Takes over a saved state. Raises ValueError, naming what differs, if it is another recipe's or data's."""
        state = torch.load(path, map_location="cpu", weights_only=True)  # where Adam keeps its step counts
        check_identity(self.identity, state.get("identity", {}), path)
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
    parser.add_argument("--pretrained", metavar="FILE", help="backbone weights in timm's naming; 'timm': download them")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT/NAME.resume.pth if it is there")
    add_bad_pictures_option(parser)
    parser.add_argument(
        "--num-workers",
        type=int,
        help="processes that read and augment crops, for each process that trains (default: on a GPU one for each of "
        "the machine's processors, shared evenly; on a CPU none)",
    )
    parser.add_argument("--num-threads", type=int, help="CPU threads of PyTorch")
    arguments = parser.parse_args(argv)
    name = arguments.config.removeprefix("demo-")
    resume = arguments.output / f"{name}.resume.pth"
    if resume.exists() and not arguments.resume:
        parser.error(f"{resume} is there already: go on from it with --resume, or remove it")
    if arguments.pretrained not in (None, "timm") and not Path(arguments.pretrained).is_file():
        parser.error(f"{arguments.pretrained}: no such file")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    device = distributed.start()
    if arguments.num_workers is None:
        arguments.num_workers = distributed.share_of_processors() if device.type == "cuda" else 0
    try:
        train(arguments, resume, arguments.output / f"embedder_{name}.pth", device)
    finally:
        distributed.stop()
    return 0


def train(arguments: argparse.Namespace, resume: Path, checkpoint: Path, device: torch.device) -> None:
    recipe = RECIPES[arguments.config]
    cache = arguments.cache or arguments.output / "cache"
    rank, _ = distributed.rank_and_size()
    with distributed.first_process_first():  # it fills the cache
        crops = prepare_crops(
            arguments.data, cache, max_side=recipe.max_crop_side, max_bad_pictures=arguments.max_bad_pictures
        )
    pretrained = arguments.pretrained == "timm" or (Path(arguments.pretrained) if arguments.pretrained else False)
    run = EmbedderTrainer(recipe, crops, pretrained=pretrained, device=device)
    if resume.exists():
        run.load(resume)
    distributed.check_agreement(run.epoch, f"the epoch that {resume} ends at")
    if rank == 0:
        print(json.dumps({"crops": len(crops), "identities": run.dataset.num_identities, "batches": len(run.batches)}))
    while run.epoch < recipe.total_epochs:
        metrics = run.train_epoch(arguments.num_workers)
        if rank == 0:
            print(json.dumps(metrics), flush=True)
            run.save(resume)
    if rank == 0:
        save_embedder(run.model.float().cpu(), checkpoint)


if __name__ == "__main__":
    raise SystemExit(main())
