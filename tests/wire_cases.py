"""Requests on the wire, for the tests of serving and of the real server: histories in the public shape, and every kind
of bad request with what the refusal must say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from frontrow.foundation.bundle import Bundle
from frontrow.foundation.schema import FIRST, WIRE
from frontrow.serving.page import FIRST_TITLES
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store

NUMPY = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8, "BYTES": np.object_}
FUTURE = 4_000_000_000


def public_events(bundle: Bundle, member_id: int) -> list[dict[str, Any]]:
    """The stored history of a member as public events that encode to the same ids."""
    at = bundle.member_ids.tolist().index(member_id)
    history = bundle.histories.member(at)
    events = []
    for ids, timestamp in zip(history.ids.tolist(), history.timestamp.tolist(), strict=True):
        event: dict[str, Any] = {"timestamp": timestamp, "what": {}, "where": {}}
        for f in bundle.schema.fields:
            part, _, key = f.path.partition(".")
            code = ids[bundle.schema.spans[f.name][0]] - FIRST
            if part in ("what", "where") and code >= 0:
                if f.kind == "number":
                    event[part][key] = f.edges[code - 1] if code else f.edges[0] - 1
                else:
                    event[part][key] = bundle.vocabularies[f.name].values[code]
        events.append(event)
    return events


def texts(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(e).encode() for e in events]


def inputs(model: str, **values: Any) -> dict[str, np.ndarray]:
    """Every input of a model with a batch dimension of 1; those not given are empty."""
    found = {}
    for t in WIRE[model][0]:
        value = values.pop(t.name, [])
        found[t.name] = np.array(value, NUMPY[t.dtype]).reshape(1, -1)
    assert not values, f"{model} takes no {sorted(values)}"
    return found


@dataclass(frozen=True)
class Bad:
    """A request that must be refused. says: the value, or the key, that the message must name."""

    name: str
    says: str
    events: tuple[bytes, ...] = ()
    context: bytes = b""
    page: tuple[int, int] = (10, 8)
    exclude: tuple[int, ...] = ()
    surface: bytes = b""
    member_id: int = -1

    def page_request(self) -> PageRequest:
        return PageRequest(
            self.member_id,
            self.events,
            self.context,
            *self.page,
            np.array(self.exclude, np.int64),
            self.surface.decode() or "homepage",
        )

    def inputs(self) -> dict[str, np.ndarray]:
        """As `homepage` is sent it."""
        return inputs(
            "homepage", member_id=[self.member_id], events=list(self.events), page=list(self.page),
            exclude=list(self.exclude), context=[self.context] if self.context else [],
            surface=[self.surface] if self.surface else [],
        )  # fmt: skip


def _event(name: str, says: str, change: Mapping[str, Any], index: int = 1) -> Bad:
    """A good event, and then one with some parts replaced."""
    good = {"timestamp": 1_700_000_000, "what": {"action_type": "play", "entity_id": 501}, "where": {"device": "TV"}}
    wrong = {k: v for k, v in {**good, **change}.items() if v is not ...}
    return Bad(name, says, events=tuple(texts([good] * index + [wrong])))


BAD_REQUESTS = (
    _event("no timestamp", "event 1: 'timestamp' is missing", {"timestamp": ...}),
    _event("timestamp null", "event 1: 'timestamp' is missing", {"timestamp": None}),
    _event("timestamp in the future", f"event 1: 'timestamp' is {FUTURE}, in the future", {"timestamp": FUTURE}),
    _event("timestamp in milliseconds", "1700000000000, in .* divide by 1000", {"timestamp": 1700000000_000}),
    _event("timestamp a text", "event 1: 'timestamp' is 'yesterday'", {"timestamp": "yesterday"}),
    _event("timestamp a truth", "event 1: 'timestamp' is True", {"timestamp": True}),
    _event("timestamp not a number", "event 1: 'timestamp' is nan", {"timestamp": float("nan")}),
    _event("timestamp infinite", "event 1: 'timestamp' is inf", {"timestamp": float("inf")}),
    _event("timestamp before 1970", "event 1: 'timestamp' is -5", {"timestamp": -5}),
    _event("timestamp beyond float", "event 1: 'timestamp' is 1000000", {"timestamp": 10**400}),
    _event("no title", r"event 1: 'what.entity_id' is missing", {"what": {"action_type": "play"}}),
    _event("no what", r"event 1: 'what.entity_id' is missing", {"what": ...}),
    _event("what a list", r"event 1: 'what' is \[1\]", {"what": [1]}),
    _event("where a text", "event 1: 'where' is 'TV'", {"where": "TV"}),
    _event("title negative", "event 1: 'what.entity_id' is -7", {"what": {"entity_id": -7}}),
    _event("title a text", "event 1: 'what.entity_id' is '501'", {"what": {"entity_id": "501"}}),
    _event("title a fraction", "event 1: 'what.entity_id' is 501.5", {"what": {"entity_id": 501.5}}),
    _event("title beyond int64", "event 1: 'what.entity_id' is 9223372036854775808", {"what": {"entity_id": 2**63}}),
    _event("action a number", "event 1: 'what.action_type' is 3", {"what": {"entity_id": 501, "action_type": 3}}),
    _event(
        "duration a text", "event 1: 'what.duration_watched_seconds' is 'long'",
        {"what": {"entity_id": 501, "duration_watched_seconds": "long"}},
    ),
    _event(
        "duration beyond float", "event 1: 'what.duration_watched_seconds' is 1000000",
        {"what": {"entity_id": 501, "duration_watched_seconds": 10**400}},
    ),
    _event("device a list", r"event 2: 'where.device' is \['TV'\]", {"where": {"device": ["TV"]}}, index=2),
    Bad("event cut short", "event 0 is not JSON", events=(b'{"timestamp": 17',)),
    Bad("event not UTF-8", "event 0 is not JSON", events=(b'{"timestamp": "\xff\xfe"}',)),
    Bad("event a list", r"event 0 is \[\]; give a JSON object", events=(b"[]",)),
    Bad("event null", "event 0 is None; give a JSON object", events=(b"null",)),
    Bad("event nested without end", "event 0 is not JSON", events=(b"[" * 100_000,)),
    Bad("no rows", "page asks for 0 rows; give 1 to 100", page=(0, 8)),
    Bad("too many rows", "page asks for 101 rows", page=(101, 8)),
    Bad("negative rows", "page asks for -1 rows", page=(-1, 8)),
    Bad("no titles", "page asks for 0 titles", page=(10, 0)),
    Bad("a million titles", "page asks for 1000000 titles per row; give 1 to 500", page=(10, 10**6)),
    Bad("member negative", "member_id is -2", member_id=-2),
    Bad("exclude negative", "exclude has -9", exclude=(501, -9)),
    Bad("unknown surface", "surface is 'fridge'", surface=b"fridge"),
    Bad("search without a query", "'query' is missing", surface=b"search"),
    Bad("search for a number", "'query' is 5; give a text", surface=b"search", context=b'{"query": 5}'),
    Bad("a long query", "'query' has 10000 char", surface=b"search", context=b'{"query": "%s"}' % (b"x" * 10_000)),
    Bad("like no title", "'title_id' is missing", surface=b"more_like_this", context=b'{"device": "TV"}'),
    Bad("like an unknown title", "'title_id' is 77, which", surface=b"more_like_this", context=b'{"title_id": 77}'),
    Bad("a query for the homepage", r"context has \['query'\]", context=b'{"query": "alien"}'),
    Bad("context cut short", "context is not JSON", context=b'{"device": "TV"'),
    Bad("context a list", r"context is \['TV'\]; give a JSON object", context=b'["TV"]'),
    Bad("unknown context key", r"context has \['colour'\]; known keys are .*'device'", context=b'{"colour": "red"}'),
    Bad("context device a number", "context: 'device' is 5", context=b'{"device": 5}'),
    Bad("context time a text", "context: 'timestamp' is 'now'", context=b'{"timestamp": "now"}'),
    Bad("context time in the future", f"context: 'timestamp' is {FUTURE}", context=b'{"timestamp": %d}' % FUTURE),
    Bad("context time negative", "context: 'timestamp' is -1", context=b'{"timestamp": -1}'),
)  # fmt: skip


def first_row_score(store: Store, alone: float, row: np.ndarray, candidates: np.ndarray) -> float:
    """The score of a page's first row, by hand: the row's score by the state `alone`, blended with the chance of its
    first titles, of scores `row` [C], among all `candidates`, of scores [K]."""
    shift, stretch, slope = store.row_ranker.blend.tolist()
    chance = np.exp(row[:FIRST_TITLES]).sum() / np.exp(candidates).sum()
    logit = shift + stretch * np.log(alone / (1 - alone)) + slope * np.log(chance + 1e-6)
    return float(1 / (1 + np.exp(-logit)))
