"""A model that begins with the weights of an earlier run: newer data, with new titles, members, values and fields.

Weights are carried by name and by vocabulary value, never by place. Until its first step the new model answers old
input exactly as the old one did: a new field contributes nothing (its columns of the projection are zeros, and learn),
a new value reads as an unknown one did, a field that is gone as if it were absent. What a run learnt of titles and
values that the newer data lacks is kept.

A new title begins as the mix of the titles most like it by metadata plus a little noise, so that equals part ways
(Netflix's foundation-model post, 2025, which names the average embedding as the other choice; `mix=False`).
Shape letters: N titles, V values of a field, M d_model, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..foundation.heads import predicted_fields
from ..foundation.model import FoundationModel, ModelConfig
from ..foundation.schema import ABSENT, FIRST, UNKNOWN, Field, Schema, Vocabulary
from .batches import trained_titles
from .data import Dataset
from .similar_titles import mixing_weights

NOISE = 0.1  # of a new title's row, as a share of the spread of the rows that training read


@dataclass(frozen=True)
class WarmStart:
    """What `train` begins with. weights: a whole state of the new model. trained: bool [V] by event field, the values
    whose rows mean something already. source: the run, and the sha256 of its weights."""

    weights: Mapping[str, Tensor]
    trained: Mapping[str, np.ndarray]
    source: Mapping[str, str]


@dataclass(frozen=True)
class Earlier:
    """An earlier run (`runs.read_earlier`): fields, vocabularies by field name, settings, weights of its best epoch."""

    path: Path
    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    config: ModelConfig
    weights: Mapping[str, Tensor]
    sha256: str


@torch.no_grad()
def warm_start(
    earlier: Earlier, model: FoundationModel, data: Dataset, seed: int = 0, mix: bool = True
) -> WarmStart:  # fmt: skip
    """The weights of an earlier run in the shape of an untrained model of new data, which is left as it is.

    mix: new titles begin as a mix of similar ones, else as the average of all. Raises ValueError naming everything that
    cannot be carried.
    """
    _check(earlier, model)
    old, new = earlier.weights, dict(model.state_dict())
    for name in new:  # blocks and the member head; what depends on fields follows
        if name in old and not name.startswith(("events.", "titles.", "heads.linear.")):
            new[name] = old[name].clone()
    fields = model.schema.fields
    trained = {f.name: np.zeros(len(table), bool) for f, table in zip(fields, model.events.tables, strict=True)}
    for f in earlier.schema.fields:
        if f.name in trained:
            trained[f.name][_places(f, earlier, data)[0]] = True
            trained[f.name][UNKNOWN] = False  # read as the mean of the known ones, those of now
    _carry_embedding("events", earlier, earlier.schema.fields, fields, data, new)
    if model.titles.embedding is not None:
        _carry_embedding("titles.embedding", earlier, earlier.schema.title_fields, model.schema.title_fields, data, new)
    _carry_heads(earlier, model, data, new)
    trained[model.schema.id_field.name] = _carry_titles(earlier, model, data, new, seed, mix)
    return WarmStart(new, trained, {"run": str(earlier.path), "weights": earlier.sha256})


def _check(earlier: Earlier, model: FoundationModel) -> None:
    """Raises ValueError for what cannot be carried."""
    wrong = [
        f"{name} was {before}, now {after}"
        for name in ("d_model", "layers", "heads")
        if (before := getattr(earlier.config, name)) != (after := getattr(model.config, name))
    ]
    was, now = earlier.schema, model.schema
    if was.id_field.name != now.id_field.name:
        wrong.append(f"the title's field was {was.id_field.name!r}, now {now.id_field.name!r}")
    if was.title_fields and not now.title_fields:
        wrong.append("the title fields are gone")
    pairs = (("field", was.fields, now.fields), ("title field", was.title_fields, now.title_fields))
    for kind, before, after in pairs:
        known = {f.name: f for f in before}
        for f in after:
            for what in ("path", "kind", "when", "width", "slots", "edges") if f.name in known else ():
                if (old := getattr(known[f.name], what)) != (new := getattr(f, what)):
                    wrong.append(f"{kind} {f.name!r}: {what} was {old!r}, now {new!r}")
    if wrong:
        raise ValueError(
            f"{earlier.path} cannot be gone on from: {'; '.join(wrong)}; give what it had (a field that changed takes "
            "another name and begins anew), or train without --from"
        )


def _places(f: Field, earlier: Earlier, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(new, old) int64: ids of the same values of a field in the new and in the old table; absent and unknown first."""
    if not f.has_vocabulary:
        return np.arange(f.fixed_size()), np.arange(f.fixed_size())
    before = {value: FIRST + i for i, value in enumerate(earlier.vocabularies[f.name].values)}
    values = data.vocabularies[f.name].values
    same = [(FIRST + i, before[value]) for i, value in enumerate(values) if value in before]
    pairs = np.array([(ABSENT, ABSENT), (UNKNOWN, UNKNOWN), *same], np.int64)
    return pairs[:, 0], pairs[:, 1]


def _carry_embedding(
    prefix: str, earlier: Earlier, before: Sequence[Field], after: Sequence[Field], data: Dataset,
    new: dict[str, Tensor],
) -> None:  # fmt: skip
    """Tables by value and the projection by field, into `new`."""
    projection = new[f"{prefix}.projection.weight"], new[f"{prefix}.projection.bias"]
    weight = earlier.weights.get(f"{prefix}.projection.weight", torch.zeros(len(projection[0]), 0))
    bias = earlier.weights.get(f"{prefix}.projection.bias", torch.zeros_like(projection[1])).clone()
    columns = dict(zip((f.name for f in before), weight.split([f.width for f in before], dim=1), strict=True))
    tables = {f.name: earlier.weights[f"{prefix}.tables.{i}"] for i, f in enumerate(before)}
    pieces = []
    for i, f in enumerate(after):
        if f.name not in columns:
            pieces.append(torch.zeros(len(weight), f.width))
            continue
        pieces.append(columns.pop(f.name))
        here, there = _places(f, earlier, data)
        table = tables[f.name][UNKNOWN].repeat(len(new[f"{prefix}.tables.{i}"]), 1)
        table[here] = tables[f.name][there]
        new[f"{prefix}.tables.{i}"] = table
    for f in before:
        if f.name in columns and f.slots == 1:  # gone: absent from now on; an absent list adds nothing
            bias += columns[f.name] @ tables[f.name][ABSENT]
    new[f"{prefix}.projection.weight"], new[f"{prefix}.projection.bias"] = torch.cat(pieces, dim=1), bias


def _carry_heads(earlier: Earlier, model: FoundationModel, data: Dataset, new: dict[str, Tensor]) -> None:
    """A line per value; that of a new value is the mean line with the smallest bias, for it was never seen."""
    sizes = {name: v.size for name, v in earlier.vocabularies.items()}
    before = [f.name for f in predicted_fields(earlier.schema, sizes)]
    for i, f in enumerate(model.heads.fields):
        if f.name not in before:
            continue
        here, there = (ids[FIRST:] - FIRST for ids in _places(f, earlier, data))
        for part in ("weight", "bias"):
            lines = earlier.weights[f"heads.linear.{before.index(f.name)}.{part}"]
            name = f"heads.linear.{i}.{part}"
            new[name] = (lines.mean(0) if part == "weight" else lines.min()).expand_as(new[name]).clone()
            new[name][here] = lines[there]


def _carry_titles(
    earlier: Earlier, model: FoundationModel, data: Dataset, new: dict[str, Tensor], seed: int, mix: bool
) -> np.ndarray:
    """Which titles have an id embedding, and where those begin that are new; bool [FIRST+N]: the rows learnt before."""
    f = model.schema.id_field
    here, there = (ids[FIRST:] - FIRST for ids in _places(f, earlier, data))
    known, playing = np.zeros(len(data.titles), bool), trained_titles(data)
    known[here] = earlier.weights["titles.known"].numpy()[there]
    fresh, learnt = np.flatnonzero(playing & ~known), np.flatnonzero(known)
    table = new[f"events.tables.{model.events.names.index(f.name)}"]
    if len(fresh) and len(learnt):
        rows = table[FIRST + torch.from_numpy(learnt)]
        begin = torch.from_numpy(mixing_weights(data, fresh, learnt)) @ rows if mix else rows.mean(0)
        noise = torch.randn(len(fresh), rows.shape[1], generator=torch.Generator().manual_seed(seed))
        table[FIRST + torch.from_numpy(fresh)] = begin + NOISE * rows.std(0, correction=0) * noise
    new["titles.known"] = torch.from_numpy(known | playing)
    return np.concatenate([[False, True], known])
