"""Add up the GPU memory that Triton needs for a set of engines, and compare it with the pipeline's budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from export.config import PipelineConfig
from export.tensorrt.profiles import Profile

MAX_FRACTION = 0.75
"""How much of the GPU's memory engines may take; the rest is for CUDA itself, CUDA graphs, and images in flight."""

_ROW = "{:<14} {:<12} {:>6} {:>11} {:>9} {:>8}"


@dataclass(frozen=True)
class ModelMemory:
    """The GPU memory of one engine: Triton holds the weights once, and a context per profile and instance."""

    model: str
    profiles: Sequence[Profile]
    scratch_bytes: Sequence[int]  # of one context, for each profile
    weights_bytes: int
    num_instances: int

    @property
    def total_bytes(self) -> int:
        """Bytes of the weights and of all contexts."""
        return self.weights_bytes + self.num_instances * sum(self.scratch_bytes)

    def rows(self) -> Iterable[str]:
        """Yield one line for each profile, and one for the weights."""
        for profile, scratch in zip(self.profiles, self.scratch_bytes, strict=True):
            batch = next(iter(profile.inputs.values())).maximum[0]
            total = f"{self.num_instances * scratch / 1e6:.0f}"
            yield _ROW.format(self.model, profile.name, batch, f"{scratch / 1e6:.0f}", self.num_instances, total)
        yield _ROW.format(self.model, "weights", "", "", "", f"{self.weights_bytes / 1e6:.0f}")


def table(memories: Sequence[ModelMemory], config: PipelineConfig) -> str:
    """Return a table with a line for each profile, in MB (10⁶ bytes), and the sum."""
    lines = [_ROW.format("model", "profile", "batch", "scratch MB", "contexts", "sum MB")]
    for memory in memories:
        lines.extend(memory.rows())
    total = sum(memory.total_bytes for memory in memories)
    return "\n".join([*lines, f"sum: {total / 1e9:.1f} of {_budget_gb(config):.1f} GB"])


def require_fit(memories: Sequence[ModelMemory], config: PipelineConfig) -> None:
    """Raise ValueError, which names the largest engine, if the sum exceeds MAX_FRACTION of the GPU's memory."""
    total_gb = sum(memory.total_bytes for memory in memories) / 1e9
    if total_gb > _budget_gb(config):
        largest = max(memories, key=lambda memory: memory.total_bytes)
        raise ValueError(
            f"the engines need {total_gb:.1f} GB, more than {_budget_gb(config):.1f} GB "
            f"({MAX_FRACTION:.0%} of {config.gpu_memory_gb} GB); "
            f"the largest is {largest.model} with {largest.total_bytes / 1e9:.1f} GB"
        )


def _budget_gb(config: PipelineConfig) -> float:
    return MAX_FRACTION * config.gpu_memory_gb
