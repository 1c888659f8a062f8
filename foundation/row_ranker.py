"""The subgraph pattern: a small head on the frozen state of layer k ranks the rows of a page.

score(member, row) = mlp(state) · row vector + row bias; a row vector is an id embedding mixed with the row's content,
so that a row added after training has a usable score. On the page it is blended with what the titles say:

    logit = blend₀ + blend₁ · score(member, row) + blend₂ · log(chance of the row's first titles)

where the chance of a title is the title head's softmax over the member's candidates (serving/page.py).
Shape letters: B members, M d_model, R rows, H head width, D vector width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

ROW_STATISTICS = 3  # log of the size, mean popularity percentile, 1 if its titles depend on the member


class RowRanker(nn.Module):
    """row_ids: int64 [R], the rows it is trained on; any other row gets the unknown row's embedding."""

    def __init__(self, row_ids: Tensor, d_model: int, vector_width: int, width: int = 64, dropout: float = 0.2):
        super().__init__()
        self.row_ids: Tensor
        self.register_buffer("row_ids", row_ids)
        self.dropout = dropout
        self.norm = nn.RMSNorm(d_model)
        self.up = nn.Linear(d_model, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.embedding = nn.Parameter(torch.randn(len(row_ids) + 1, width) * 0.05)
        self.content = nn.Linear(vector_width + ROW_STATISTICS, width)
        self.bias = nn.Linear(width, 1)
        self.blend: Tensor
        self.register_buffer("blend", torch.tensor([0.0, 1.0, 0.0]))

    def row_vectors(self, row_ids: Tensor, features: Tensor, id_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """row_ids int64 [R], features [R, D + ROW_STATISTICS] → (vectors [R, H], biases [R])."""
        same = row_ids[:, None] == self.row_ids[None]
        index = torch.where(same.any(1), same.float().argmax(1) + 1, 0)
        if id_dropout:
            index = torch.where(torch.rand(len(index), device=index.device) < id_dropout, 0, index)
        vectors = self.embedding[index] + self.content(features)
        return vectors, self.bias(vectors)[:, 0]

    def forward(self, state: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
        """state [B, M] of the frozen model → logits [B, R], of the state alone."""
        hidden = nnf.dropout(nnf.gelu(self.up(self.norm(state))), self.dropout, self.training)
        return self.down(hidden) @ vectors.T + biases
