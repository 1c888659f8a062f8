"""The foundation model: event embedding → transformer → heads, member vectors and title vectors.

Shape letters: B members, T tokens, C encoded columns, M d_model, D vector width, N titles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .embedding import EventEmbedding, TitleTower
from .heads import Heads, Later
from .schema import ABSENT, Schema
from .transformer import Ragged, Transformer


@dataclass(frozen=True)
class ModelConfig:
    """d_model M; the vector width D is the width of the schema's id field.

    max_events: newest events read. state_layer: the block whose output ranks the rows, 0 for its input.
    request_dropout: probability that a training history is read without its request-time fields, so that their absence
    works. half_life_hours: the title loss is over the next 16 events too, whose weight halves in that time, so that a
    vector stays good for longer; 0: over the next one alone.
    """

    d_model: int = 128
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    max_events: int = 200
    state_layer: int = 1
    id_dropout: float = 0.1
    request_dropout: float = 0.2
    half_life_hours: float = 0.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.d_model < 1 or self.d_model % (2 * self.heads):
            raise ValueError(f"d_model {self.d_model} must be a multiple of 2 × heads ({self.heads})")
        if not 0 <= self.state_layer <= self.layers:
            raise ValueError(f"state_layer {self.state_layer} must be from 0 to layers ({self.layers})")
        if self.max_events < 1:
            raise ValueError(f"max_events {self.max_events} must be at least 1")
        for name in ("dropout", "id_dropout", "request_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if not 0 <= self.half_life_hours < math.inf:
            raise ValueError(f"half_life_hours {self.half_life_hours} must be at least 0 and finite")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class FoundationModel(nn.Module):
    """sizes: table rows of every field with a vocabulary, event and title fields alike, by name.
    metadata: int32 [FIRST+N, title columns] from `encode_titles`."""

    def __init__(self, schema: Schema, config: ModelConfig, sizes: Mapping[str, int], metadata: Tensor) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        width = schema.id_field.width
        self.events = EventEmbedding(schema.fields, schema.spans, sizes, config.d_model)
        self.titles = TitleTower(schema, sizes, width, metadata, config.id_dropout)
        self.transformer = Transformer(config.d_model, config.layers, config.heads, config.dropout)
        self.heads = Heads(schema, sizes, config.d_model, width)
        self.request_columns: Tensor
        self.register_buffer("request_columns", torch.from_numpy(schema.request_columns), persistent=False)

    def title_vectors(self) -> Tensor:
        """[N, D]."""
        return self.titles(self.events.table(self.schema.id_field.name))

    def hidden(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """tokens int32 [T, C], offsets int64 [B+1] → (final hidden [T, M], state of `state_layer` [T, M])."""
        if self.training and self.config.request_dropout:
            tokens = self.drop_request_fields(tokens, offsets)
        x = nnf.dropout(self.events(tokens), self.config.dropout, self.training)
        return self.transformer(x, offsets, self.config.state_layer)

    def drop_request_fields(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Request-time fields set to absent in a random share of the histories."""
        lengths = offsets.diff()
        drop = torch.rand(len(lengths), device=tokens.device) < self.config.request_dropout
        tokens = tokens.clone()
        rows = torch.repeat_interleave(drop, lengths).nonzero()
        tokens[rows, self.request_columns] = ABSENT
        return tokens

    def encode(self, tokens: Tensor, offsets: Tensor | Ragged) -> tuple[Tensor, Tensor]:
        """The last token of each history: member vectors [B, D] and row states [B, M]. Every history has a token."""
        hidden, state = self.transformer.last(self.events(tokens), offsets, self.config.state_layer)
        return self.heads.member(hidden), state

    def losses(self, tokens: Tensor, offsets: Tensor, targets: Tensor, times: Tensor) -> dict[str, Tensor]:
        """Loss per target field: tokens and targets int32 [T, C], times of the targets int64 [T] → {name: scalar}."""
        hidden, _ = self.hidden(tokens, offsets)
        half_life = self.config.half_life_hours
        later = Later(times, offsets, half_life) if half_life else None
        return self.heads.losses(hidden, self.title_vectors(), targets, later)

    def forward(self, tokens: Tensor, offsets: Tensor, targets: Tensor, times: Tensor) -> dict[str, Tensor]:
        """The training step's forward pass, under the name that DistributedDataParallel wraps."""
        return self.losses(tokens, offsets, targets, times)
