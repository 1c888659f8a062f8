"""Checked columns → encoded ids: vocabularies, buckets, times; and the input offset of tokens.

Shape letters: T events, C encoded columns, B members, N titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .events import Coded, Counts, EventColumns, EventError, check_timestamp, check_value, column_of, lookup, shown
from .schema import ABSENT, FIRST, UNKNOWN, Field, Schema, Vocabulary


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
    counts.name(f"{what} {shown(column.values[first] if isinstance(column, Coded) else int(first))}")


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
        value = lookup(context, path, "context")
        if value is None:
            continue
        value = check_value(f, value, f"context: {path!r}")
        column = column_of(f, [value])
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
