"""What title scores mean on every page: exp(score − log normaliser) is the probability that the next title is this one,
of all titles that are new to the member.

A score is a dot product, trained by a softmax over the catalogue: its level differs from member to member, what it says
beside that member's other titles does not. The normaliser is log Σ exp(score) over the titles not seen. Up to EXACT
titles it is that sum. In larger catalogues the candidates, which hold most of it, are summed up and the rest is
estimated from a sample of titles that is the same for everybody.
Shape letters: B members, N titles, K candidates, S sampled titles, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

EXACT = 20_000
SAMPLE = 8192


class Normaliser:
    """vectors: of all titles, float32 [N, D]."""

    def __init__(self, vectors: Tensor) -> None:
        count = len(vectors)
        self.vectors = vectors
        self.exact = count <= EXACT
        drawn = np.arange(count) if self.exact else np.random.default_rng(0).choice(count, SAMPLE, replace=False)
        self.sample = np.sort(drawn)
        self.products: Callable[[Tensor], np.ndarray] = self._products  # on a GPU graphs.py has another
        self.sampled = vectors if self.exact else vectors[torch.from_numpy(self.sample).to(vectors.device)]

    @torch.inference_mode()
    def __call__(
        self, members: Tensor, seen: Sequence[np.ndarray], candidates: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Log normalisers float64 [B] of member vectors float32 [B, D]; −inf for who has seen all titles.

        seen: bool [N] of each; candidates: title indices int64 [B, K], −1 is none, with scores float32 [B, K]."""
        products = self.products(members)
        return np.array([self._one(*of) for of in zip(products, seen, candidates, scores, strict=True)], np.float64)

    def _products(self, members: Tensor) -> np.ndarray:
        """Of members with the sampled titles, [B, S]."""
        return (members @ self.sampled.T).cpu().numpy()

    def _one(self, products: np.ndarray, seen: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> float:
        """Of products [S] with the sampled titles."""
        if self.exact:
            return _log_sum(products[~seen])
        near = candidates >= 0
        near[near] = ~seen[candidates[near]]
        counted = seen.copy()
        counted[candidates[near]] = True
        rest, drawn = len(seen) - int(counted.sum()), ~counted[self.sample]
        # Each sampled title stands for as many of the rest.
        share = np.log(max(rest, 1) / max(int(drawn.sum()), 1))
        return float(np.logaddexp(_log_sum(scores[near]), _log_sum(products[drawn]) + share))


def _log_sum(scores: np.ndarray) -> float:
    """log Σ exp, −inf of none and of those that are all −inf."""
    top = scores.max(initial=-np.inf)
    if top == -np.inf:
        return -np.inf
    return float(top) + float(np.log(np.exp(scores - top).sum(dtype=np.float64)))
