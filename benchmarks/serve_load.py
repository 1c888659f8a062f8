"""What members ask of a homepage server: drawn from a bundle, as PageRequests and as perf_analyzer's input data.

Who asks follows Zipf's law, as some members come often and most seldom. Every request is for a page of 40 × 20.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..foundation.bundle import Bundle
from ..foundation.schema import ANONYMOUS, FIRST, WIRE
from ..serving.requests import PageRequest

Mode = Literal["stored", "events", "mixed"]
MODES: tuple[Mode, ...] = get_args(Mode)
REQUESTS = 500  # different ones; perf_analyzer starts again at the first
ROWS, TITLES = 40, 20
HISTORY = 200
NEWER = 5  # events at most that a member of `mixed` did since the bundle was made


def draw_requests(bundle: Bundle, mode: Mode, count: int = REQUESTS, seed: int = 0) -> list[PageRequest]:
    """stored: a member whose history the server has. events: somebody anonymous who sends 200 events, or as many as
    the member has that they are taken from. mixed: a third each of stored, of events 1 to 200 long, and of stored with
    a few newer events; so the lengths of a batch differ."""
    rng = np.random.default_rng(seed)
    known = bundle.member_ids[np.diff(bundle.histories.offsets) > 0]
    weight = 1 / np.arange(1, len(known) + 1)
    members = rng.permutation(known)[rng.choice(len(known), count, p=weight / weight.sum())].tolist()
    texts: dict[int, list[bytes]] = {}

    def events(member: int, newest: int) -> list[bytes]:
        if member not in texts:
            texts[member] = [json.dumps(e).encode() for e in events_of(bundle, member)]
        return texts[member][-newest:]

    kinds: dict[str, Callable[[int], PageRequest]] = {
        "stored": lambda m: _request(m, ()),
        "events": lambda m: _request(ANONYMOUS, events(m, HISTORY)),
        "some events": lambda m: _request(ANONYMOUS, events(m, int(rng.integers(1, HISTORY + 1)))),
        "newer": lambda m: _request(m, events(m, int(rng.integers(1, NEWER + 1)))),
    }
    mixed = rng.choice(["stored", "some events", "newer"], count).tolist()
    return [kinds[kind if mode == "mixed" else mode](member) for kind, member in zip(mixed, members, strict=True)]


def _request(member: int, events: Sequence[bytes]) -> PageRequest:
    return PageRequest(member, events, rows=ROWS, titles=TITLES)


def events_of(bundle: Any, member_id: int) -> list[dict[str, Any]]:
    """A stored member's newest 200 events in the public shape."""
    at = int(np.searchsorted(bundle.member_ids, member_id))
    history, schema = bundle.histories.member(at), bundle.schema
    titles = bundle.titles.ids[history.ids[-HISTORY:, schema.spans[schema.id_field.name][0]] - FIRST].tolist()
    actions = bundle.vocabularies["action_type"].values
    kinds = [actions[a - FIRST] for a in history.ids[-HISTORY:, schema.spans["action_type"][0]].tolist()]
    return [
        {"timestamp": t, "what": {"action_type": kind, "entity_id": title, "entity_type": "movie"}}
        for t, kind, title in zip(history.timestamp[-HISTORY:].tolist(), kinds, titles, strict=True)
    ]


def input_data(requests: Sequence[PageRequest]) -> dict[str, Any]:
    """The content of perf_analyzer's --input-data file. Every optional input is always there, empty ones with length
    zero: Triton Server batches only requests that carry the same set of inputs."""
    return {"data": [{name: _tensor(values) for name, values in inputs_of(r).items()} for r in requests]}


def inputs_of(request: PageRequest) -> dict[str, list[Any]]:
    """Every input of `homepage` by name; texts as str."""
    values: dict[str, list[Any]] = {
        "member_id": [request.member_id],
        "events": [e.decode() for e in request.events],
        "context": [request.context.decode()] if request.context else [],
        "page": [request.rows, request.titles],
        "exclude": request.exclude.tolist(),
        "surface": [request.surface] if request.surface else [],
        "experiment": [request.experiment] if request.experiment else [],
    }
    assert list(values) == [t.name for t in WIRE["homepage"][0]]
    return values


def _tensor(values: list[Any]) -> dict[str, Any]:
    return {"content": values, "shape": [len(values)]}
