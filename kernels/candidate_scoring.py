"""candidate_scoring: dot product of member vectors with their candidates, best k of each list.

Shape letters: B members, K candidates per member, N titles, D vector width, k kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def candidate_scoring(
    member_vectors: Tensor, title_vectors: Tensor, candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of each member's candidates by dot product.

    member_vectors: [B, D]. title_vectors: [N, D]. candidates: int64 [B, K], indices into title_vectors, −1 pads.
    Returns (indices int64 [B, k], scores float32 [B, k]), best first; ties: higher score, then smaller index. Where
    fewer than k candidates are left, index −1 with score −inf. NaN scores count as −inf.
    Raises ValueError if shapes do not fit, k < 1, or an index is outside [−1, N).
    """
    fits = member_vectors.dim() == title_vectors.dim() == candidates.dim() == 2
    if not fits or member_vectors.shape[1] != title_vectors.shape[1] or len(candidates) != len(member_vectors):
        raise ValueError(
            f"member_vectors {tuple(member_vectors.shape)}, title_vectors {tuple(title_vectors.shape)} and "
            f"candidates {tuple(candidates.shape)} do not fit; expected [B, D], [N, D], [B, K]"
        )
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if candidates.numel():
        low, high = int(candidates.min()), int(candidates.max())
        if low < -1 or high >= len(title_vectors):
            raise ValueError(f"candidate {low if low < -1 else high} is outside [-1, {len(title_vectors)})")
    return candidate_scoring_reference(member_vectors, title_vectors, candidates, k)


def candidate_scoring_reference(
    member_vectors: Tensor, title_vectors: Tensor, candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Plain torch with the same signature: the definition of the op."""
    members, titles = member_vectors.float(), title_vectors.float()
    if not len(titles):
        titles = titles.new_zeros(1, titles.shape[1])  # for the padding, the only candidate there can be
    width = candidates.shape[1]
    if members.shape[0] * width >= titles.shape[0]:
        scores = (members @ titles.T).gather(1, candidates.clamp(min=0))  # small catalogue: dense, then gather
    else:
        scores = torch.einsum("bd,bkd->bk", members, titles[candidates.clamp(min=0)])
    scores = scores.masked_fill((candidates < 0) | scores.isnan(), -torch.inf)
    # A stable sort over candidates in index order gives the tie rule.
    ordered, by_index = candidates.sort(dim=1, stable=True)
    ranked, order = scores.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    indices = ordered.gather(1, order)
    indices = indices.masked_fill(ranked == -torch.inf, -1)
    if k > width:
        pad = (members.shape[0], k - width)
        indices = torch.cat([indices, indices.new_full(pad, -1)], dim=1)
        ranked = torch.cat([ranked, ranked.new_full(pad, -torch.inf)], dim=1)
    return indices[:, :k].contiguous(), ranked[:, :k].contiguous()
