"""Encoded ids against plain-Python references on drawn events; the input offset; speed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from frontrow.foundation.encoding import encode, encode_time, offset_tokens, serving_tokens
from frontrow.foundation.events import Counts, columns_from_table, parse_events
from frontrow.foundation.schema import ABSENT, FIRST, Field, Schema, Vocabulary, default_schema
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMA = default_schema()
DEVICES, TITLES, GENRES = ["TV", "phone"], [3, 5, 8], ["a", "b"]
VOCABULARIES = {f.name: Vocabulary(()) for f in SCHEMA.fields if f.has_vocabulary} | {
    "entity_id": Vocabulary(TITLES),
    "device": Vocabulary(DEVICES),
    "genres": Vocabulary(GENRES),
}
# Metadata by encoded title id: title 3 has genre a, 5 has b and a, 8 has none; a year column follows.
METADATA = np.zeros((FIRST + 3, 7), np.int32)
METADATA[FIRST, 0], METADATA[FIRST + 1, :2] = 2, (3, 2)
METADATA[FIRST:, 6] = (4, 5, 6)

TIMES = st.integers(0, 1_700_000_000)
EVENTS = st.builds(
    lambda time, title, device, seconds: {
        "timestamp": time,
        "what": {"entity_id": title, "duration_watched_seconds": seconds},
        "where": {"device": device},
    },
    TIMES,
    st.integers(0, 9),
    st.sampled_from([*DEVICES, "radio", None]),
    st.none() | st.integers(-10, 20_000) | st.floats(0, 1e6),
)
few = settings(max_examples=40, deadline=None)


def edge_bucket(edges: tuple[float, ...], value: float | None) -> int:
    return ABSENT if value is None else FIRST + sum(value >= e for e in edges)


@few
@given(st.lists(EVENTS, max_size=12))
def test_ids_equal_a_plain_reference(raw: list[dict[str, Any]]) -> None:
    raw.sort(key=lambda e: e["timestamp"])
    counts = Counts()
    columns = parse_events(SCHEMA, raw, 2e9)
    ids = encode(SCHEMA, VOCABULARIES, columns, np.array([0, len(raw)]), METADATA, counts).ids
    unknown, previous = 0, None
    fields = {f.name: f for f in SCHEMA.fields}
    for row, e in zip(ids, raw, strict=True):
        at = datetime.fromtimestamp(e["timestamp"], UTC)
        title, device = e["what"]["entity_id"], e["where"]["device"]
        unknown += (title not in TITLES) + (device == "radio")
        encoded = FIRST + TITLES.index(title) if title in TITLES else 1
        wanted = {
            "action_type": [0],
            "entity_id": [encoded],
            "entity_type": [0],
            "duration": [edge_bucket(fields["duration"].edges, e["what"]["duration_watched_seconds"])],
            "genres": METADATA[encoded, :6].tolist(),
            "device": [0 if device is None else FIRST + DEVICES.index(device) if device in DEVICES else 1],
            "canvas": [0],
            "locale": [0],
            "hour": [FIRST + at.hour],
            "weekday": [FIRST + at.weekday()],
            "gap": [edge_bucket(fields["gap"].edges, None if previous is None else e["timestamp"] - previous)],
        }
        assert {name: row[slice(*SCHEMA.spans[name])].tolist() for name in wanted} == wanted
        previous = e["timestamp"]
    assert counts.unknown_values == unknown
    assert {name.split()[0] for name in counts.unknown} <= {"what.entity_id", "where.device"}
    assert bool(counts.unknown) == bool(unknown)


@few
@given(st.lists(st.lists(TIMES, max_size=5).map(sorted), max_size=5), st.none() | TIMES)
def test_gap_starts_anew_for_each_member(times: list[list[int]], previous: int | None) -> None:
    gap = Field("gap", "timestamp", "gap", "request", 4, edges=(10, 1000, 100_000))
    if len(times) != 1:
        previous = None  # it belongs to a single member
    flat = np.array([t for ts in times for t in ts], np.int64)
    found = encode_time(gap, flat, np.cumsum([0, *map(len, times)]), previous)
    wanted = []
    for ts in times:
        before = previous
        for t in ts:
            wanted.append(edge_bucket(gap.edges, None if before is None else max(0, t - before)))
            before = t
    assert found.tolist() == wanted


@few
@given(st.lists(EVENTS, max_size=12), st.booleans())
def test_a_table_and_single_events_encode_alike(raw: list[dict[str, Any]], flat: bool) -> None:
    what = pa.struct({"entity_id": pa.int64(), "duration_watched_seconds": pa.float64()})
    kinds = pa.schema({"timestamp": pa.int64(), "what": what, "where": pa.struct({"device": pa.string()})})
    table = pa.Table.from_pylist(raw, schema=kinds)
    if flat:  # columns called what.entity_id, the strings as a dictionary
        table = table.flatten()
        device = table["where.device"].combine_chunks().dictionary_encode()
        table = table.set_column(table.column_names.index("where.device"), "where.device", device)
    offsets = np.array([0, len(raw)])
    one = encode(SCHEMA, VOCABULARIES, parse_events(SCHEMA, raw, 2e9), offsets, METADATA)
    other = encode(SCHEMA, VOCABULARIES, columns_from_table(SCHEMA, table), offsets, METADATA)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.timestamp.tolist() == other.timestamp.tolist()


HISTORIES = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(lambda n: np.cumsum([0, *n]))


def drawn_ids(count: int) -> np.ndarray:
    """Every cell different, so that any leak is seen."""
    return np.arange(1, count * SCHEMA.width + 1, dtype=np.int32).reshape(count, SCHEMA.width)


@few
@given(HISTORIES)
def test_token_t_is_the_action_of_event_t_minus_1_at_the_moment_of_event_t(offsets: np.ndarray) -> None:
    ids = drawn_ids(int(offsets[-1]))
    wanted = np.zeros_like(ids)
    for start, stop in pairwise(offsets.tolist()):
        for t in range(start, stop):
            for column in SCHEMA.request_columns:
                wanted[t, column] = ids[t, column]
            for column in SCHEMA.action_columns:
                wanted[t, column] = ids[t - 1, column] if t > start else ABSENT
    tokens = offset_tokens(SCHEMA, ids, offsets)
    assert (tokens == wanted).all()
    assert not np.isin(tokens, ids[:, SCHEMA.action_columns]).any(axis=1)[offsets[:-1][np.diff(offsets) > 0]].any()
    for t in range(len(ids)):  # nothing of event t's own action is in token t
        assert not np.isin(tokens[t], ids[t, SCHEMA.action_columns]).any()


def test_serving_asks_with_the_token_that_training_would_have_seen() -> None:
    ids = drawn_ids(5)
    request = ids[4].copy()
    request[SCHEMA.action_columns] = ABSENT  # not known yet
    training = offset_tokens(SCHEMA, ids, np.array([0, 5]))
    assert (serving_tokens(SCHEMA, ids[:4], request) == training).all()
    assert (serving_tokens(SCHEMA, ids[:0], request) == request).all()


def test_a_million_events_of_eight_fields_take_at_most_ten_seconds() -> None:
    names = ("action_type", "entity_id", "duration", "device", "canvas", "hour", "weekday", "gap")
    schema = Schema(tuple(f for f in SCHEMA.fields if f.name in names), ())
    count, rng = 1_000_000, np.random.default_rng(0)
    words = {n: [f"{n}{i}" for i in range(20)] for n in ("action_type", "device", "canvas")}

    def drawn(name: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(rng.integers(0, 20, count).astype(np.int32), words[name]).cast("string")

    table = pa.table(
        {
            "timestamp": np.sort(rng.integers(0, 1_700_000_000, count)),
            "what.entity_id": rng.integers(0, 50_000, count),
            "what.duration_watched_seconds": rng.integers(0, 9000, count),
            "what.action_type": drawn("action_type"),
            "where.device": drawn("device"),
            "where.canvas": drawn("canvas"),
        }
    )
    vocabularies = {n: Vocabulary(w) for n, w in words.items()} | {"entity_id": Vocabulary(range(50_000))}
    offsets = np.arange(0, count + 1, 100)
    began = time.process_time()
    encoded = encode(
        schema, vocabularies, columns_from_table(schema, table), offsets, np.zeros((FIRST + 50_000, 0), np.int32)
    )
    seconds = time.process_time() - began
    print(f"1,000,000 events of 8 fields encoded in {seconds:.2f} s")
    assert encoded.ids.shape == (count, 8)
    assert seconds <= 10
