"""event_embedding: gather one row per field, pool multi-valued fields, concatenate, project.

Shape letters: T events, C columns of encoded ids, F fields, E = Σ table widths, M d_model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor


def event_embedding(
    ids: Tensor,
    tables: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Embed events of F fields and project them to M.

    ids: int32 [T, C], 0 is absent. tables: F tensors [V_f, E_f]; row 0 is used as it is for a field of one column.
    spans: per field its columns [start, stop) of ids; a field of several columns is the mean of its rows that are
    not 0, and zeros where all are 0. weight: [M, E] with fields in order; bias: [M].
    Returns [T, M]. Raises ValueError if ids, tables, spans and weight do not fit each other, and on CPU for an id that
    its table lacks (on a GPU the look would cost a synchronisation).
    """
    widths = sum(t.shape[1] for t in tables)
    if len(tables) != len(spans) or weight.shape[1] != widths:
        raise ValueError(
            f"{len(tables)} tables of total width {widths} do not fit {len(spans)} spans and weight "
            f"{tuple(weight.shape)}; give one span per table and weight [M, {widths}]"
        )
    if spans and max(stop for _, stop in spans) > ids.shape[1]:
        raise ValueError(f"spans {list(spans)} reach beyond the {ids.shape[1]} columns of ids")
    if ids.numel() and ids.device.type == "cpu":
        for table, (start, stop) in zip(tables, spans, strict=True):
            low, high = (int(v) for v in ids[:, start:stop].aminmax())
            if low < 0 or high >= len(table):
                raise ValueError(
                    f"id {low if low < 0 else high} in columns [{start}, {stop}) is outside [0, {len(table)})"
                )
    return event_embedding_reference(ids, tables, spans, weight, bias)


def event_embedding_reference(
    ids: Tensor,
    tables: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Plain torch with the same signature: the definition of the op."""
    parts = []
    for table, (start, stop) in zip(tables, spans, strict=True):
        column = ids[:, start:stop]
        if stop - start == 1:
            parts.append(nnf.embedding(column[:, 0], table))
        else:
            parts.append(nnf.embedding_bag(column, table, mode="mean", padding_idx=0))
    return nnf.linear(torch.cat(parts, dim=1), weight, bias)
