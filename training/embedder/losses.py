"""ArcFace and the cross-batch memory's contrastive loss, both computed in float32."""

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
        """[n, D] of any length and int64 [n] to the mean loss.

        The right class's cosine becomes cos(θ + margin); beyond θ = π − margin, where that would rise again, it goes
        on falling as cos θ − margin · sin(π − margin).
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
            rows = torch.arange(len(identities), device=cosines.device)
            cosine = cosines[rows, identities]
            sine = (1 - cosine.square()).clamp(min=1e-9).sqrt()  # finite slope at cosine ±1
            shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
            linear = cosine - self.margin * math.sin(math.pi - self.margin)
            target = torch.where(cosine > math.cos(math.pi - self.margin), shifted, linear)
            logits = cosines.index_put((rows, identities), target)
            return F.cross_entropy(self.scale * logits, identities)


class CrossBatchMemory(nn.Module):
    """Embeddings of past batches, to draw more pairs from (Wang et al., "Cross-batch memory", CVPR 2020).

    Only past batches are in it: `loss` compares the live batch with them and with itself, then stores it. Its state
    is saved with the module, so a resumed run continues exactly.
    """

    def __init__(self, size: int, embedding_size: int, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("embeddings", torch.zeros(size, embedding_size))
        self.register_buffer("identities", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def loss(self, embeddings: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        """[n, D] of any length and int64 [n] to the mean contrastive loss of the live batch.

        A pair of one identity costs 1 − cosine, a pair of two costs what its cosine exceeds the margin by; both kinds
        are averaged over the pairs that cost something. Gradients flow through the live batch only.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            live = F.normalize(embeddings.float())
            known = self.identities >= 0
            cosines = torch.cat([live @ live.T, live @ self.embeddings[known].T], 1)
            same = identities[:, None] == torch.cat([identities, self.identities[known]])[None]
            others = torch.ones_like(same)
            others[:, : len(live)].fill_diagonal_(False)
            pull = (1 - cosines)[same & others]
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
        places = (self.position + torch.arange(len(identities), device=identities.device)) % size
        self.embeddings[places] = embeddings
        self.identities[places] = identities
        self.position.add_(len(identities)).remainder_(size)
