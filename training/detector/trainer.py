"""A training run of the detector: network, optimizer, schedule, precision and where it stands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.checkpoint import check_gradients, check_identity, save_whole
from training.detector.model import build_detector
from training.detector.recipe import Recipe

FREE_TO_CHANGE = ("checkpoint_every", "evaluate_every", "num_workers")
"""Fields of a recipe that do not touch the losses, so a resumed run may have others."""


class DetectorTrainer:
    """Every process of a distributed run has one; their gradients are averaged, so they stay equal."""

    def __init__(self, recipe: Recipe, *, seed: int = 0, amp: bool = False, data: str = "") -> None:
        """`data` names what is trained on (`training.wab.dataset.digest`)."""
        torch.manual_seed(seed)
        self.recipe = recipe
        self.seed = seed
        self.amp = amp
        self.data = data
        self.iteration = 0
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        model = build_detector(
            recipe.model,
            rpn_batch_size=recipe.rpn_batch_size,
            roi_batch_size=recipe.roi_batch_size,
            train_pre_nms_top_k=recipe.train_pre_nms_top_k,
            train_post_nms_top_k=recipe.train_post_nms_top_k,
        )
        self.model = model.to(device=self.device, memory_format=torch.channels_last)
        self.distributed: nn.Module = self.model
        if comm.get_world_size() > 1:
            self.distributed = DistributedDataParallel(self.model, device_ids=[self.device.index] if cuda else None)
        self.optimizer = build_optimizer(self.model, recipe)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda iteration: learning_rate_factor(iteration, recipe)
        )
        self.dtype = torch.float16 if cuda else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp and self.dtype is torch.float16)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.scheduler.get_last_lr()[0]

    def step(self, inputs: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Trains on one batch of detectron2's inputs; returns the losses, averaged over the processes.

        Raises FloatingPointError, naming the iteration and the losses, when a loss or, unless float16's scale can still
        be lowered, a gradient is not finite.
        """
        self.iteration += 1
        # The sampling of anchors and proposals depends on the iteration only, so that a resumed run repeats it.
        torch.manual_seed(self.seed + self.iteration * comm.get_world_size() + comm.get_rank())
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
                by_name = self.distributed(inputs)
        except FloatingPointError as error:  # detectron2's, for proposals that are not finite
            raise FloatingPointError(f"iteration {self.iteration}: {error}") from error
        losses = torch.stack([loss.float() for loss in by_name.values()])
        means = losses.detach().clone()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(means)
            means /= comm.get_world_size()
        values = dict(zip(by_name, means.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"loss is {sum(values.values())} at iteration {self.iteration}: {values}")

        self.optimizer.zero_grad()
        self.scaler.scale(losses.sum()).backward()
        self.scaler.unscale_(self.optimizer)
        max_norm = math.inf if self.recipe.max_gradient_norm is None else self.recipe.max_gradient_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        check_gradients(norm, self.scaler, f"at iteration {self.iteration}: {values}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return values

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in with the run that goes on from it."""
        fields = {name: value for name, value in asdict(self.recipe).items() if name not in FREE_TO_CHANGE}
        return {**fields, "seed": self.seed, "amp": self.amp, "data": self.data}

    def save(self, path: Path, progress: Mapping[str, Any]) -> None:
        """Replaces `path` by the whole state."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"identity": self.identity, "iteration": self.iteration, "progress": dict(progress)}
        save_whole(state, path)

    def load(self, path: Path) -> dict[str, Any]:
        """Takes over a saved state; returns the progress saved with it.

        Raises ValueError if it is another recipe's, stage's or data's, naming what differs.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        check_identity(self.identity, state.get("identity", {}), path)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.iteration = state["iteration"]
        return state["progress"]

    def _parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "scaler")}


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
