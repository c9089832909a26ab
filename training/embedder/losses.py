"""The two losses of the embedders, ArcFace and a contrastive loss with cross-batch memory, both in float32."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ArcFace(nn.Module):
    """Additive angular margin loss (Deng et al., CVPR 2019)."""

    def __init__(self, embedding_size: int, num_identities: int, *, scale: float = 30.0, margin: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_identities, embedding_size))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale
        self.margin = margin

    def forward(self, embeddings: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of embeddings [n, D], normalised here, and their identities, int64 [n].

        The cosine of the true class, cos θ, is replaced by cos(θ + margin). For θ > π − margin that would rise again,
        so there cos θ − margin · sin(π − margin) is used, which keeps falling.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
            rows = torch.arange(len(identities), device=cosines.device)
            cosine = cosines[rows, identities]
            sine = (1 - cosine.square()).clamp(min=1e-9).sqrt()  # keeps the gradient finite at cosine ±1
            shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
            linear = cosine - self.margin * math.sin(math.pi - self.margin)
            target = torch.where(cosine > math.cos(math.pi - self.margin), shifted, linear)
            logits = cosines.index_put((rows, identities), target)
            return F.cross_entropy(self.scale * logits, identities)


class CrossBatchMemory(nn.Module):
    """Contrastive loss over the current batch and a queue of past embeddings.

    The queue provides more pairs than one batch has (Wang et al., "Cross-batch memory for embedding learning", CVPR
    2020). It is saved with the module, so that a resumed run continues exactly.

    Args:
        size: number of past embeddings to keep.
        embedding_size: D.
        margin: a pair of different identities adds to the loss only if its cosine exceeds this.
    """

    embeddings: torch.Tensor
    identities: torch.Tensor
    position: torch.Tensor

    def __init__(self, size: int, embedding_size: int, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        self.register_buffer("identities", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def loss(self, embeddings: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        """Return the contrastive loss of embeddings [n, D], normalised here, and identities [n]; then store them.

        Pairs are formed within the batch, and between the batch and the memory. A pair of the same identity costs
        1 − cosine, a pair of different identities costs max(0, cosine − margin); each kind is averaged over its pairs
        of nonzero cost. Gradients flow through the current batch only.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            live = F.normalize(embeddings.float())
            known = self.identities >= 0
            cosines = torch.cat([live @ live.T, live @ self.embeddings[known].T], 1)
            same = identities[:, None] == torch.cat([identities, self.identities[known]])[None]
            not_itself = torch.ones_like(same)
            not_itself[:, : len(live)].fill_diagonal_(False)
            pull = (1 - cosines)[same & not_itself]
            push = (cosines - self.margin)[~same]
            push = push[push > 0]
            total = live.sum() * 0
            if len(pull):
                total = total + pull.mean()
            if len(push):
                total = total + push.mean()
        self._store(live.detach(), identities)
        return total

    @torch.no_grad()
    def _store(self, embeddings: torch.Tensor, identities: torch.Tensor) -> None:
        size = len(self.identities)
        embeddings, identities = embeddings[-size:], identities[-size:]
        slots = (self.position + torch.arange(len(identities), device=identities.device)) % size
        self.embeddings[slots] = embeddings
        self.identities[slots] = identities
        self.position.add_(len(identities)).remainder_(size)
