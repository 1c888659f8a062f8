"""One head per target field; their losses are summed with the schema's weights, each logged.

The title head is the dot product of member and title vectors: what is trained is what is served.
Shape letters: T tokens, M d_model, D vector width, N titles, V values of a field, K titles ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..kernels.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from .embedding import table_size
from .schema import FIRST, Field, Schema

AHEAD = 16  # titles that a token may be trained on: the next one and those after it


def titles_ahead(title: Tensor, times: Tensor, offsets: Tensor, half_life_hours: float) -> tuple[Tensor, Tensor]:
    """title and times int64 [T], seconds, of ragged histories → (titles int64 [T, K], weights float32 [T, K]): of each
    token's target and of the K − 1 events after it, of weight 2^(−hours after the target / half life), which is 0 past
    the history's end and where there is no title ("Towards Generalizable and Efficient Large-Scale Generative
    Recommenders", 2026)."""
    every = torch.arange(len(title), device=title.device)
    place = every[:, None] + torch.arange(AHEAD, device=title.device)
    there = place < torch.repeat_interleave(offsets[1:], offsets.diff())[:, None]
    place = place.clamp(max=len(title) - 1)
    hours = (times[place] - times[:, None]).double() / 3600
    weights = torch.where(there & (title[place] >= 0), torch.exp2(-hours / half_life_hours), 0.0)
    return title[place].clamp(min=0), weights.float()


def predicted_fields(schema: Schema, sizes: Mapping[str, int]) -> list[Field]:
    """The fields with a linear head of their own, in the order of the heads: predicted ones that have any values."""
    return [f for f in schema.fields if f.loss_weight and f.kind != "id" and table_size(f, sizes) > FIRST]


class Later(NamedTuple):
    """times: int64 [T], seconds, of the targets of ragged histories with offsets int64 [B+1]."""

    times: Tensor
    offsets: Tensor
    half_life_hours: float


class Heads(nn.Module):
    """Predicts the action fields of event t from the hidden state of token t."""

    def __init__(self, schema: Schema, sizes: Mapping[str, int], d_model: int, vector_width: int) -> None:
        super().__init__()
        self.schema = schema
        self.member = nn.Linear(d_model, vector_width)
        self.fields = predicted_fields(schema, sizes)
        self.linear = nn.ModuleList(nn.Linear(d_model, table_size(f, sizes) - FIRST) for f in self.fields)

    def losses(
        self, hidden: Tensor, title_vectors: Tensor, targets: Tensor, later: Later | None = None
    ) -> dict[str, Tensor]:
        """Mean loss per field over the tokens that have it: hidden [T, M], targets int32 [T, C] → {name: scalar}.

        Cross-entropy over all N titles and over a field's V values; for a multi-valued field, binary cross-entropy
        per value. Absent and unknown targets count for nothing. later: when the targets happened, if the title loss is
        over the ones after them too.
        """
        id_field = self.schema.id_field
        title = targets[:, self.schema.spans[id_field.name][0]].long() - FIRST
        member_vectors = self.member(hidden)
        if later is None:
            found = {id_field.name: self.title_loss(member_vectors, title_vectors, title)}
        else:
            titles, weights = titles_ahead(title, later.times, later.offsets, later.half_life_hours)
            total = weighted_linear_cross_entropy(member_vectors, title_vectors, titles, weights)
            found = {id_field.name: total / weights.sum().clamp(min=1e-9)}
        for f, linear in zip(self.fields, self.linear, strict=True):
            start, stop = self.schema.spans[f.name]
            logits = linear(hidden).float()
            target = targets[:, start:stop].long() - FIRST
            if f.kind == "categories":
                several = torch.zeros(len(logits), logits.shape[1] + 1, device=logits.device)
                several.scatter_(1, torch.where(target < 0, logits.shape[1], target), 1.0)
                present = (target >= 0).any(dim=1, keepdim=True).float()
                every = nnf.binary_cross_entropy_with_logits(logits, several[:, :-1], reduction="none")
                found[f.name] = (every.sum(1, keepdim=True) * present).sum() / present.sum().clamp(min=1)
            else:
                found[f.name] = _cross_entropy(logits, target[:, 0])
        return found

    def title_loss(self, member_vectors: Tensor, title_vectors: Tensor, title: Tensor) -> Tensor:
        """Mean over tokens with a title: vectors [T, D] and [N, D], title int64 [T] in [0, N), negative for none."""
        total = linear_cross_entropy(member_vectors, title_vectors, title)
        return total / (title >= 0).sum().clamp(min=1)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        weights = {f.name: f.loss_weight for f in self.schema.fields}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over targets of at least 0; 0 where there is none."""
    target = torch.where(target < 0, -100, target)
    return nnf.cross_entropy(logits, target, reduction="sum") / (target >= 0).sum().clamp(min=1)
