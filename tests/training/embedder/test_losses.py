import math

import pytest
import torch
import torch.nn.functional as F

from training.embedder.losses import ArcFace, CrossBatchMemory


def unit(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_arcface_by_hand() -> None:
    """Classes at 0° and 90°, an embedding of class 0 at 30°: cos(30° + margin) against cos 60°."""
    loss = ArcFace(2, 2, scale=30.0, margin=0.3)
    loss.weight.data = torch.tensor([unit(0), unit(90)]) * 7
    value = loss(torch.tensor([unit(30)]) * 3, torch.tensor([0]))
    right, wrong = 30 * math.cos(math.radians(30) + 0.3), 30 * math.cos(math.radians(60))
    assert value.item() == pytest.approx(-right + math.log(math.exp(right) + math.exp(wrong)), rel=1e-4)


def test_arcface_falls_on_beyond_pi_minus_margin() -> None:
    loss = ArcFace(3, 2)  # π − margin is 162.8°
    loss.weight.data = torch.tensor([[*unit(0), 0.0], [0.0, 0.0, 1.0]])
    angles = [155.0, 160.0, 162.0, 163.0, 165.0, 175.0, 180.0]
    values = [loss(torch.tensor([[*unit(a), 0.0]]), torch.tensor([0])).item() for a in angles]
    assert values == sorted(values)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_arcface_gradients_are_finite_at_the_ends(cosine: float) -> None:
    loss = ArcFace(2, 2)
    loss.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    embedding = torch.tensor([[cosine, 0.0]], requires_grad=True)
    loss(embedding, torch.tensor([0])).backward()
    assert torch.isfinite(embedding.grad).all() and torch.isfinite(loss.weight.grad).all()


def test_arcface_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    loss = ArcFace(8, 5)
    embeddings, identities = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(embeddings, identities)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(embeddings, identities))


def test_memory_over_three_batches_by_hand() -> None:
    memory = CrossBatchMemory(2, 2, margin=0.5)
    first = memory.loss(torch.tensor([unit(0)]), torch.tensor([1]))
    assert first.item() == 0  # nothing to compare with: the live batch is not in its own memory
    second = memory.loss(torch.tensor([unit(60), unit(20)]), torch.tensor([1, 2]))
    pull = 1 - math.cos(math.radians(60))
    push = [math.cos(math.radians(40)) - 0.5] * 2 + [math.cos(math.radians(20)) - 0.5]
    assert second.item() == pytest.approx(pull + sum(push) / 3, abs=1e-6)
    assert memory.identities.sort().values.tolist() == [1, 2]  # the first batch has been pushed out
    third = memory.loss(torch.tensor([unit(80)]), torch.tensor([2]))
    pull = 1 - math.cos(math.radians(60))
    push = math.cos(math.radians(20)) - 0.5
    assert third.item() == pytest.approx(pull + push, abs=1e-6)


def test_memory_gives_gradients_to_the_live_batch_only() -> None:
    torch.manual_seed(1)
    memory = CrossBatchMemory(8, 4)
    past = torch.randn(3, 4, requires_grad=True)
    memory.loss(past, torch.tensor([0, 1, 2]))
    live = torch.randn(3, 4, requires_grad=True)
    memory.loss(live, torch.tensor([0, 1, 2])).backward()
    assert past.grad is None and live.grad.abs().sum() > 0


def test_memory_holds_no_batch_twice_and_is_saved() -> None:
    memory = CrossBatchMemory(5, 4)
    for step in range(3):
        memory.loss(torch.randn(2, 4), torch.tensor([2 * step, 2 * step + 1]))
    assert sorted(memory.identities.tolist()) == [1, 2, 3, 4, 5]
    again = CrossBatchMemory(5, 4)
    again.load_state_dict(memory.state_dict())
    batch = torch.randn(2, 4), torch.tensor([3, 9])
    assert torch.equal(again.loss(*batch), memory.loss(*batch))
    assert torch.equal(again.identities, memory.identities)


def test_memory_stores_unit_vectors() -> None:
    memory = CrossBatchMemory(2, 3)
    batch = torch.randn(2, 3) * 10
    memory.loss(batch, torch.tensor([0, 1]))
    assert torch.allclose(memory.embeddings, F.normalize(batch))
