"""The training of an embedder: networks, optimizer, schedule, and how an epoch is trained."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from training.checkpoint import DivergedError, check_gradients, check_same_run, read_checkpoint, save_checkpoint
from training.embedder import distributed
from training.embedder.augment import augmentation
from training.embedder.crops import Crop, digest
from training.embedder.data import AspectBatches, CropDataset
from training.embedder.losses import ArcFace, CrossBatchMemory
from training.embedder.model import Embedder
from training.embedder.recipe import Recipe

CPU = torch.device("cpu")


class EmbedderTrainer:
    """Networks, optimizer, schedule and data of a training, and its current epoch.

    Args:
        recipe: the hyperparameters.
        crops: the training data.
        pretrained: backbone weights to start from, see `Embedder`.
        device: the device that this process trains on.
    """

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
        self.identity = {**asdict(recipe), "crops": digest(crops)}  # a run can be resumed only if this is equal
        self.rank, num_processes = distributed.rank_and_size()
        self.device = device
        self.dataset = CropDataset(crops, augmentation(heavy=recipe.heavy_augmentation))
        if self.dataset.num_identities < 2:
            raise ValueError(f"identities in the data: {self.dataset.num_identities}, but at least two are needed")
        self.batches = AspectBatches(
            crops,
            batch_size=recipe.batch_size,
            template_sets=recipe.template_sets,
            seed=recipe.seed,
            rank=self.rank,
            num_processes=num_processes,
        )
        model = Embedder(recipe.model, pretrained=pretrained)
        if num_processes > 1 and device.type == "cuda":
            model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.model = model.to(device).to(memory_format=torch.channels_last)
        size = recipe.model.embedding_size
        self.arcface = ArcFace(size, self.dataset.num_identities, scale=recipe.scale, margin=recipe.margin)
        self.arcface.to(device)
        self.memory = CrossBatchMemory(recipe.memory_size, size).to(device)
        self.embed: nn.Module = self.model
        self.classify: nn.Module = self.arcface
        if num_processes > 1:
            self.embed = DistributedDataParallel(self.model)
            self.classify = DistributedDataParallel(self.arcface)  # keeps its weights equal in all processes
        self.trained = [p for p in (*self.model.parameters(), *self.arcface.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=recipe.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        # On a CPU bfloat16 is slower than float32 unless the processor has instructions for it, so it is not used.
        is_half = device.type == "cuda"
        self.autocast = torch.autocast(device.type, torch.float16, enabled=is_half)
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.epoch = 0

    def _factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step, counted from the start of the training."""
        first = self.recipe.num_epochs * len(self.batches)
        if step < first or not self.recipe.num_restarts:
            return warmup_cosine(step, first, self.recipe.warmup_fraction)
        restart = self.recipe.restart_epochs * len(self.batches)
        return 0.5 * warmup_cosine((step - first) % restart, restart, 0.0)

    def train_epoch(self, num_workers: int) -> dict[str, float]:
        """Train one epoch; return its number, the mean losses and the speed.

        Raises DivergedError if a loss is not finite, or if a gradient is not finite and lowering the loss scale of
        float16 cannot help.
        """
        self.batches.epoch = self.epoch
        # Seed each process and epoch differently, so that a resumed run repeats the same augmentation.
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
        """Take one optimizer step; return the losses of the whole batch.

        Args:
            pixels: uint8 [n, 3, h, w] RGB, this process's part of the batch.
            identities: int64 [n], their class labels.
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
            raise DivergedError(f"loss is {total.item()} in epoch {self.epoch + 1}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        check_gradients(norm, self.scaler, f"in epoch {self.epoch + 1}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return {name: value.item() for name, value in losses.items()}

    def _parts(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]:
        names = ("model", "arcface", "memory", "optimizer", "schedule", "scaler")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        """Save everything that is needed to resume."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        save_checkpoint({"identity": self.identity, "epoch": self.epoch, **state}, path)

    def load(self, path: Path) -> None:
        """Continue from a saved state.

        Raises ValueError, naming the differences, if it was saved with a different recipe or different crops.
        """
        state = read_checkpoint(path)  # on the CPU, where Adam keeps its step counts
        check_same_run(self.identity, state.get("identity") if isinstance(state, dict) else None, path)
        self.epoch = state["epoch"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def warmup_cosine(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Return the factor of the learning rate: a linear warm-up to 1, then half a cosine down to 0."""
    warmup = max(1, round(warmup_fraction * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
