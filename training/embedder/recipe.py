"""The hyperparameters of the embedders' trainings."""

from dataclasses import dataclass, replace

import timm

from training.embedder.model import DEMO, PRODUCTION, EmbedderConfig
from training.embedder.templates import cached_side_px, crop_sizes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one training with Adam, without weight decay, and a cosine schedule with warm-up, per step."""

    model: EmbedderConfig
    num_epochs: int  # length of the first cosine
    num_restarts: int = 0  # further cosines, each starting at half the learning rate
    restart_epochs: int = 0  # length of each further cosine
    batch_size: int
    seed: int
    memory_size: int = 0  # past embeddings in the cross-batch memory; 0: none
    memory_weight: float = 1.0  # of the contrastive loss; ArcFace has weight 1
    learning_rate: float = 3.5e-4
    warmup_fraction: float = 0.025  # of the first cosine
    template_sets: tuple[str, ...] = ("S", "SM", "M")
    heavy_augmentation: bool = True  # False: only mirroring and the jitter of boxes
    scale: float = 30.0
    margin: float = 0.3

    @property
    def total_epochs(self) -> int:
        return self.num_epochs + self.num_restarts * self.restart_epochs

    @property
    def max_crop_side_px(self) -> int:
        """Longest side of a cached crop."""
        return cached_side_px((*self.template_sets, self.model.template))


def production(name: str) -> Recipe:
    """Return the settings of the reference solution; b5 is trained twice, with different seeds."""
    epochs, batch_size, memory_size, seed = {
        "b5a": (10, 32, 0, 1),
        "b5b": (10, 32, 0, 2),
        "b6": (7, 32, 256, 3),
        "b7": (7, 24, 512, 4),
    }[name]
    return Recipe(model=PRODUCTION[name], num_epochs=epochs, batch_size=batch_size, memory_size=memory_size, seed=seed)


def demo(name: str) -> Recipe:
    """Return a similar recipe for the small networks, which are trained from scratch on a CPU."""
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
    )


def with_backbone(recipe: Recipe, backbone: str) -> Recipe:
    """Return the recipe for another timm model, with the model's own preprocessing.

    If timm says that the model takes images of one size only, crops get this size. Raises ValueError for a name that
    timm does not know.
    """
    if not timm.is_model(backbone):
        raise ValueError(f"timm has no model {backbone!r}; see timm.list_models()")
    model = replace(recipe.model, backbone=backbone, backbone_options={})
    description = timm.get_pretrained_cfg(backbone)
    if description is None:
        return replace(recipe, model=model)
    (r, g, b), (std_r, std_g, std_b) = description.mean, description.std
    model = replace(model, mean=(255 * r, 255 * g, 255 * b), std=(255 * std_r, 255 * std_g, 255 * std_b))
    recipe = replace(recipe, model=model)
    _, height, width = description.input_size
    return with_crop_size(recipe, f"{width}x{height}") if description.fixed_input_size else recipe


def with_crop_size(recipe: Recipe, size: str) -> Recipe:
    """Return the recipe with these sizes of crops, in training as at test time; see `crop_sizes`."""
    crop_sizes(size)  # raises ValueError
    return replace(recipe, model=replace(recipe.model, template=size), template_sets=(size,))


RECIPES: dict[str, Recipe] = {name: production(name) for name in PRODUCTION}
RECIPES |= {f"demo-{name}": demo(name) for name in DEMO}
