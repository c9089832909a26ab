"""How each embedder is trained: hyperparameters as plain values, one function per family."""

from dataclasses import dataclass

from training.embedder.model import DEMO, PRODUCTION, EmbedderConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. Adam without weight decay, cosine schedule with warm-up, per step."""

    model: EmbedderConfig
    num_epochs: int  # of the first cosine
    num_restarts: int = 0  # then more of them, each from half the learning rate
    restart_epochs: int = 0  # of each
    batch_size: int
    seed: int
    memory_size: int = 0  # embeddings of past batches; 0: no cross-batch memory
    memory_weight: float = 1.0  # the contrastive loss's share beside ArcFace's 1
    learning_rate: float = 3.5e-4
    warmup_share: float = 0.025
    template_sets: tuple[str, ...] = ("S", "SM", "M")
    heavy_augmentation: bool = True  # False: mirroring only, beside the jitter of boxes
    max_crop_side: int = 600  # pixels of a cached crop
    scale: float = 30.0
    margin: float = 0.3

    @property
    def total_epochs(self) -> int:
        return self.num_epochs + self.num_restarts * self.restart_epochs


def production(name: str) -> Recipe:
    """The reference solution's settings (b5 twice with other seeds, b6, b7); the jitter of boxes is ours."""
    epochs, batch_size, memory_size, seed = {
        "b5a": (10, 32, 0, 1),
        "b5b": (10, 32, 0, 2),
        "b6": (7, 32, 256, 3),
        "b7": (7, 24, 512, 4),
    }[name]
    return Recipe(model=PRODUCTION[name], num_epochs=epochs, batch_size=batch_size, memory_size=memory_size, seed=seed)


def demo(name: str) -> Recipe:
    """The same recipe for small networks trained from scratch in minutes on a CPU."""
    memory_size, seed = {"b5a": (0, 1), "b5b": (0, 2), "b6": (256, 3), "b7": (512, 4)}[name]
    return Recipe(
        model=DEMO[name],
        num_epochs=12,
        num_restarts=6,
        restart_epochs=6,
        batch_size=32,
        memory_size=memory_size,
        memory_weight=0.5,
        seed=seed,
        learning_rate=2e-3,
        template_sets=("XS",),
        max_crop_side=240,
    )


RECIPES: dict[str, Recipe] = {name: production(name) for name in PRODUCTION}
RECIPES |= {f"demo-{name}": demo(name) for name in DEMO}
