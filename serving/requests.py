"""One member's request: checked, merged with the stored history, turned into tokens.

Shape letters: T events, C encoded columns, N titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..foundation.encoding import Encoded, encode, encode_request, encode_time, serving_tokens
from ..foundation.events import Counts, EventError, parse_events, parse_json, sort_in_time
from ..foundation.schema import ANONYMOUS, FIRST, MAX_EVENT_BYTES, MAX_EVENTS, MAX_ROWS, MAX_TEXT, MAX_TITLES
from .retrieval import Member
from .rows import MemberView
from .store import Store
from .surfaces import HOMEPAGE, NAMES, SEARCH, Question, question


class RequestError(ValueError):
    """A request is wrong; the message names the input, the value and what is allowed."""


@dataclass(frozen=True)
class PageRequest:
    """events, context: JSON texts in the public shape; context may be empty, but for a surface that asks a question,
    which stands in it (surfaces.py). exclude: title ids int64."""

    member_id: int = ANONYMOUS
    events: Sequence[bytes] = ()
    context: bytes = b""
    rows: int = 10
    titles: int = 8
    exclude: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    surface: str = HOMEPAGE
    experiment: str = ""

    def check(self) -> None:
        """Raises RequestError for a value out of range."""
        if self.member_id < ANONYMOUS:
            raise RequestError(f"member_id is {self.member_id}; give an id from 0, or −1 for an anonymous member")
        if not 1 <= self.rows <= MAX_ROWS:
            raise RequestError(f"page asks for {self.rows} rows; give 1 to {MAX_ROWS}")
        if not 1 <= self.titles <= MAX_TITLES:
            raise RequestError(f"page asks for {self.titles} titles per row; give 1 to {MAX_TITLES}")
        if len(self.events) > MAX_EVENTS:
            raise RequestError(f"{len(self.events)} events; give at most {MAX_EVENTS}, the newest")
        if (size := sum(map(len, self.events)) + len(self.context)) > MAX_EVENT_BYTES:
            raise RequestError(
                f"events and context have {size} bytes; give at most {MAX_EVENT_BYTES}, the newest events"
            )
        for name in ("surface", "experiment"):
            if (length := len(getattr(self, name))) > MAX_TEXT:
                raise RequestError(f"{name} has {length} characters; give at most {MAX_TEXT}")
        if len(self.exclude) and int(self.exclude.min()) < 0:
            raise RequestError(f"exclude has {int(self.exclude.min())}; title ids start at 0")
        if self.surface not in NAMES:
            raise RequestError(f"surface is {self.surface!r}; this server ranks the surfaces {', '.join(NAMES)}")


@dataclass(frozen=True)
class Prepared:
    """tokens int32 [T+1, C]. seen: bool [N]. fallback: why the page cannot be personal, or None. question: of a surface
    other than the homepage. key: equal for requests of one store that are ranked alike; None for one whose like will
    hardly be asked again, or which is no homepage."""

    tokens: np.ndarray
    member: Member
    view: MemberView
    seen: np.ndarray
    fallback: str | None
    counts: Counts
    question: Question | None = None
    key: tuple[int, int, bytes] | None = None


def prepare(store: Store, request: PageRequest, now: float) -> Prepared:
    """Raises RequestError or EventError for what is wrong in the request."""
    request.check()
    counts = Counts()
    schema, vocabularies = store.schema, store.bundle.vocabularies
    context = parse_json(request.context, "context") if request.context else {}
    asked = question(store, request.surface, context)
    known, stored = (-1, None) if request.member_id == ANONYMOUS else store.history(request.member_id)
    history = stored or Encoded(np.empty((0, schema.width), np.int32), np.empty(0, np.int64), np.zeros(2, np.int64))
    if request.events:
        columns, counts.out_of_order = sort_in_time(parse_events(schema, request.events, now, counts))
        offsets = np.array([0, len(columns)], np.int64)
        newer = encode(schema, vocabularies, columns, offsets, store.bundle.title_ids, counts)
        history = merge(store, history, newer)
    titles = history.ids[:, store.title_column].astype(np.int64) - FIRST
    seen = np.zeros(store.title_count, bool)
    seen[titles[titles >= 0]] = True
    longest = store.model.config.max_events
    counts.truncated = max(0, len(history.ids) - longest)
    last = int(history.timestamp[-1]) if len(history.timestamp) else None
    token = encode_request(schema, vocabularies, context, now, last, counts)
    # One event more than is read: the oldest token, too, carries the action before it, as in training.
    tokens = serving_tokens(schema, history.ids[-longest - 1 :], token)[-longest - 1 :]
    # People search for what they know, too.
    excluded = np.zeros_like(seen) if asked is not None and asked.surface is SEARCH else seen.copy()
    excluded[_indices(store, request.exclude)] = True
    member = Member(
        member_id=request.member_id,
        index=known,
        recent=titles[titles >= 0],
        excluded=excluded,
        locale=0 if store.locale_column is None else int(token[store.locale_column]),
        day=int(now if context.get("timestamp") is None else context["timestamp"]) // 86400,
    )
    stored_alone = asked is None and not request.events and not len(request.exclude)
    key = (member.member_id, member.day, token.tobytes()) if stored_alone else None
    fallback = None
    if not len(titles):
        unknown = known < 0 and request.member_id != ANONYMOUS
        fallback = "unknown_member" if unknown else "empty_history"
    elif not len(member.recent):
        fallback = "unknown_titles"
    return Prepared(tokens, member, store.member_view(history.ids), seen, fallback, counts, asked, key)


def merge(store: Store, stored: Encoded, newer: Encoded) -> Encoded:
    """One history, oldest first; stored events come first where times tie. Gaps are those of the merged order."""
    timestamp = np.concatenate([stored.timestamp, newer.timestamp])
    ids = np.concatenate([stored.ids, newer.ids])
    order = np.argsort(timestamp, kind="stable")
    timestamp, ids = timestamp[order], ids[order]
    offsets = np.array([0, len(ids)], np.int64)
    for f in store.schema.fields:
        if f.kind == "gap":
            ids[:, store.schema.spans[f.name][0]] = encode_time(f, timestamp, offsets)
    return Encoded(ids, timestamp, offsets)


def _indices(store: Store, title_ids: np.ndarray) -> np.ndarray:
    index = store.title_indices(title_ids)
    return index[index >= 0]


BadRequest = (RequestError, EventError)
