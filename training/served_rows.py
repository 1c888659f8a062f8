"""What the server would have had to rank at events of a data set, by its own code; and the blend of the row ranker.

The row ranker's state part (row_ranking.py) is trained on many moments of training events, whose titles the model has
seen: their scores say too much. How much a row's titles say beside the state is therefore learned from held-out moments
alone, three numbers, from the candidates and chances that serving computes.
Shape letters: P moments, R rows, K candidates, C titles per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..foundation.encoding import offset_tokens
from ..foundation.events import Counts
from ..foundation.row_ranker import RowRanker
from ..foundation.schema import FIRST
from ..serving.homepage import HomepageEngine, Ranked
from ..serving.page import FIRST_TITLES, first_mass, log_mass, ordered_places
from ..serving.requests import PageRequest, Prepared
from ..serving.retrieval import Member
from .data import Dataset
from .row_ranking import Moments, fitted_logits

_CHUNK = 64


@dataclass(frozen=True)
class Served:
    """Moments with what was ranked at each. moments.state: float32 [P, M]; logits: float32 [P, R] of the state alone;
    mass: float32 [P, R], log chance of each row's first titles; targets: title index int64 [P]."""

    moments: Moments
    logits: Tensor
    mass: Tensor
    targets: np.ndarray
    ranked: Sequence[Ranked]

    def features(self) -> Tensor:
        """What the blend weighs, [P, R, 2]."""
        return torch.stack([self.logits, self.mass], dim=-1)

    def blended(self, ranker: RowRanker) -> Tensor:
        """Logits [P, R] of each row as the first of the page."""
        return self.features() @ ranker.blend[1:] + ranker.blend[0]


def asked_at(engine: HomepageEngine, data: Dataset, positions: np.ndarray) -> list[Prepared]:
    """Requests at the time, and in the context, of the events at `positions` int64 [P] of `data.events`, as `prepare`
    makes them of a history that ends before."""
    store = engine.store
    tokens = offset_tokens(data.schema, data.events.ids, data.events.offsets)
    owners = np.searchsorted(data.events.offsets, positions, side="right") - 1
    found = []
    for owner, at in zip(owners.tolist(), positions.tolist(), strict=True):
        start = int(data.events.offsets[owner])
        history = data.events.ids[start:at]
        titles = history[:, store.title_column].astype(np.int64) - FIRST
        seen = np.zeros(store.title_count, bool)
        seen[titles[titles >= 0]] = True
        token = tokens[at]
        member = Member(
            member_id=int(data.member_ids[owner]),
            index=owner,
            recent=titles[titles >= 0],
            excluded=seen.copy(),
            locale=0 if store.locale_column is None else int(token[store.locale_column]),
            day=int(data.events.timestamp[at]) // 86400,
        )
        newest = tokens[max(start, at - store.model.config.max_events) : at + 1]
        found.append(Prepared(newest, member, store.member_view(history), seen, None, Counts()))
    return found


def served_at(engine: HomepageEngine, data: Dataset, positions: np.ndarray) -> Served:
    """The moments of events `positions` int64 [P]: the event's title is the next one."""
    targets, request = data.title_indices()[positions], PageRequest()
    prepared = asked_at(engine, data, positions)
    states, ranked = [], []
    for begin in range(0, len(prepared), _CHUNK):
        chunk = prepared[begin : begin + _CHUNK]
        vectors, state = engine.encode(chunk)
        ranked += engine.rank([request] * len(chunk), chunk, vectors, state)
        states.append(state.cpu())
    state = torch.cat(states) if states else torch.empty(0, engine.store.model.config.d_model)
    rows = len(engine.store.rows)
    mass, relevant, shown = np.empty((len(ranked), rows)), *np.empty((2, len(ranked), rows), bool)
    for p, one in enumerate(ranked):
        mass[p], relevant[p], shown[p] = row_values(engine, one, int(targets[p]))
    with torch.no_grad():
        logits = torch.from_numpy(engine.row_logits(state.to(engine.store.device)))
    moments = Moments(state, torch.from_numpy(relevant), torch.from_numpy(shown))
    return Served(moments, logits, torch.from_numpy(mass).float(), targets, ranked)


def row_values(engine: HomepageEngine, ranked: Ranked, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row as the first of the page, [R]: log chance of its first titles, whether the title of index `target` is
    among them, and whether it has enough to be shown."""
    specs = engine.store.rows.specs
    order = ordered_places(specs, ranked.eligible, engine.store.bundle.titles.ids[ranked.titles])
    most = np.array([s.max_titles for s in specs])
    mass = first_mass(order, most, np.append(ranked.worth.chance, 0.0))
    first = order[:, :FIRST_TITLES]
    hit = np.append(ranked.titles, -1)[first] == target
    hit &= np.arange(first.shape[1]) < most[:, None]
    least = np.array([min(s.min_titles, FIRST_TITLES) for s in specs])
    return log_mass(mass), hit.any(1), ranked.eligible.sum(1) >= least


def blend(ranker: RowRanker, served: Served) -> RowRanker:
    """The ranker with the blend that makes its logits probabilities of held-out moments; both weights are above 0."""
    shown = served.moments.shown
    found = fitted_logits(served.features()[shown], served.moments.relevant[shown])
    if found is not None:
        ranker.blend.copy_(found)
    return ranker
