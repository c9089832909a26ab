"""The training loop of the detector, and the state that a checkpoint stores: network, optimizer and schedule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from training.checkpoint import DivergedError, check_gradients, check_same_run, read_checkpoint, save_checkpoint
from training.datasets.images import AnnotatedImage, digest
from training.detector.average_precision import evaluate_detector
from training.detector.data import Batches
from training.detector.model import build_detector
from training.detector.progress import Progress
from training.detector.recipe import Recipe
from training.detector.weights import load_backbone, load_checkpoint, load_initial_weights, load_weights

NOT_COMPARED = ("checkpoint_every", "evaluate_every", "num_workers")
"""Fields of a recipe that do not influence the losses, so that a resumed run may change them."""


def train(
    images: Sequence[AnnotatedImage],
    validation: Sequence[AnnotatedImage],
    recipe: Recipe,
    output: Path,
    *,
    weights: Path | None = None,
    backbone_weights: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    amp: bool = False,
    notes: Sequence[Mapping[str, Any]] = (),
) -> nn.Module:
    """Train the detector. In a distributed run every process calls this, and the main process writes to `output`.

    Args:
        images: images to train on; their frames must have been extracted.
        validation: images to evaluate on; likewise.
        recipe: the hyperparameters.
        output: receives `detector.pth`, `detector.json`, `last.pt`, `log.jsonl` and `tensorboard/`.
        weights: a detector to start from; its box predictor is not used if it is for another number of classes.
        backbone_weights: a backbone to start from.
        resume: continue from `output`/last.pt if it exists; the weights to start from are then ignored.
        seed: decides the initial weights, the batches and the sampling of anchors and proposals.
        amp: mixed precision, float16 on a GPU and bfloat16 on a CPU.
        notes: lines to write at the beginning of the log.

    Returns:
        The trained model.

    Raises:
        DivergedError: a loss or a gradient is no longer finite.
        ValueError: last.pt belongs to a different run, or differs between the processes.
    """
    run = DetectorTrainer(recipe, seed=seed, amp=amp, data=digest(images))
    last = output / "last.pt"
    saved_progress = run.load(last) if resume and last.exists() else None
    first_iterations = comm.all_gather(run.iteration)
    if len(set(first_iterations)) > 1:
        raise ValueError(f"{last} differs between processes: they would resume from iterations {first_iterations}")
    start_from = weights or backbone_weights if saved_progress is None else last
    new_tensors: list[str] = []
    if saved_progress is None and weights is not None:
        new_tensors = load_initial_weights(run.model, load_checkpoint(weights, recipe.model), weights)
    elif saved_progress is None and backbone_weights is not None:
        load_weights(run.model.backbone.bottom_up, load_backbone(backbone_weights), backbone_weights)

    progress = None
    if comm.is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        progress = Progress(output, run.iteration, saved_progress)
        start: dict[str, Any] = {"start_from": None if start_from is None else str(start_from)}
        if new_tensors:
            start["initialized_for_other_classes"] = new_tensors
        for note in [*notes, start]:
            progress.write(run.iteration, note)
    _train_iterations(run, images, validation, progress, last)

    model: nn.Module = run.model.to(memory_format=torch.contiguous_format)
    if progress is not None:
        recipe.model.save(output / "detector.json")
        save_checkpoint({"model": model.state_dict()}, output / "detector.pth")
    metrics = evaluate_detector(model, validation, recipe)
    if progress is not None:
        progress.write(run.iteration, metrics, "validation")
        progress.close()
    return model


def _train_iterations(
    run: "DetectorTrainer",
    images: Sequence[AnnotatedImage],
    validation: Sequence[AnnotatedImage],
    progress: Progress | None,
    last: Path,
) -> None:
    """Run the remaining iterations; log, evaluate and save on the way. `progress` is None except in the main process.

    The evaluation after the last iteration is left to the caller, who stores the model first.
    """
    recipe = run.recipe
    loader = DataLoader(
        Batches(images, recipe, run.seed, rank=comm.get_rank(), num_processes=comm.get_world_size()),
        batch_size=None,
        sampler=range(run.iteration, recipe.iterations),
        num_workers=recipe.num_workers,
    )
    with EventStorage(run.iteration):
        for inputs in loader:
            learning_rate = run.learning_rate
            losses = run.step(inputs)
            is_last = run.iteration == recipe.iterations
            if progress is not None:
                progress.add(run.iteration, losses, learning_rate)
            if not is_last and run.iteration % recipe.evaluate_every == 0:
                metrics = evaluate_detector(run.model, validation, recipe)
                if progress is not None:
                    progress.write(run.iteration, metrics, "validation")
            if progress is not None and (is_last or run.iteration % recipe.checkpoint_every == 0):
                run.save(last, progress.state_dict())


class DetectorTrainer:
    """Network, optimizer, learning-rate schedule and loss scale of a training, and its current iteration.

    Every process of a distributed run has one. The gradients are averaged over the processes, so that all stay equal.

    Args:
        recipe: the hyperparameters.
        seed: decides the initial weights and the sampling of anchors and proposals.
        amp: mixed precision, float16 on a GPU and bfloat16 on a CPU.
        data: identifies the training images (`training.datasets.images.digest`).
    """

    def __init__(self, recipe: Recipe, *, seed: int = 0, amp: bool = False, data: str = "") -> None:
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
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def step(self, inputs: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Train on one batch of detectron2's inputs; return the losses, averaged over the processes.

        Raises DivergedError, naming the iteration and the losses, if a loss is not finite, or if a gradient is not
        finite and lowering the loss scale of float16 cannot help.
        """
        self.iteration += 1
        # The sampling of anchors and proposals is seeded by iteration and process, so that a resumed run repeats it.
        torch.manual_seed(self.seed + self.iteration * comm.get_world_size() + comm.get_rank())
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
                by_name = self.distributed(inputs)
        except FloatingPointError as error:  # detectron2 raises it for proposals that are not finite
            raise DivergedError(f"iteration {self.iteration}: {error}") from error
        losses = torch.stack([loss.float() for loss in by_name.values()])
        means = losses.detach().clone()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(means)
            means /= comm.get_world_size()
        values = dict(zip(by_name, means.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise DivergedError(f"loss is {sum(values.values())} at iteration {self.iteration}: {values}")

        self.optimizer.zero_grad()
        self.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
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
        """The settings that a run must share with a checkpoint to resume from it."""
        fields = {name: value for name, value in asdict(self.recipe).items() if name not in NOT_COMPARED}
        return {**fields, "seed": self.seed, "amp": self.amp, "data": self.data}

    def save(self, path: Path, progress: Mapping[str, Any]) -> None:
        """Save everything that is needed to resume, and the progress of the log."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"identity": self.identity, "iteration": self.iteration, "progress": dict(progress)}
        save_checkpoint(state, path)

    def load(self, path: Path) -> dict[str, Any]:
        """Continue from a saved state; return the progress that was saved with it.

        Raises ValueError, naming the differences, if it was saved with a different recipe, seed, precision or data.
        """
        state = read_checkpoint(path, self.device)
        check_same_run(self.identity, state.get("identity") if isinstance(state, dict) else None, path)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.iteration = state["iteration"]
        progress: dict[str, Any] = state["progress"]
        return progress

    def _parts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "optimizer", "scheduler", "scaler")}


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer. Weight decay applies to convolution and linear weights, not to biases and norms."""
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
    """Return the factor of the learning rate: a linear warm-up to 1, then constant or a half cosine down to 0."""
    warmup = min(1.0, (iteration + 1) / max(1, recipe.warmup_iterations))
    if recipe.schedule == "constant":
        return warmup
    if recipe.schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * iteration / recipe.iterations))
    raise ValueError(f"schedule is {recipe.schedule!r}, not 'constant' or 'cosine'")
