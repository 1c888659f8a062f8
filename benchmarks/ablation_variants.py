"""The variants that `ablations` compares with the recipe, each changed in one thing; what the product lacks is here.

Shape letters: B members, T tokens, L longest history, M d_model, H heads, D vector width, N titles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..foundation.heads import Heads
from ..foundation.model import FoundationModel, ModelConfig
from ..foundation.schema import FIRST, Schema
from ..foundation.transformer import Block, Ragged, Transformer
from ..training.batches import Batch, trained_titles, training_batches, windows
from ..training.data import Dataset
from ..training.train import TrainConfig, build_model


@dataclass(frozen=True)
class Variant:
    """One change of the recipe. ingredient: the group it belongs to; change: what differs, in words."""

    name: str
    ingredient: str
    change: str
    schema: Callable[[Schema], Schema] = lambda schema: schema
    config: Callable[[TrainConfig], TrainConfig] = lambda config: config
    build: Callable[[Dataset, ModelConfig], FoundationModel] = build_model
    batches_of: Callable[..., Iterator[Batch]] = training_batches


# Schemas


def without(*names: str) -> Callable[[Schema], Schema]:
    """Event fields neither read nor predicted."""
    return lambda schema: replace(schema, fields=tuple(f for f in schema.fields if f.name not in names))


def without_metadata(schema: Schema) -> Schema:
    """No field reads a title's metadata, and the title tower has none."""
    return replace(schema, fields=tuple(f for f in schema.fields if not f.path.startswith("title.")), title_fields=())


def weighted(factor: float, *names: str) -> Callable[[Schema], Schema]:
    """The loss weights of the heads beside the title's, or of the named ones, times a factor."""

    def changed(schema: Schema) -> Schema:
        chosen = names or [f.name for f in schema.fields if f.kind != "id"]
        fields = (replace(f, loss_weight=f.loss_weight * factor) if f.name in chosen else f for f in schema.fields)
        return replace(schema, fields=tuple(fields))

    return changed


def whole_events(schema: Schema) -> Schema:
    """Every field of event t−1 goes in to predict event t: nothing is known of the request."""
    return replace(schema, fields=tuple(replace(f, when="action") for f in schema.fields))


def wide_vectors(schema: Schema) -> Schema:
    return replace(schema, fields=tuple(replace(f, width=128) if f.kind == "id" else f for f in schema.fields))


# Settings


def model_config(**changes: float) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, model=replace(config.model, **changes))  # type: ignore[arg-type]


# Batches


def fixed_cuts(starts: np.ndarray, stops: np.ndarray, longest: int, rng: np.random.Generator) -> np.ndarray:
    """The same windows in every epoch."""
    return windows(starts, stops, longest, np.random.default_rng(0))


def newest_only(starts: np.ndarray, stops: np.ndarray, longest: int, rng: np.random.Generator) -> np.ndarray:
    """One window per member: older events are not trained on, as in SASRec's published code."""
    return windows(np.maximum(starts, stops - longest), stops, longest, rng)


# Models


def of_kind(kind: type[FoundationModel]) -> Callable[[Dataset, ModelConfig], FoundationModel]:
    """`build_model` of a subclass."""

    def build(data: Dataset, config: ModelConfig) -> FoundationModel:
        model = kind(data.schema, config, data.sizes, torch.from_numpy(data.title_ids))
        model.titles.known.copy_(torch.from_numpy(trained_titles(data)))
        return model

    return build


def with_heads(kind: type[Heads]) -> Callable[[Dataset, ModelConfig], FoundationModel]:
    """The product's model with other heads."""

    def build(data: Dataset, config: ModelConfig) -> FoundationModel:
        model = build_model(data, config)
        model.heads = kind(data.schema, data.sizes, config.d_model, data.schema.id_field.width)
        return model

    return build


def without_tower(data: Dataset, config: ModelConfig) -> FoundationModel:
    """A title's vector is its id's alone; its genres stay fields of events."""
    model = build_model(data, config)
    model.titles.embedding = None
    return model


class Sampled(Heads):
    """Softmax over the right title and `negatives` others, drawn uniformly once for a batch; the right title itself
    among them counts for nothing. corrected: logits minus the log of how often a title is drawn (logQ)."""

    negatives, corrected = 128, False

    def title_loss(self, member_vectors: Tensor, title_vectors: Tensor, title: Tensor) -> Tensor:
        right, wrong = self.logits(member_vectors, title_vectors, title)
        if self.corrected:
            wrong = wrong + math.log(len(title_vectors) / self.negatives)
        each = torch.logsumexp(torch.cat([right, wrong], 1), 1) - right[:, 0]
        return (each * (title >= 0)).sum() / (title >= 0).sum().clamp(min=1)

    def logits(self, member_vectors: Tensor, title_vectors: Tensor, title: Tensor) -> tuple[Tensor, Tensor]:
        """Of the right title [T, 1] and of the drawn ones [T, negatives]."""
        drawn = torch.randint(len(title_vectors), (self.negatives,), device=title.device)
        wrong = (member_vectors @ title_vectors[drawn].T).float()
        wrong = wrong.masked_fill(drawn == title[:, None], -math.inf)
        return (member_vectors * title_vectors[title.clamp(min=0)]).sum(1, keepdim=True).float(), wrong


class SampledCorrected(Sampled):
    corrected = True


class ManyCorrected(Sampled):
    negatives, corrected = 512, True


class GeneralisedBinary(Sampled):
    """gBCE (Petrov and Macdonald, "gSASRec", 2023) with t = 0.75."""

    negatives, calibration = 256, 0.75

    def title_loss(self, member_vectors: Tensor, title_vectors: Tensor, title: Tensor) -> Tensor:
        right, wrong = self.logits(member_vectors, title_vectors, title)
        rate = self.negatives / (len(title_vectors) - 1)
        power = rate * (self.calibration * (1 - 1 / rate) + 1 / rate)
        each = power * nnf.softplus(-right[:, 0]) + nnf.softplus(wrong).sum(1)
        return (each * (title >= 0)).sum() / (title >= 0).sum().clamp(min=1) / (self.negatives + 1)


class Untied(FoundationModel):
    """Titles that are read and titles that are scored have tables of their own."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        table = self.events.table(self.schema.id_field.name)
        self.scored = nn.Parameter(torch.randn_like(table) * table.shape[1] ** -0.5)

    def title_vectors(self) -> Tensor:
        return self.titles(self.scored)


class AllLayers(Transformer):
    """A learnt mix of every block's output in place of the last one's."""

    def __init__(self, d_model: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__(d_model, layers, heads, dropout)
        self.mix = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor, offsets: Tensor, state_layer: int) -> tuple[Tensor, Tensor]:
        ragged, outputs = Ragged(offsets), []
        for block in self.blocks:
            x = block(x, ragged)
            outputs.append(x)
        mixed = (torch.stack(outputs, -1) * self.mix.softmax(0)).sum(-1)
        return self.norm(mixed), outputs[state_layer - 1]

    def last(self, x: Tensor, offsets: Tensor, state_layer: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        final, state = self(x, offsets, state_layer)
        return final[offsets[1:] - 1], state[offsets[1:] - 1]


def all_layers(data: Dataset, config: ModelConfig) -> FoundationModel:
    model = build_model(data, config)
    model.transformer = AllLayers(config.d_model, config.layers, config.heads, config.dropout)
    return model


class PointwiseBlock(Block):
    """HSTU's attention (Zhai et al. 2024): SiLU in place of softmax, divided by the longest history, biases by distance
    in places and in log time in place of rotary positions, the result normalised and gated. The feed-forward half is
    the product's."""

    buckets = 64

    def __init__(self, d_model: int, heads: int, dropout: float, longest: int) -> None:
        super().__init__(d_model, heads, dropout)
        self.longest = longest
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.attended_norm = nn.RMSNorm(d_model)
        self.by_place = nn.Parameter(torch.zeros(longest + 1, heads))
        self.by_time = nn.Parameter(torch.zeros(self.buckets, heads))

    def forward(self, x: Tensor, ragged: Ragged, elapsed: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """elapsed: seconds float64 [T] since the history began."""
        assert elapsed is not None
        normed = self.attention_norm(x)
        gate = nnf.silu(self.gate(normed))
        q, k, v = ragged.pad(self._heads(nnf.silu(self.qkv(normed)), 3)).permute(2, 0, 3, 1, 4)  # [B, H, L, d]
        place, time = torch.arange(q.shape[2], device=x.device), ragged.pad(elapsed)
        apart = (place[:, None] - place).clamp(0, self.longest)
        # Buckets of log time a factor of e^0.301 wide, as in HSTU's code.
        wait = (time[:, :, None] - time[:, None, :]).clamp(min=1).log().div(0.301).long().clamp(max=self.buckets - 1)
        bias = nnf.embedding(apart, self.by_place) + nnf.embedding(wait, self.by_time)  # [B, L, L, H]
        weight = nnf.silu(q @ k.transpose(2, 3) + bias.permute(0, 3, 1, 2)) / self.longest
        attended = ragged.unpad((weight.tril() @ v).transpose(1, 2)).flatten(1)
        x = x + nnf.dropout(self.out(self.attended_norm(attended) * gate), self.dropout, self.training)
        fed = self.down(nnf.gelu(self.up(self.feed_norm(x))))
        return x + nnf.dropout(fed, self.dropout, self.training)


class Pointwise(FoundationModel):
    """PointwiseBlocks. When an event was is added up from the buckets of the gaps that the tokens have."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        config = self.config
        self.transformer.blocks = nn.ModuleList(
            PointwiseBlock(config.d_model, config.heads, config.dropout, config.max_events)
            for _ in range(config.layers)
        )
        gap = next(f for f in self.schema.fields if f.kind == "gap")
        self.gap_column = self.schema.spans[gap.name][0]
        middle = [(a * b) ** 0.5 for a, b in pairwise(gap.edges)]
        self.seconds: Tensor
        seconds = torch.tensor([0.0] * FIRST + [0.0, *middle, gap.edges[-1]], dtype=torch.float64)
        self.register_buffer("seconds", seconds, persistent=False)

    def hidden(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and self.config.request_dropout:
            tokens = self.drop_request_fields(tokens, offsets)
        ragged = Ragged(offsets)
        total = self.seconds[tokens[:, self.gap_column].long()].cumsum(0)
        elapsed = total - torch.repeat_interleave(total[offsets[:-1]], offsets.diff())
        x = nnf.dropout(self.events(tokens), self.config.dropout, self.training)
        state = x
        for number, block in enumerate(self.transformer.blocks, start=1):
            x = block(x, ragged, elapsed)
            state = x if number == self.config.state_layer else state
        return self.transformer.norm(x), state

    def encode(self, tokens: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hidden, state = self.hidden(tokens, offsets)
        return self.heads.member(hidden[offsets[1:] - 1]), state[offsets[1:] - 1]


class Averaged(FoundationModel):
    """Evaluated with an exponential average of its weights, trained with the weights themselves."""

    decay = 0.99

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.average: list[Tensor] | None = None
        self.own: list[Tensor] = []

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the average towards the weights."""
        if self.average is None:
            self.average = [p.clone() for p in self.parameters()]
        for mean, p in zip(self.average, self.parameters(), strict=True):
            mean.lerp_(p, 1 - self.decay)

    def forward(self, tokens: Tensor, offsets: Tensor, targets: Tensor, times: Tensor) -> dict[str, Tensor]:
        self.follow()
        return super().forward(tokens, offsets, targets, times)

    def put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters(), values, strict=True):
            p.copy_(value)

    @torch.no_grad()
    def train(self, mode: bool = True) -> Averaged:
        if self.training and not mode and self.average is not None:
            self.follow()
            self.own = [p.clone() for p in self.parameters()]
            self.put(self.average)
        elif mode and not self.training and self.own:
            self.put(self.own)
        super().train(mode)
        return self


BASE = Variant("base", "recipe", "the recipe")
VARIANTS = (
    BASE,
    Variant("batch-2000", "batches", "batches of 2,000 tokens", config=lambda c: replace(c, batch_tokens=2000)),
    Variant("batch-500", "batches", "batches of 500 tokens", config=lambda c: replace(c, batch_tokens=500)),
    Variant("whole-event", "input offset", "whole event t−1 as input", whole_events, model_config(request_dropout=0.0)),
    Variant("title-head", "heads", "title head alone", weighted(0.0)),
    Variant("losses-0.3", "loss weights", "other heads' weights × 0.3", weighted(0.3)),
    Variant("losses-3", "loss weights", "other heads' weights × 3", weighted(3.0)),
    Variant("no-gap", "time", "without gap", without("gap")),
    Variant("no-hour", "time", "without hour", without("hour")),
    Variant("no-weekday", "time", "without weekday", without("weekday")),
    Variant("positions", "time", "rotary positions only", without("gap", "hour", "weekday")),
    Variant("sampled-128", "negatives", "128 negatives", build=with_heads(Sampled)),
    Variant("sampled-128-logq", "negatives", "128 negatives, logQ", build=with_heads(SampledCorrected)),
    Variant("sampled-512-logq", "negatives", "512 negatives, logQ", build=with_heads(ManyCorrected)),
    Variant("gbce-256", "negatives", "256 negatives, gBCE", build=with_heads(GeneralisedBinary)),
    Variant("no-tower", "metadata", "titles are ids alone", build=without_tower),
    Variant("no-genres", "metadata", "genres not in events", without("genres")),
    Variant("genres-read", "metadata", "genres not predicted", weighted(0.0, "genres")),
    Variant("no-metadata", "metadata", "no metadata at all", without_metadata),
    Variant("ahead-1h", "titles ahead", "next 16, half-life 1 h", config=model_config(half_life_hours=1.0)),
    Variant("ahead-24h", "titles ahead", "next 16, half-life 24 h", config=model_config(half_life_hours=24.0)),
    Variant("all-layers", "layers", "learnt mix of all layers", build=all_layers),
    Variant("dropout-0.1", "dropout", "dropout 0.1", config=model_config(dropout=0.1)),
    Variant("dropout-0.2", "dropout", "dropout 0.2", config=model_config(dropout=0.2)),
    Variant("dropout-0.4", "dropout", "dropout 0.4", config=model_config(dropout=0.4)),
    Variant("no-request-dropout", "dropout", "request never dropped", config=model_config(request_dropout=0.0)),
    Variant("no-id-dropout", "dropout", "ids never dropped", config=model_config(id_dropout=0.0)),
    Variant("fixed-cuts", "windows", "same windows each epoch", batches_of=partial(training_batches, cut=fixed_cuts)),
    Variant("newest-200", "windows", "newest 200 events only", batches_of=partial(training_batches, cut=newest_only)),
    Variant("average", "weights", "average of weights, 0.99", build=of_kind(Averaged)),
    Variant("hstu", "attention", "HSTU-like attention", build=of_kind(Pointwise)),
    Variant("untied", "title table", "input and output untied", build=of_kind(Untied)),
    Variant("layers-1", "size", "1 layer", config=model_config(layers=1)),
    Variant("layers-3", "size", "3 layers", config=model_config(layers=3)),
    Variant("heads-4", "size", "4 attention heads", config=model_config(heads=4)),
    Variant("d-256", "size", "d_model 256", config=model_config(d_model=256, heads=4)),
    Variant("vectors-128", "size", "title vectors of 128", wide_vectors),
)  # fmt: skip
