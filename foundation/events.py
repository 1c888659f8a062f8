"""Raw events in the public JSON shape → checked columns → encoded ids.

Two ways in, one way through: a request's events are parsed one by one and each mistake is named (`parse_events`); a
table of millions is read column by column (`columns_from_table`). `encode` is the same vectorised code for both.
Shape letters: T events, C encoded columns, B members, N titles.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .schema import ABSENT, FIRST, UNKNOWN, Field, Schema, Vocabulary, default_schema, is_number

CLOCK_SKEW_S = 300
_INT64_MAX = 2**63 - 1
_MILLISECONDS_FROM = 1e11  # seconds reach this in the year 5138
_NAMED = 8  # how many unknown things a request's Counts name
_PUBLIC_PATHS = {f.path for f in default_schema().fields}  # known to everybody, whatever a schema reads
# What a column of each kind may hold, by how pyarrow spells its type.
_ARROW_TYPES = {
    "id": ("int", "uint"),
    "number": ("int", "uint", "float", "double", "halffloat"),
    "categories": ("list<", "large_list<"),
    "category": ("string", "large_string", "dictionary<values=string", "dictionary<values=large_string"),
}


class EventError(ValueError):
    """An event is malformed; the message names its index, the key, the value and the fix."""


@dataclass(frozen=True)
class Coded:
    """Strings by dictionary: `codes` int32 [T] (or [T, slots]) into `values`, −1 where absent."""

    codes: np.ndarray
    values: Sequence[str]


@dataclass(frozen=True)
class EventColumns:
    """T events as columns: `timestamp` int64 [T] seconds, and by path a Coded, int64 ids or float64 (NaN absent)."""

    timestamp: np.ndarray
    data: Mapping[str, Coded | np.ndarray]

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, index: np.ndarray) -> EventColumns:
        """The events at `index`, in that order."""
        data = {
            path: Coded(c.codes[index], c.values) if isinstance(c, Coded) else c[index] for path, c in self.data.items()
        }
        return EventColumns(self.timestamp[index], data)


@dataclass
class Counts:
    """What was accepted but not perfect; kept so that nothing disappears unseen.

    unknown_values: outside their field's vocabulary. unknown_keys: of `what` and `where`, in no schema. unknown: the
    first few of both, such as "context.device 'Toaster'" (one value of each field) and "what.action_typ".
    """

    unknown_values: int = 0
    unknown_keys: int = 0
    out_of_order: int = 0
    truncated: int = 0
    unknown: list[str] = field(default_factory=list)

    def numbers(self) -> dict[str, int]:
        """All but the names."""
        return {name: n for name, n in vars(self).items() if name != "unknown"}

    def name(self, what: str) -> None:
        """Remember something unknown, once, if there is room."""
        if what not in self.unknown and len(self.unknown) < _NAMED:
            self.unknown.append(what)


@dataclass(frozen=True)
class Encoded:
    """ids int32 [T, C]; timestamp int64 [T]; offsets int64 [B+1]: member b's events, oldest first, are
    ids[offsets[b]:offsets[b+1]]."""

    ids: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray

    def member(self, b: int) -> Encoded:
        """The history of member index b, as an Encoded of one member."""
        rows = slice(int(self.offsets[b]), int(self.offsets[b + 1]))
        count = rows.stop - rows.start
        return Encoded(self.ids[rows], self.timestamp[rows], np.array([0, count], np.int64))


def _lookup(found: Mapping[str, Any], path: str, what: str) -> Any:
    """The value at a dotted path, None if absent. Raises EventError if something on the way is no object."""
    *way, last = path.split(".")
    for depth, key in enumerate(way, start=1):
        inner = found.get(key)
        if inner is None:
            return None
        if not isinstance(inner, Mapping):
            raise EventError(f"{what}: {'.'.join(way[:depth])!r} is {_shown(inner)}; give an object")
        found = inner
    return found.get(last)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested very deeply; an integer of more than 4300 digits
        text = f"a {type(value).__name__} too large to show"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def check_timestamp(value: Any, now: float, what: str) -> int:
    """A time in whole seconds since 1970-01-01 UTC. Raises EventError: not a number, negative, in the future."""
    if not is_number(value):
        raise EventError(f"{what} is {_shown(value)}; give a number of seconds since 1970-01-01 UTC")
    if value < 0:
        raise EventError(f"{what} is {_shown(value)}, before 1970; give seconds since 1970-01-01 UTC")
    if value > now + CLOCK_SKEW_S:
        hint = "; it looks like milliseconds, divide by 1000" if value > _MILLISECONDS_FROM else ""
        raise EventError(f"{what} is {_shown(value)}, in the future (now is {int(now)}){hint}")
    return int(value)


def check_title_id(value: Any, what: str) -> int:
    """A title id: an int64 of at least 0. Raises EventError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise EventError(f"{what} is {_shown(value)}; give an integer id")
    if not 0 <= value <= _INT64_MAX:
        raise EventError(f"{what} is {_shown(value)}; ids are integers from 0 to 2**63 - 1")
    return value


def _check_value(f: Field, value: Any, what: str) -> Any:
    if f.kind == "id":
        return check_title_id(value, what)
    if f.kind == "number":
        if not is_number(value):
            raise EventError(f"{what} is {_shown(value)}; give a number")
        return float(value)
    if f.kind == "categories":
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise EventError(f"{what} is {_shown(value)}; give a list of strings")
        return list(value)
    if not isinstance(value, str):
        raise EventError(f"{what} is {_shown(value)}; give a string")
    return value


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """One JSON object. Raises EventError that shows where the text is wrong."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise EventError(f"{what} is not JSON ({error}): {_shown(text)}") from error
    if not isinstance(value, dict):
        raise EventError(f"{what} is {_shown(value)}; give a JSON object")
    return value


def parse_events(
    schema: Schema, raw: Sequence[bytes | str | Mapping[str, Any]], now: float, counts: Counts | None = None
) -> EventColumns:
    """Check events in the public JSON shape and turn them into columns, in the given order.

    raw: T JSON texts or mappings. now: the time that may not be exceeded, seconds. Keys that nobody knows are counted
    in `counts`. Raises EventError for the first event that is malformed, naming its index and key.
    """
    read = {f.path: f for f in schema.fields if f.path.startswith(("what.", "where."))}
    known: dict[str, set[str]] = {"what": set(), "where": set()}
    for part, key, *_ in (path.split(".") for path in (*read, *_PUBLIC_PATHS) if path.startswith(("what.", "where."))):
        known[part].add(key)
    timestamps: list[int] = []
    values: dict[str, list[Any]] = {path: [] for path in read}
    for i, item in enumerate(raw):
        event = item if isinstance(item, Mapping) else parse_json(item, f"event {i}")
        if event.get("timestamp") is None:
            raise EventError(f"event {i}: 'timestamp' is missing; give seconds since 1970-01-01 UTC")
        timestamps.append(check_timestamp(event["timestamp"], now, f"event {i}: 'timestamp'"))
        for part in ("what", "where"):
            if event.get(part) is not None and not isinstance(event[part], Mapping):
                raise EventError(f"event {i}: {part!r} is {_shown(event[part])}; give an object")
            if counts is not None and (strange := (event.get(part) or {}).keys() - known[part]):
                counts.unknown_keys += len(strange)
                for key in sorted(strange):
                    counts.name(f"{part}.{_cut(key)}")
        for path, f in read.items():
            value = _lookup(event, path, f"event {i}")
            if value is not None:
                value = _check_value(f, value, f"event {i}: {path!r}")
            elif f.kind == "id":
                raise EventError(f"event {i}: {path!r} is missing; every event names the title it is about")
            values[path].append(value)
    columns = {path: _column(f, values[path]) for path, f in read.items()}
    return EventColumns(np.array(timestamps, np.int64), columns)


def _column(f: Field, values: list[Any]) -> Coded | np.ndarray:
    if f.kind == "id":
        return np.array(values, np.int64)
    if f.kind == "number":
        return np.array([math.nan if v is None else v for v in values], np.float64)
    return code_strings(values, f.slots if f.kind == "categories" else 0)


def code_strings(values: Sequence[str | None] | Sequence[Sequence[str] | None], slots: int = 0) -> Coded:
    """Dictionary-code strings [T], or with `slots` lists of strings [T] → codes [T, slots], the first `slots` kept."""
    known: dict[str, int] = {}
    if not slots:
        codes = [-1 if v is None else known.setdefault(str(v), len(known)) for v in values]
        return Coded(np.array(codes, np.int32), list(known))
    table = np.full((len(values), slots), -1, np.int32)
    for i, several in enumerate(values):
        for j, v in enumerate((several or ())[:slots]):
            table[i, j] = known.setdefault(v, len(known))
    return Coded(table, list(known))


def columns_from_table(schema: Schema, table: Any) -> EventColumns:
    """Columns of a pyarrow Table whose columns are paths of the public shape (`what.entity_id`, or a struct `what`).

    Absent columns are absent values. Raises EventError for a column of the wrong type, if a timestamp or title id is
    missing or negative anywhere, and for a timestamp in the future.
    """
    while any(str(f.type).startswith("struct") for f in table.schema):
        table = table.flatten()
    names = set(table.column_names)
    id_path = schema.id_field.path
    for path in ("timestamp", id_path):
        if path not in names:
            raise EventError(f"the table has no column {path!r}; it has {sorted(names)}")
        if nulls := table[path].null_count:
            raise EventError(f"column {path!r} is empty in {nulls} of {len(table)} events")
    data: dict[str, Coded | np.ndarray] = {}
    for f in {f.path: f for f in schema.fields}.values():
        if f.path not in names or not f.path.startswith(("what.", "where.")):
            continue
        column = table[f.path].combine_chunks()
        wanted = _ARROW_TYPES[f.kind]
        if not str(column.type).startswith((*wanted, "null")):
            raise EventError(f"column {f.path!r} has type {column.type}; kind {f.kind!r} needs {' or '.join(wanted)}")
        if f.kind == "id":
            data[f.path] = ids = column.to_numpy(zero_copy_only=False).astype(np.int64)
            if len(ids) and ids.min() < 0:
                raise EventError(f"column {f.path!r} has {ids.min()}; ids are integers from 0 to 2**63 - 1")
        elif f.kind == "number":
            data[f.path] = column.cast("float64").to_numpy(zero_copy_only=False)
        elif f.kind == "categories":
            data[f.path] = code_strings(column.to_pylist(), f.slots)
        else:
            coded = column.dictionary_encode()
            codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
            data[f.path] = Coded(codes, coded.dictionary.to_pylist())
    timestamp = table["timestamp"].combine_chunks().cast("int64", safe=False).to_numpy(zero_copy_only=False)
    if len(timestamp) and (timestamp.min() < 0 or timestamp.max() > _MILLISECONDS_FROM):
        raise EventError(f"timestamps reach from {timestamp.min()} to {timestamp.max()}; give seconds since 1970")
    if len(timestamp):
        latest = int(timestamp.argmax())
        check_timestamp(int(timestamp[latest]), time.time(), f"column 'timestamp', event {latest}: it")
    return EventColumns(timestamp, data)


def sort_in_time(columns: EventColumns) -> tuple[EventColumns, int]:
    """Oldest first, ties in the given order; and how many events came earlier than the one before them."""
    late = int((np.diff(columns.timestamp) < 0).sum())
    return (columns.take(np.argsort(columns.timestamp, kind="stable")), late) if late else (columns, 0)


def encode(
    schema: Schema,
    vocabularies: Mapping[str, Vocabulary],
    columns: EventColumns,
    offsets: np.ndarray,
    titles: np.ndarray,
    counts: Counts | None = None,
    previous: int | None = None,
) -> Encoded:
    """Look ids up and bucket numbers for the events of B members, each member's oldest first.

    offsets: int64 [B+1]. titles: int32 [FIRST+N, title columns], encoded metadata by encoded title id.
    previous: time of the event before the first one (of a single member), for its gap.
    Unknown values get UNKNOWN and are counted in `counts`.
    """
    count = len(columns)
    ids = np.zeros((count, schema.width), np.int32)
    for f in schema.fields:
        start, stop = schema.spans[f.name]
        column = columns.data.get(f.path)
        if f.kind in ("hour", "weekday", "gap"):
            ids[:, start] = encode_time(f, columns.timestamp, offsets, previous)
        elif f.path.startswith("title."):
            continue  # joined below, when the title is known
        elif column is None:
            continue
        elif isinstance(column, Coded):
            coded = vocabularies[f.name].encode_coded(column.codes, column.values)
            ids[:, start:stop] = coded.reshape(count, stop - start)
        elif f.kind == "id":
            ids[:, start] = vocabularies[f.name].encode_ints(column)
        else:
            ids[:, start] = bucket(f, column)
        if counts is not None and f.has_vocabulary and column is not None:
            _count_unknown(counts, f.path, column, ids[:, start:stop] == UNKNOWN)
    join_titles(schema, ids, titles)
    return Encoded(ids, columns.timestamp, offsets)


def _count_unknown(counts: Counts, what: str, column: Coded | np.ndarray, unknown: np.ndarray) -> None:
    """unknown: bool [T, slots], which values of a column are."""
    if not unknown.any():
        return
    counts.unknown_values += int(unknown.sum())
    values = column.codes if isinstance(column, Coded) else column
    first = values.reshape(unknown.shape)[unknown][0]
    counts.name(f"{what} {_shown(column.values[first] if isinstance(column, Coded) else int(first))}")


def join_titles(schema: Schema, ids: np.ndarray, titles: np.ndarray) -> None:
    """Fill the `title.*` columns of ids int32 [T, C] from the metadata of each event's title, in place."""
    title_of = ids[:, schema.spans[schema.id_field.name][0]]
    by_path = {f.path: schema.title_spans[f.name] for f in schema.title_fields}
    for f in schema.fields:
        if f.path.startswith("title."):
            start, stop = schema.spans[f.name]
            ids[:, start:stop] = titles[title_of, slice(*by_path[f.path])]


def bucket(f: Field, values: np.ndarray) -> np.ndarray:
    """Bucket ids int32 [T] of numbers [T] by the field's edges; NaN is absent."""
    at = np.searchsorted(np.array(f.edges), values, side="right") + FIRST
    return np.where(np.isnan(values), ABSENT, at).astype(np.int32)


def encode_time(f: Field, timestamp: np.ndarray, offsets: np.ndarray, previous: int | None = None) -> np.ndarray:
    """Ids int32 [T] of `hour`, `weekday` (UTC, Monday first) or `gap` of times int64 [T]; a first event has no gap."""
    if f.kind == "hour":
        return (timestamp // 3600 % 24 + FIRST).astype(np.int32)
    if f.kind == "weekday":
        return ((timestamp // 86400 + 3) % 7 + FIRST).astype(np.int32)  # 1970-01-01 was a Thursday
    gap = np.empty(len(timestamp), np.float64)
    gap[1:] = np.diff(timestamp)
    first = offsets[:-1][offsets[:-1] < offsets[1:]]
    gap[first] = np.nan if previous is None else timestamp[first] - previous
    return bucket(f, np.maximum(gap, 0.0))


def encode_request(
    schema: Schema,
    vocabularies: Mapping[str, Vocabulary],
    context: Mapping[str, Any],
    now: float,
    last_event: int | None,
    counts: Counts | None = None,
) -> np.ndarray:
    """Request-time columns of the token that asks for a page: int32 [C], action columns ABSENT.

    context: {"timestamp": seconds (default now), and the `where.*` keys}. Raises EventError for a wrong value or a
    key that is no request-time field.
    """
    fields = [f for f in schema.fields if f.when == "request"]
    known = {"timestamp"} | {f.path.removeprefix("where.").partition(".")[0] for f in fields}
    if strange := sorted(set(context) - known):
        raise EventError(f"context has {strange}; known keys are {sorted(known)}")
    time = context.get("timestamp")
    at = int(now) if time is None else check_timestamp(time, now, "context: 'timestamp'")
    token = np.zeros(schema.width, np.int32)
    for f in fields:
        start, stop = schema.spans[f.name]
        if f.path == "timestamp":
            token[start] = encode_time(f, np.array([at], np.int64), np.array([0, 1], np.int64), last_event)[0]
            continue
        path = f.path.removeprefix("where.")
        value = _lookup(context, path, "context")
        if value is None:
            continue
        value = _check_value(f, value, f"context: {path!r}")
        column = _column(f, [value])
        if isinstance(column, Coded):
            token[start:stop] = vocabularies[f.name].encode_coded(column.codes, column.values).reshape(-1)
            if counts is not None:
                _count_unknown(counts, f"context.{path}", column, token[None, start:stop] == UNKNOWN)
        else:
            token[start] = bucket(f, column)[0]
    return token


def offset_tokens(schema: Schema, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Input tokens int32 [T, C] for training: action fields of event t−1 with request-time fields of event t.

    The first token of a member has no action before it (ABSENT). At serving, `serving_tokens` is used instead.
    """
    tokens = np.zeros_like(ids)
    tokens[:, schema.request_columns] = ids[:, schema.request_columns]
    if len(ids):
        columns = schema.action_columns
        tokens[1:, columns] = ids[:-1, columns]
        starts = offsets[:-1][offsets[:-1] < offsets[1:]]
        tokens[np.ix_(starts, columns)] = ABSENT
    return tokens


def serving_tokens(schema: Schema, ids: np.ndarray, request: np.ndarray) -> np.ndarray:
    """Input tokens int32 [T+1, C] of one member: the history [T, C] under the input offset, and a last token with the
    newest action and the request's own context [C]."""
    return offset_tokens(schema, np.concatenate([ids, request[None]]), np.array([0, len(ids) + 1], np.int64))
