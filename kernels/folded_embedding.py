"""folded_embedding: event_embedding for frozen weights on a CPU, as a sum of gathered rows.

Each table is multiplied once with its slice of the projection (P_f = E_f W_fᵀ, [V_f, M]) and all of them stand under
one another, so that an event is one bag of rows: neither concatenation nor product is left. A field that is a mean of
its rows has P_f once for each count n, divided by n.

Joint tables of several small fields, a row for each combination of their values, would be fewer rows and do not pay: a
row read from the cache costs about as little as finding a joint id (benchmarks/embedding_cpu.py, benchmarks/LOG.md).

Shape letters: T events, C columns of encoded ids, F fields, E = Σ table widths, M d_model, R rows of all tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .field_groups import check_ids, check_inputs, concatenation

BUDGET = 256 << 20


@dataclass(frozen=True)
class FoldedEmbedding:
    """What `fold` makes. Calling it with ids int32 [T, C] gives what event_embedding gave for them, [T, M], up to the
    order of sums and the rounding of projected rows to the weight's dtype, and raises the same ValueError for ids that
    do not fit. Without gradients; autocast changes nothing."""

    rows: Tensor  # [R, M]
    columns: list[int]  # of ids, one for each row of a bag
    firsts: Tensor  # int32 [columns], the row of their id 0
    averaged: list[tuple[int, int, int]]  # of averaged fields, the places [start, stop) in columns, and V
    sizes: tuple[int, ...]  # V_f of all fields
    spans: list[tuple[int, int]]
    # Fields whose folded table would be too large are projected as ever.
    kept: list[Tensor] = field(default_factory=list)
    kept_spans: list[tuple[int, int]] = field(default_factory=list)
    kept_weight: Tensor | None = None
    bias: Tensor | None = None  # if no field of one column is folded, whose rows would hold it

    def __call__(self, ids: Tensor) -> Tensor:
        width = max(stop for _, stop in self.spans)
        if ids.dim() != 2 or ids.shape[1] < width or ids.dtype != torch.int32:
            raise ValueError(f"ids are {ids.dtype} {tuple(ids.shape)}; expected int32 [T, {width}] or wider")
        check_ids(ids, self.sizes, self.spans)
        out = self._bags(ids) if self.columns else self.rows.new_zeros(len(ids), self.rows.shape[1])
        if self.kept_weight is not None:
            with torch.autocast("cpu", enabled=False):
                out += nnf.linear(concatenation(ids, self.kept, self.kept_spans).to(out.dtype), self.kept_weight)
        return out if self.bias is None else out + self.bias

    def _bags(self, ids: Tensor) -> Tensor:
        picked = ids if self.columns == list(range(ids.shape[1])) else ids[:, self.columns]
        at = picked + self.firsts
        for start, stop, size in self.averaged:
            count = (picked[:, start:stop] != 0).sum(1, keepdim=True, dtype=torch.int32)
            at[:, start:stop].add_(count, alpha=size)
        bags = torch.arange(0, at.numel(), len(self.columns), dtype=torch.int32)
        # As nnf.embedding_bag(at, self.rows, mode="sum"), whose Python costs as much as the sum of one event.
        return torch.embedding_bag(self.rows, at.flatten(), bags, False, 0)[0]


@torch.no_grad()
def fold(
    tables: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor | None = None,
    budget: int = BUDGET,
) -> FoldedEmbedding:
    """Arguments as of event_embedding, all on a CPU, and left as they are: the fold holds copies, so it must be made
    anew when they change. budget: bytes; a table whose folded form is larger is not folded. Raises ValueError as it
    does. Under autocast it is made as without."""
    with torch.autocast("cpu", enabled=False):
        return _fold(tables, spans, weight, bias, budget)


def _fold(
    tables: Sequence[Tensor], spans: Sequence[tuple[int, int]], weight: Tensor, bias: Tensor | None, budget: int
) -> FoldedEmbedding:
    check_inputs(torch.empty(0, max((s[1] for s in spans), default=0), dtype=torch.int32), tables, spans, weight, bias)
    slices = weight.split([t.shape[1] for t in tables], dim=1)
    model = len(weight)
    blocks, columns, firsts, averaged, kept = [], [], [], [], []
    count = 0
    for f, (table, (start, stop)) in enumerate(zip(tables, spans, strict=True)):
        slots = stop - start
        copies = slots + 1 if slots > 1 else 1
        if len(table) * copies * model * weight.element_size() > budget:
            kept.append(f)
            continue
        projected = nnf.linear(table.to(weight.dtype), slices[f], bias if slots == 1 else None)
        if slots == 1:
            bias = None
            blocks.append(projected)
        else:
            projected[0] = 0
            blocks += [projected / max(n, 1) for n in range(copies)]
            averaged.append((len(columns), len(columns) + slots, len(table)))
        columns += range(start, stop)
        firsts += [count] * slots
        count += len(table) * copies
    return FoldedEmbedding(
        torch.cat(blocks) if blocks else weight.new_zeros(1, model),
        columns,
        torch.tensor(firsts, dtype=torch.int32),
        averaged,
        tuple(len(t) for t in tables),
        list(spans),
        [tables[f].detach().clone() for f in kept],
        [spans[f] for f in kept],
        torch.cat([slices[f] for f in kept], dim=1) if kept else None,
        None if bias is None else bias.detach().clone(),
    )
