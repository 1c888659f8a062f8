"""Raw events: what is accepted, what is refused and how it is said; the ids that come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from frontrow.foundation import events
from frontrow.foundation.encoding import bucket, encode, encode_request
from frontrow.foundation.events import (
    Coded,
    Counts,
    EventError,
    code_strings,
    columns_from_table,
    parse_events,
    sort_in_time,
)
from frontrow.foundation.schema import FIRST, UNKNOWN, Field, Schema, Vocabulary, default_schema

NOW = 1_750_000_000
SCHEMA = default_schema()
PUBLIC = {
    "timestamp": 1721289600,
    "what": {
        "action_type": "play",
        "entity_id": 80057281,
        "entity_type": "show",
        "duration_watched_seconds": 1800,
    },
    "where": {"device": "TV", "canvas": "home_page_row_3", "locale": "en-US"},
}


def event(what: Mapping[str, Any] | None = None, where: Mapping[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    return {"timestamp": 1, "what": {"entity_id": 7} | dict(what or {}), "where": dict(where or {}), **top}


def test_public_shape_as_json_text_bytes_and_mapping() -> None:
    raw = [json.dumps(PUBLIC), json.dumps(PUBLIC).encode(), PUBLIC]
    columns = parse_events(SCHEMA, raw, NOW)
    assert columns.timestamp.tolist() == [1721289600] * 3
    ids, device = columns.data["what.entity_id"], columns.data["where.device"]
    assert isinstance(ids, np.ndarray)
    assert isinstance(device, Coded)
    assert ids.tolist() == [80057281] * 3
    assert (device.codes.tolist(), list(device.values)) == ([0, 0, 0], ["TV"])
    duration = columns.data["what.duration_watched_seconds"]
    assert isinstance(duration, np.ndarray)
    assert duration.tolist() == [1800.0] * 3


def test_events_read_by_columns_are_those_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = [PUBLIC, event(where=None, timestamp=3), event({"action_type": None, "duration_watched_seconds": 2}),
           json.dumps(event({"genres": ["a"], "entity_type": "é"}))]  # fmt: skip
    quick, carefully = Counts(), Counts()
    columns = parse_events(SCHEMA, raw, NOW, quick)
    monkeypatch.setattr(events, "_plain", lambda *_: None)
    again = parse_events(SCHEMA, raw, NOW, carefully)
    assert (columns.timestamp.tolist(), quick) == (again.timestamp.tolist(), carefully)
    for path, one in columns.data.items():
        other = again.data[path]
        if isinstance(one, Coded) and isinstance(other, Coded):
            assert (one.codes.tolist(), one.values) == (other.codes.tolist(), other.values), path
        else:
            np.testing.assert_array_equal(one, other)


def test_extra_keys_are_ignored_and_null_is_absent() -> None:
    columns = parse_events(SCHEMA, [event({"action_type": None, "colour": "red"}, where={"moon": 1}, x=[1])], NOW)
    actions = columns.data["what.action_type"]
    assert isinstance(actions, Coded)
    assert actions.codes.tolist() == [-1]
    assert parse_events(SCHEMA, [event() | {"where": None}], NOW).timestamp.tolist() == [1]


def test_unknown_keys_are_counted_and_the_first_are_named() -> None:
    """Keys of the public shape are known to everybody, whatever the schema reads; of nested objects only the first."""
    counts, schema = (
        Counts(),
        Schema((SCHEMA.id_field, Field("region", "where.geo.region", "category", "request", 4)), ()),
    )
    strange = {f"key_{i}": i for i in range(20)}
    parse_events(schema, [PUBLIC, event({"action_typ": "play"}, where={"geo": {"moon": 1}})], NOW, counts)
    assert (counts.unknown_keys, counts.unknown) == (1, ["what.action_typ"])
    parse_events(schema, [event(where=strange), event(where={"x" * 1000: 1})], NOW, counts)
    assert counts.unknown_keys == 22
    assert len(counts.unknown) == 8
    assert max(map(len, counts.unknown)) < 100


def test_two_fields_may_read_one_path_and_a_path_may_go_deep() -> None:
    """The parser and a table's columns agree on both."""
    schema = Schema(
        (
            SCHEMA.id_field,
            Field("coarse", "what.price", "number", "action", 4, edges=(10,)),
            Field("fine", "what.price", "number", "action", 4, edges=(1, 2, 10)),
            Field("region", "where.geo.region", "category", "request", 4),
        ),
        (),
    )  # fmt: skip
    raw = [event({"price": 5}, where={"geo": {"region": "north"}}), event({"price": 50}), event(where={"geo": None})]
    table = pa.table({"timestamp": [1, 1, 1], "what": [e["what"] for e in raw], "where": [e["where"] for e in raw]})
    vocabularies = {"entity_id": Vocabulary([7]), "region": Vocabulary(["north"])}
    titles, offsets = np.zeros((FIRST + 1, 0), np.int32), np.array([0, 3])
    parsed, read = (
        encode(schema, vocabularies, columns, offsets, titles).ids.tolist()
        for columns in (parse_events(schema, raw, NOW), columns_from_table(schema, table))
    )
    assert parsed == read == [[2, 2, 4, 2], [2, 3, 5, 0], [2, 0, 0, 0]]
    token = encode_request(schema, vocabularies, {"geo": {"region": "north"}}, NOW, None)
    assert token.tolist() == [0, 0, 0, 2]
    with pytest.raises(EventError, match=r"event 0: 'where.geo' is 'north'; give an object"):
        parse_events(schema, [event(where={"geo": "north"})], NOW)


def test_no_events_are_no_columns() -> None:
    assert len(parse_events(SCHEMA, [], NOW)) == 0


NOT_NUMBERS: list[Any] = ["5", True, float("nan"), float("inf"), [1], {}, 10**400, -(10**400)]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda v: repr(v)[:9])
def test_timestamp_that_is_no_number(value: Any) -> None:
    check_message({**event(), "timestamp": value}, "'timestamp'", value)


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda v: repr(v)[:9])
def test_number_field_that_is_no_number(value: Any) -> None:
    check_message(event({"duration_watched_seconds": value}), "'what.duration_watched_seconds'", value)


@pytest.mark.parametrize(
    "value", ["7", 7.0, True, -1, 2**63, 10**5000, [7]], ids=lambda v: "huge" if v == 10**5000 else repr(v)
)
def test_wrong_title_id(value: Any) -> None:
    check_message(event({"entity_id": value}), "'what.entity_id'", value)


@pytest.mark.parametrize("value", [7, 7.5, True, ["TV"], {"a": 1}], ids=repr)
def test_wrong_category(value: Any) -> None:
    check_message(event({"action_type": value}), "'what.action_type'", value)
    check_message(event(where={"device": value}), "'where.device'", value)


@pytest.mark.parametrize("value", ["Drama", [1], [None], {"a": 1}, 3, [["a"]]], ids=repr)
def test_wrong_list_of_categories(value: Any) -> None:
    tags = Field("tags", "what.tags", "categories", "action", 4, slots=2)
    check_message(event({"tags": value}), "'what.tags'", value, Schema((SCHEMA.id_field, tags), ()))


@pytest.mark.parametrize("part", ["what", "where"])
@pytest.mark.parametrize("value", [3, "TV", ["TV"]], ids=repr)
def test_part_that_is_no_object(part: str, value: Any) -> None:
    check_message({**event(), part: value}, repr(part), value)


@pytest.mark.parametrize("missing", ["timestamp", "what", "entity_id"])
def test_missing_key(missing: str) -> None:
    bad = event()
    bad.pop(missing, None)
    bad.get("what", {}).pop(missing, None)
    check_message(bad, "'timestamp'" if missing == "timestamp" else "'what.entity_id'", None)


@pytest.mark.parametrize(
    ("value", "words"),
    [(-1, "before 1970"), (NOW + 301, "in the future"), (NOW * 1000, "milliseconds"), (1e300, "milliseconds")],
)
def test_time_out_of_range(value: float, words: str) -> None:
    check_message({**event(), "timestamp": value}, "'timestamp'", value)
    with pytest.raises(EventError, match=words):
        parse_events(SCHEMA, [{**event(), "timestamp": value}], NOW)


def test_clocks_may_differ_by_five_minutes() -> None:
    assert parse_events(SCHEMA, [event(timestamp=NOW + 300)], NOW).timestamp.tolist() == [NOW + 300]


@pytest.mark.parametrize(
    "text",
    [b"{", b"", b"[1]", b"null", b'"x"', b"\xff\xfe", '{"timestamp": 1' + "0" * 5000 + "}", b"{'a': 1}"],
    ids=lambda t: repr(t)[:12],
)
def test_text_that_is_no_json_object(text: bytes | str) -> None:
    with pytest.raises(EventError, match="event 1 is"):
        parse_events(SCHEMA, [event(), text], NOW)


@pytest.mark.parametrize("depth", [100, 900, 950, 985, 1000, 100_000])
@pytest.mark.parametrize("key", ["timestamp", "what", "where"])
def test_deep_nesting_is_an_event_error_at_any_depth(depth: int, key: str) -> None:
    text = json.dumps({**event(), key: 0}).replace(f'"{key}": 0', f'"{key}": {"[" * depth}{"]" * depth}')
    with pytest.raises(EventError, match="event 0"):
        parse_events(SCHEMA, [text], NOW)


def check_message(bad: Mapping[str, Any], key: str, value: Any, schema: Schema = SCHEMA) -> None:
    """The second event is wrong: the error names its index, the key and the value, and is short."""
    with pytest.raises(EventError) as error:
        parse_events(schema, [event(), bad], NOW)
    message = str(error.value)
    assert message.startswith(f"event 1: {key} is ")
    assert len(message) < 250
    if value is None:
        assert "missing" in message
    elif not isinstance(value, int) or abs(value) < 10**60:
        assert repr(value) in message


VOCABULARIES = {
    "action_type": Vocabulary(["play"]),
    "entity_id": Vocabulary([7]),
    "entity_type": Vocabulary(()),
    "genres": Vocabulary(()),
    "device": Vocabulary(["TV"]),
    "canvas": Vocabulary(()),
    "locale": Vocabulary(["en-US"]),
}


def test_bucket_edges_belong_to_the_bucket_above() -> None:
    f = Field("x", "what.x", "number", "action", 4, edges=(10, 20))
    values = np.array([-5, 9.99, 10, 19, 20, 1e9, np.nan])
    assert bucket(f, values).tolist() == [2, 2, 3, 3, 4, 4, 0]
    assert f.fixed_size() == 5


@pytest.mark.parametrize(("shuffled", "late"), [([3, 1, 2], 1), ([1, 2, 3], 0), ([3, 2, 1], 2)])
def test_out_of_order_events_are_sorted_and_counted(shuffled: list[int], late: int) -> None:
    columns = parse_events(SCHEMA, [event({"entity_id": t}, timestamp=t) for t in shuffled], NOW)
    found, count = sort_in_time(columns)
    ids = found.data["what.entity_id"]
    assert isinstance(ids, np.ndarray)
    assert (found.timestamp.tolist(), ids.tolist(), count) == ([1, 2, 3], [1, 2, 3], late)


def test_ties_keep_their_order() -> None:
    columns = parse_events(SCHEMA, [event({"entity_id": i}, timestamp=9 - i // 8) for i in range(16)], NOW)
    ids = sort_in_time(columns)[0].data["what.entity_id"]
    assert isinstance(ids, np.ndarray)
    assert ids.tolist() == [*range(8, 16), *range(8)]


def test_only_the_first_slots_of_a_list_are_kept() -> None:
    coded = code_strings([["a", "b", "c"], None, [], ["c"]], slots=2)
    assert coded.codes.tolist() == [[0, 1], [-1, -1], [-1, -1], [2, -1]]
    assert list(coded.values) == ["a", "b", "c"]


def test_request_token_has_the_context_and_no_action() -> None:
    counts = Counts()
    context = {"timestamp": 7200, "device": "TV", "locale": "xx"}
    token = encode_request(SCHEMA, VOCABULARIES, context, NOW, last_event=7200 - 60, counts=counts)
    found = {f.name: int(token[SCHEMA.spans[f.name][0]]) for f in SCHEMA.fields if f.when == "request"}
    gap = next(f for f in SCHEMA.fields if f.name == "gap")
    assert found == {
        "device": FIRST,
        "canvas": 0,
        "locale": UNKNOWN,
        "hour": FIRST + 2,
        "weekday": FIRST + 3,
        "gap": int(bucket(gap, np.array([60.0]))[0]),
    }
    assert not token[SCHEMA.action_columns].any()
    assert (counts.unknown_values, counts.unknown) == (1, ["context.locale 'xx'"])
    first = encode_request(SCHEMA, VOCABULARIES, {}, NOW, last_event=None)
    assert first[SCHEMA.spans["gap"][0]] == 0


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"devise": "TV"}, ["devise", "device"]),
        ({"device": 3}, ["device", "3"]),
        ({"timestamp": NOW * 1000}, ["timestamp", "milliseconds"]),
        ({"action_type": "play"}, ["action_type"]),
    ],
)
def test_wrong_context_is_named(context: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(EventError) as error:
        encode_request(SCHEMA, VOCABULARIES, context, NOW, None)
    assert [w for w in words if w not in str(error.value)] == []


def test_context_may_always_say_the_time() -> None:
    timeless = Schema((SCHEMA.id_field,), ())
    assert encode_request(timeless, {"entity_id": Vocabulary([7])}, {"timestamp": 5}, NOW, None).tolist() == [0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"what.entity_id": [7]}, ["timestamp"]),
        ({"timestamp": [1]}, ["what.entity_id"]),
        ({"timestamp": [1, None], "what.entity_id": [7, 7]}, ["timestamp", "1 of 2"]),
        ({"timestamp": [1, 1], "what.entity_id": [7, None]}, ["what.entity_id", "1 of 2"]),
        ({"timestamp": [1], "what.entity_id": [-7]}, ["what.entity_id", "-7"]),
        ({"timestamp": [1], "what.entity_id": ["7"]}, ["what.entity_id", "string"]),
        ({"timestamp": [1], "what.entity_id": [7.5]}, ["what.entity_id", "double"]),
        ({"timestamp": [1], "what.entity_id": [7], "where.device": [3]}, ["where.device", "int64"]),
        ({"timestamp": [1], "what.entity_id": [7], "what.duration_watched_seconds": ["3"]}, ["duration", "string"]),
        ({"timestamp": [NOW * 1000], "what.entity_id": [7]}, ["seconds"]),
        ({"timestamp": [-1], "what.entity_id": [7]}, ["seconds", "-1"]),
        ({"timestamp": [1, 4_000_000_000], "what.entity_id": [7, 7]},
         ["'timestamp'", "event 1", "4000000000", "in the future"]),
    ],
)  # fmt: skip
def test_wrong_table_is_named(columns: dict[str, list[Any]], words: list[str]) -> None:
    with pytest.raises(EventError) as error:
        columns_from_table(SCHEMA, pa.table(columns))
    assert [w for w in words if w not in str(error.value)] == []
