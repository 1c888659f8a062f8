"""Raw events in the public JSON shape → checked columns.

Two ways in: a request's events are parsed and each mistake is named (`parse_events`); a table of millions is read
column by column (`columns_from_table`). `encoding.encode` is the same vectorised code for both.
Shape letters: T events.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .schema import Field, Schema, default_schema, is_number

CLOCK_SKEW_S = 300
_INT64_MAX = 2**63 - 1
_MILLISECONDS_FROM = 1e11  # seconds reach this in the year 5138
_NAMED = 8  # how many unknown things a request's Counts name
_PUBLIC_PATHS = {f.path for f in default_schema().fields}  # known to everybody, whatever a schema reads
_PARTS = ("what", "where")
_PLAIN = {"id": {int}, "number": {int, float, type(None)}, "category": {str, type(None)}}
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


def lookup(found: Mapping[str, Any], path: str, what: str) -> Any:
    """The value at a dotted path, None if absent. Raises EventError if something on the way is no object."""
    *way, last = path.split(".")
    for depth, key in enumerate(way, start=1):
        inner = found.get(key)
        if inner is None:
            return None
        if not isinstance(inner, Mapping):
            raise EventError(f"{what}: {'.'.join(way[:depth])!r} is {shown(inner)}; give an object")
        found = inner
    return found.get(last)


def shown(value: Any) -> str:
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
        raise EventError(f"{what} is {shown(value)}; give a number of seconds since 1970-01-01 UTC")
    if value < 0:
        raise EventError(f"{what} is {shown(value)}, before 1970; give seconds since 1970-01-01 UTC")
    if value > now + CLOCK_SKEW_S:
        hint = "; it looks like milliseconds, divide by 1000" if value > _MILLISECONDS_FROM else ""
        raise EventError(f"{what} is {shown(value)}, in the future (now is {int(now)}){hint}")
    return int(value)


def check_title_id(value: Any, what: str) -> int:
    """A title id: an int64 of at least 0. Raises EventError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise EventError(f"{what} is {shown(value)}; give an integer id")
    if not 0 <= value <= _INT64_MAX:
        raise EventError(f"{what} is {shown(value)}; ids are integers from 0 to 2**63 - 1")
    return value


def check_value(f: Field, value: Any, what: str) -> Any:
    if f.kind == "id":
        return check_title_id(value, what)
    if f.kind == "number":
        if not is_number(value):
            raise EventError(f"{what} is {shown(value)}; give a number")
        return float(value)
    if f.kind == "categories":
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise EventError(f"{what} is {shown(value)}; give a list of strings")
        return list(value)
    if not isinstance(value, str):
        raise EventError(f"{what} is {shown(value)}; give a string")
    return value


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """One JSON object. Raises EventError that shows where the text is wrong."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise EventError(f"{what} is not JSON ({error}): {shown(text)}") from error
    if not isinstance(value, dict):
        raise EventError(f"{what} is {shown(value)}; give a JSON object")
    return value


def parse_events(
    schema: Schema, raw: Sequence[bytes | str | Mapping[str, Any]], now: float, counts: Counts | None = None
) -> EventColumns:
    """Check events in the public JSON shape and turn them into columns, in the given order.

    raw: T JSON texts or mappings. now: the time that may not be exceeded, seconds. Keys that nobody knows are counted
    in `counts`. Raises EventError for the first event that is malformed, naming its index and key.
    """
    read = {f.path: f for f in schema.fields if f.path.startswith(("what.", "where."))}
    plain = _plain(raw, read, now)
    events, timestamps, values = plain or _checked(raw, read, now)  # something is wrong, or right but unusual
    if counts is not None:
        _count_unknown_keys(events, read, counts)
    columns = {path: column_of(f, values[path]) for path, f in read.items()}
    return EventColumns(np.array(timestamps, np.int64), columns)


_Values = dict[str, list[Any]]  # by path, of T events; None absent


def _checked(
    raw: Sequence[bytes | str | Mapping[str, Any]], read: Mapping[str, Field], now: float
) -> tuple[list[Mapping[str, Any]], list[int], _Values]:
    """(events, timestamps, values), one event after the other, so that the first that is malformed is named."""
    events: list[Mapping[str, Any]] = []
    timestamps: list[int] = []
    values: _Values = {path: [] for path in read}
    for i, item in enumerate(raw):
        event = item if isinstance(item, Mapping) else parse_json(item, f"event {i}")
        if event.get("timestamp") is None:
            raise EventError(f"event {i}: 'timestamp' is missing; give seconds since 1970-01-01 UTC")
        timestamps.append(check_timestamp(event["timestamp"], now, f"event {i}: 'timestamp'"))
        for part in _PARTS:
            if event.get(part) is not None and not isinstance(event[part], Mapping):
                raise EventError(f"event {i}: {part!r} is {shown(event[part])}; give an object")
        for path, f in read.items():
            value = lookup(event, path, f"event {i}")
            if value is not None:
                value = check_value(f, value, f"event {i}: {path!r}")
            elif f.kind == "id":
                raise EventError(f"event {i}: {path!r} is missing; every event names the title it is about")
            values[path].append(value)
        events.append(event)
    return events, timestamps, values


def _plain(
    raw: Sequence[bytes | str | Mapping[str, Any]], read: Mapping[str, Field], now: float
) -> tuple[list[Mapping[str, Any]], list[int], _Values] | None:
    """What `_checked` gives, a column at a time, which takes a fraction of the time; None if a value may be wrong."""
    read_one = json.JSONDecoder().raw_decode  # (value, where its text ends)
    try:
        texts = [str(item, "utf-8") if isinstance(item, bytes) else item for item in raw]
        found = [read_one(text) if isinstance(text, str) else (text, None) for text in texts]
    except (ValueError, RecursionError):
        return None
    events: list[Any] = [event for event, _ in found]
    if not set(map(type, events)) <= {dict}:
        return None
    if any(end is not None and end < len(text) for text, (_, end) in zip(texts, found, strict=True)):
        return None
    parts: dict[str, list[Any]] = {part: [event.get(part) for event in events] for part in _PARTS}
    timestamps: list[Any] = [event.get("timestamp") for event in events]
    if not all(set(map(type, inner)) <= {dict, type(None)} for inner in parts.values()):
        return None
    if not set(map(type, timestamps)) <= {int} or not all(0 <= t <= now + CLOCK_SKEW_S for t in timestamps):
        return None
    parts = {part: [found or {} for found in inner] for part, inner in parts.items()}
    values: _Values = {}
    for path, f in read.items():
        part, key = path.split(".", 1)
        column = [found.get(key) for found in parts[part]]
        if "." in key or not set(map(type, column)) <= _PLAIN.get(f.kind, set()):
            try:
                column = [_value(event, path, f) for event in events]
            except EventError:
                return None
        if f.kind == "id" and not all(0 <= v <= _INT64_MAX for v in column):
            return None
        if f.kind == "number" and not all(v is None or abs(v) <= sys.float_info.max for v in column):
            return None
        values[path] = column
    return events, timestamps, values


def _value(event: Mapping[str, Any], path: str, f: Field) -> Any:
    """The checked value at a path. Raises EventError."""
    value = lookup(event, path, "")
    if value is None and f.kind == "id":
        raise EventError(f"{path!r} is missing")
    return None if value is None else check_value(f, value, "")


def _count_unknown_keys(events: Sequence[Mapping[str, Any]], read: Mapping[str, Field], counts: Counts) -> None:
    """Keys of `what` and `where` that neither the schema reads nor the public shape has."""
    paths = [path.split(".") for path in (*read, *_PUBLIC_PATHS)]
    known = {part: {key for at, key, *_ in (p for p in paths if len(p) > 1) if at == part} for part in _PARTS}
    for event in events:
        for part in _PARTS:
            if (inner := event.get(part)) and not inner.keys() <= known[part]:
                strange = inner.keys() - known[part]
                counts.unknown_keys += len(strange)
                for key in sorted(strange):
                    counts.name(f"{part}.{_cut(key)}")


def column_of(f: Field, values: list[Any]) -> Coded | np.ndarray:
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
