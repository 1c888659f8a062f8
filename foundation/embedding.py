"""Events → [T, M] through kernels.event_embedding, and titles → [N, D]: an id embedding mixed with metadata.

Shape letters: T tokens, C encoded columns, M d_model, N titles, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.event_embedding import event_embedding
from ..kernels.field_groups import aligned, padded_weight
from ..kernels.folded_embedding import fold
from .schema import ABSENT, FIRST, UNKNOWN, Field, Schema


def table_size(f: Field, sizes: Mapping[str, int]) -> int:
    """Rows of a field's embedding table; `sizes` has those that depend on a vocabulary, by field name."""
    return sizes[f.name] if f.has_vocabulary else f.fixed_size()


class EventEmbedding(nn.Module):
    """One table per field, concatenated and projected to M.

    The id field's table is the title embedding that the title tower uses too: input and output are tied.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        spans: Mapping[str, tuple[int, int]],
        sizes: Mapping[str, int],
        d_model: int,
    ) -> None:
        super().__init__()
        self.names = [f.name for f in fields]
        self.spans = [spans[f.name] for f in fields]
        # A list, not a ParameterDict: that one cannot hold fields called `type` or `keys`.
        self.tables = nn.ParameterList(torch.randn(table_size(f, sizes), f.width) * f.width**-0.5 for f in fields)
        self.projection = nn.Linear(sum(f.width for f in fields), d_model)
        self.folded: Callable[[Tensor], Tensor] | None = None

    def fold(self) -> None:
        """For inference with the weights as they are now, until `train` or a move to another device or dtype. On a GPU
        a fold does not pay, but tables and weight are laid out as the kernel reads them."""
        if self.projection.weight.device.type == "cpu":
            self.folded = fold(list(self.tables), self.spans, self.projection.weight, self.projection.bias)
        else:
            self.lay_out()

    @torch.no_grad()
    def lay_out(self) -> None:
        """Once, in place of at each call: a CUDA graph keeps the addresses of tables that it met before."""
        weight, bias, spans = padded_weight(self.projection.weight, list(self.tables)), self.projection.bias, self.spans
        tables = [aligned(table) for table in self.tables]
        self.folded = lambda ids: event_embedding(ids, tables, spans, weight, bias)

    def train(self, mode: bool = True) -> EventEmbedding:
        if mode:
            self.folded = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> EventEmbedding:
        self.folded = None
        return super()._apply(fn, recurse)

    def forward(self, ids: Tensor) -> Tensor:
        """ids int32 [T, C] → [T, M]."""
        if self.folded is not None:
            return self.folded(ids)
        return event_embedding(ids, list(self.tables), self.spans, self.projection.weight, self.projection.bias)

    def table(self, name: str) -> Tensor:
        """The table [V, width] of the field of that name."""
        return self.tables[self.names.index(name)]

    @torch.no_grad()
    def fill_untrained(self, trained: Mapping[str, Tensor]) -> None:
        """Give a meaning to what training never read; `trained` says what it read, bool [V] by field name.

        An unknown value reads as the mean of the known ones, or where a field has none, as an absent one; a value
        that was never read, as an unknown one.
        """
        for name, table, (start, stop) in zip(self.names, self.tables, self.spans, strict=True):
            read = trained[name].to(table.device)
            known = table[FIRST:][read[FIRST:]]
            if not len(known):
                # Of a field of several columns absent ones are left out of the mean: nothing at all is zeros.
                table[UNKNOWN] = table[ABSENT] if stop - start == 1 else 0.0
            elif not read[UNKNOWN]:
                table[UNKNOWN] = known.mean(0)
            table[FIRST:] = torch.where(read[FIRST:, None], table[FIRST:], table[UNKNOWN])


class TitleTower(nn.Module):
    """Title vector = id embedding + projected metadata, so that a title unseen in training has a usable vector.

    In training the id is replaced by the unknown id with probability `id_dropout`, so that metadata is really learnt
    (the mixing of ids and metadata in Netflix's foundation-model post, 2025).
    """

    def __init__(self, schema: Schema, sizes: Mapping[str, int], width: int, metadata: Tensor, id_dropout: float):
        super().__init__()
        self.id_dropout = id_dropout
        self.metadata: Tensor
        self.register_buffer("metadata", metadata[FIRST:].contiguous(), persistent=False)  # int32 [N, title columns]
        self.known: Tensor
        self.register_buffer("known", torch.ones(len(metadata) - FIRST, dtype=torch.bool))
        self.embedding = None
        if schema.title_fields:
            self.embedding = EventEmbedding(schema.title_fields, schema.title_spans, sizes, width)

    def forward(self, id_table: Tensor) -> Tensor:
        """id_table [FIRST+N, D] → title vectors [N, D]; a title never seen in training uses the unknown id's row."""
        use_id = self.known
        if self.training and self.id_dropout:
            use_id = use_id & (torch.rand(len(use_id), device=use_id.device) >= self.id_dropout)
        vectors = torch.where(use_id[:, None], id_table[FIRST:], id_table[UNKNOWN])
        return vectors if self.embedding is None else vectors + self.embedding(self.metadata)
