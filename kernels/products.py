"""All inner products of two sets of vectors, for rankings on a CPU: equal vectors get equal scores, to the bit."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

TILE = 16


def inner_products(vectors: Tensor, titles: Tensor) -> Tensor:
    """vectors [B, D], titles [N, D], of one floating-point type → [B, N], not contiguous.

    What is left over at the edges of a matrix goes through other instructions than its inside, which add in another
    order: titles of equal vectors would differ in the last bit by where they stand, and a tie would not go to the
    smaller index. So only whole tiles are multiplied, the last ones filled up with zeros.
    """
    columns = nnf.pad(vectors, (0, 0, 0, -len(vectors) % TILE)).T
    whole = len(titles) // TILE * TILE
    found = vectors.new_empty(len(titles), columns.shape[1])
    if whole:
        torch.mm(titles[:whole], columns, out=found[:whole])  # faster so than the other way round
    if whole < len(titles):
        rest = nnf.pad(titles[whole:], (0, 0, 0, -len(titles) % TILE))
        found[whole:] = (rest @ columns)[: len(titles) - whole]
    return found.T[: len(vectors)]
