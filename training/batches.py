"""Leave-one-out split and training batches.

Of a member's n events the last is the test target, the second-last the validation target; training sees the first
n−2. Members with fewer than three events are trained on but not evaluated.
Shape letters: B histories, T tokens, C encoded columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..foundation.encoding import offset_tokens
from ..foundation.schema import FIRST, UNKNOWN
from .data import Dataset

Part = Literal["validation", "test"]
HELD_OUT = 2


@dataclass(frozen=True)
class Batch:
    """tokens and targets int32 [T, C]; times int64 [T], seconds, of the targets; offsets int64 [B+1]."""

    tokens: Tensor
    targets: Tensor
    times: Tensor
    offsets: Tensor


def training_ends(data: Dataset) -> np.ndarray:
    """int64 [B]: where each member's training events end in `data.events`."""
    start, stop = data.events.offsets[:-1], data.events.offsets[1:]
    return np.where(stop - start > HELD_OUT, stop - HELD_OUT, stop)


def training_events(data: Dataset) -> np.ndarray:
    """bool [T]: the events that training may see."""
    return np.arange(len(data.events.ids)) < np.repeat(training_ends(data), np.diff(data.events.offsets))


def trained_titles(data: Dataset) -> np.ndarray:
    """bool [N]: titles that a training event is about."""
    index = data.title_indices()
    found = np.zeros(len(data.titles), bool)
    found[index[training_events(data) & (index >= 0)]] = True
    return found


def trained_values(data: Dataset) -> dict[str, np.ndarray]:
    """bool [V] by event field: the ids that training reads; for titles those that training events are about."""
    tokens = offset_tokens(data.schema, data.events.ids, data.events.offsets)[training_events(data)]
    found: dict[str, np.ndarray] = {}
    for f in data.schema.fields:
        found[f.name] = np.zeros(data.sizes[f.name] if f.has_vocabulary else f.fixed_size(), bool)
        found[f.name][tokens[:, slice(*data.schema.spans[f.name])]] = True
    titles = found[data.schema.id_field.name]
    titles[FIRST:], titles[UNKNOWN] = trained_titles(data), True  # the title tower trains the unknown one
    return found


def evaluated_members(data: Dataset) -> np.ndarray:
    """Member indices int64 that have a test and a validation target."""
    return np.flatnonzero(np.diff(data.events.offsets) > HELD_OUT)


def target_positions(data: Dataset, members: np.ndarray, part: Part) -> np.ndarray:
    """Index into `data.events` of each member's held-out event, int64."""
    if part not in get_args(Part):
        raise ValueError(f"part is {part!r}; give test or validation")
    return data.events.offsets[members + 1] - (1 if part == "test" else 2)


def windows(starts: np.ndarray, stops: np.ndarray, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Histories cut into pieces of at most `longest` events, int64 [W, 2]; where the cuts fall differs each epoch."""
    pieces: list[tuple[int, int]] = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        first = stop
        if stop - start > longest:
            first = start + int(rng.integers(longest // 2, longest + 1))
        cuts = [start, *range(first, stop, longest), stop]
        pieces.extend((a, b) for a, b in pairwise(cuts) if b > a)
    return np.array(pieces, np.int64).reshape(-1, 2)


def training_batches(
    data: Dataset, longest: int, batch_tokens: int, seed: int, epoch: int, rank: int = 0, world: int = 1,
    cut: Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray] = windows,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of one epoch, of about `batch_tokens` tokens and of similar lengths, in random order.

    Depends on nothing but (seed, epoch), so that a resumed run sees the same batches. With `world` processes each
    takes every world-th batch, and all take equally many.
    """
    rng = np.random.default_rng((seed, epoch))
    tokens = offset_tokens(data.schema, data.events.ids, data.events.offsets)
    pieces = cut(data.events.offsets[:-1], training_ends(data), longest, rng)
    length = pieces[:, 1] - pieces[:, 0]
    # Similar lengths share a batch (little padding in attention), but not always the same neighbours.
    order = np.argsort(length * rng.uniform(0.8, 1.25, len(length)), kind="stable")
    bound = np.cumsum(length[order]) // batch_tokens
    groups = np.split(order, np.flatnonzero(np.diff(bound)) + 1)
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    for group in shuffled[rank : len(shuffled) - len(shuffled) % world : world] if world > 1 else shuffled:
        rows = np.concatenate([np.arange(a, b) for a, b in pieces[group]])
        offsets = np.concatenate([[0], np.cumsum(length[group])])
        of_rows = (tokens[rows], data.events.ids[rows], data.events.timestamp[rows].astype(np.int64))
        yield Batch(*map(torch.from_numpy, (*of_rows, offsets)))


def evaluation_batch(
    data: Dataset, members: np.ndarray, part: Part, longest: int, with_request: bool
) -> tuple[Tensor, Tensor]:
    """(tokens int32 [T, C], offsets int64 [B+1]): everything before the held-out event, newest `longest` events, and
    the token that asks. with_request: whether that token carries the held-out event's request-time fields."""
    return batch_before(data, target_positions(data, members, part), longest, with_request)


def batch_before(data: Dataset, positions: np.ndarray, longest: int, with_request: bool) -> tuple[Tensor, Tensor]:
    """As `evaluation_batch`, for any events: `positions` int64 [B] into `data.events`."""
    members = np.searchsorted(data.events.offsets, positions, side="right") - 1
    starts = np.maximum(data.events.offsets[members], positions - longest)
    rows = np.concatenate([np.arange(a, b + 1) for a, b in zip(starts, positions, strict=True)])
    offsets = np.concatenate([[0], np.cumsum(positions + 1 - starts)])
    tokens = offset_tokens(data.schema, data.events.ids, data.events.offsets)[rows]
    if not with_request:
        tokens[np.ix_(offsets[1:] - 1, data.schema.request_columns)] = 0
    return torch.from_numpy(tokens), torch.from_numpy(offsets)
