"""One training over several processes, as started by torchrun; without it everything here does nothing."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def start() -> torch.device:
    """Joins the processes that torchrun started, if it did; returns this process's device."""
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def stop() -> None:
    """Ends what `start` began.

    Gloo's threads live on in DistributedDataParallel's reducer. One that has yet to drop its last work when the
    interpreter ends aborts the process, so they get a moment.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.5)


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_of_processors() -> int:
    """The machine's processors for each of its processes."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def check_agreement(value: object, what: str) -> None:
    """Raises ValueError, in every process, if they do not all give the same value."""
    values = [value] * rank_and_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        raise ValueError(f"{what} differs between processes: {values}")


@contextmanager
def first_process_first() -> Iterator[None]:
    """Lets the first process run the block, then the others, which wait for it up to a day.

    They wait in a Gloo group of their own, as the default group gives up after 10 (NCCL) or 30 minutes.
    """
    rank, size = rank_and_size()
    group = dist.new_group(backend="gloo", timeout=timedelta(days=1)) if size > 1 else None
    if group and rank > 0:
        dist.barrier(group)
    yield
    if group and rank == 0:
        dist.barrier(group)


def gather_batch(embeddings: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Joins the processes' shares of a batch in their order: [n, D] and [n] to [n · size, D] and [n · size].

    Every process then computes the loss of the whole batch, as one process would. Gradients flow back to the process
    that computed an embedding, times the number of processes, which DistributedDataParallel's mean takes away again.
    """
    size = rank_and_size()[1]
    if size == 1:
        return embeddings, identities
    parts = [torch.empty_like(identities) for _ in range(size)]
    dist.all_gather(parts, identities)
    return _Gather.apply(embeddings.float()), torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
