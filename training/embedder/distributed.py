"""Train one embedder with several processes started by torchrun. With a single process, everything here is a no-op."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def start() -> torch.device:
    """Join the processes that torchrun started, if any; return the device of this process.

    Raises ValueError if there are more processes than GPUs.
    """
    rank_on_machine = int(os.environ.get("LOCAL_RANK", 0))
    has_gpu = torch.cuda.is_available()
    if has_gpu and rank_on_machine >= torch.cuda.device_count():
        raise ValueError(f"process {rank_on_machine} has no GPU: this machine has {torch.cuda.device_count()}")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if has_gpu else "gloo")
    if not has_gpu:
        return torch.device("cpu")
    device = torch.device("cuda", rank_on_machine)
    torch.cuda.set_device(device)
    return device


def stop() -> None:
    """Leave the process group.

    Gloo's threads are kept alive by DistributedDataParallel. If one of them still holds work when the interpreter
    exits, it aborts the process, so they get a moment to finish.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.5)


def rank_and_size() -> tuple[int, int]:
    """Return the index of this process, counted from 0, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def cpus_per_process() -> int:
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def batch_slice(batch_size: int, rank: int, num_processes: int) -> slice:
    """Return the slice of a batch that a process trains on. Raises ValueError if it cannot be split evenly."""
    if batch_size % num_processes:
        raise ValueError(f"a batch of {batch_size} cannot be split evenly over {num_processes} processes")
    return slice(rank * batch_size // num_processes, (rank + 1) * batch_size // num_processes)


def check_agreement(value: object, what: str) -> None:
    """Raise ValueError, in every process, unless all processes pass the same value."""
    values = [value] * rank_and_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        raise ValueError(f"{what} differs between processes: {values}")


@contextmanager
def main_process_first() -> Iterator[None]:
    """Context manager: the main process runs the block first; the others wait for it, for up to a day.

    They wait in a Gloo group of their own, because the default group times out after 10 (NCCL) or 30 minutes.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(group, dist.ProcessGroup)
    if rank > 0:
        dist.barrier(group)
    yield
    if rank == 0:
        dist.barrier(group)


def gather_batch(embeddings: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the parts of a batch in the order of the processes: [n, D] and [n] to [n · size, D] and [n · size].

    Every process then computes the loss of the whole batch, as a single process would. The gradient of an embedding is
    summed over all processes and thus multiplied by their number, which DistributedDataParallel's averaging cancels.
    """
    size = rank_and_size()[1]
    if size == 1:
        return embeddings, identities
    parts = [torch.empty_like(identities) for _ in range(size)]
    dist.all_gather(parts, identities)
    gathered: torch.Tensor = _Gather.apply(embeddings.float())
    return gathered, torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(embeddings) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, embeddings.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
