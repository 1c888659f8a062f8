"""The recipe: how a model is trained, the same for every data set but for one dial, its size."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ..foundation.model import ModelConfig
from ..foundation.schema import Schema
from .train import TrainConfig

LARGE_FROM = 500_000  # events
# small was chosen on MovieLens-100K, large on MovieLens-1M: wider title vectors, larger batches, less dropout.
Size = Literal["small", "large"]


def size_for(events: int) -> Size:
    """The size that a data set of so many events takes if nobody says otherwise."""
    return "large" if events >= LARGE_FROM else "small"


def recipe(schema: Schema, size: Size) -> tuple[Schema, TrainConfig]:
    """(the schema, with title vectors as wide as the size wants them; the settings of a run)."""
    model = ModelConfig(request_dropout=0.2 if schema.request_columns.size else 0.0)
    if size == "small":
        return schema, TrainConfig(model=model)
    wider = tuple(replace(f, width=128) if f.kind == "id" else f for f in schema.fields)
    model = replace(model, dropout=0.2)
    config = TrainConfig(epochs=50, batch_tokens=8000, learning_rate=1e-3, patience=8, model=model)
    return replace(schema, fields=wider), config
