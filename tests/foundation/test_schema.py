"""What a schema promises: one declaration, checked with the field's name, hashed without the learnt vocabularies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.foundation import schema as schema_module
from frontrow.foundation.encoding import encode
from frontrow.foundation.events import Counts, parse_events
from frontrow.foundation.schema import (
    ABSENT,
    FIRST,
    UNKNOWN,
    WIRE,
    Field,
    Schema,
    SchemaError,
    Vocabulary,
    default_schema,
)

TITLE = {"name": "title", "path": "what.entity_id", "kind": "id", "when": "action", "width": 4, "loss_weight": 1.0}


def declare(*fields: dict[str, Any], title_fields: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """A schema as it stands in a JSON file: the title and some more fields, each with only the keys that differ."""
    usual = {"name": "x", "path": "what.x", "kind": "category", "when": "action", "width": 4}
    return {
        "fields": [TITLE, *({**usual, **f} for f in fields)],
        "title_fields": [{**usual, "path": "title.x", **f} for f in title_fields],
    }


def test_round_trip_through_json(tmp_path: Path) -> None:
    schema, file = default_schema(), tmp_path / "schema.json"
    file.write_text(json.dumps(schema.to_dict()))
    assert Schema.load(file) == schema
    assert Schema.load(file).hash == schema.hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"path": "where.other"},
        {"kind": "number", "edges": (1.0,)},
        {"when": "request"},
        {"width": 9},
        {"kind": "categories", "slots": 3},
        {"loss_weight": 0.5},
    ],
    ids=str,
)
def test_hash_changes_with_any_change_of_a_field(change: dict[str, Any]) -> None:
    schema = Schema.from_dict(declare({"name": "x"}))
    changed = replace(schema, fields=(schema.fields[0], replace(schema.fields[1], **change)))
    assert changed.hash != schema.hash


def test_hash_changes_with_edges_title_fields_order_and_wire_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    number, y = {"kind": "number", "edges": [1, 2]}, {"name": "y", "path": "what.y"}
    schemas = [
        Schema.from_dict(declare(number, y)),
        Schema.from_dict(declare(number | {"edges": [1, 3]}, y)),
        Schema.from_dict(declare(y, number)),
        Schema.from_dict(declare(number, y, title_fields=({"name": "z"},))),
    ]
    hashes = {s.hash for s in schemas}
    monkeypatch.setitem(schema_module.WIRE, "homepage", WIRE["catalogue"])
    hashes.add(Schema.from_dict(declare(number, y)).hash)
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("fields", "title_fields", "words"),
    [
        ([{"kind": "float"}], [], ["'x'", "float", "category"]),
        ([{"when": "later"}], [], ["'x'", "later"]),
        ([{"width": 0}], [], ["'x'", "width"]),
        ([{"width": "8"}], [], ["'x'", "width"]),
        ([{"slots": 0}], [], ["'x'", "slots"]),
        ([{"slots": 2}], [], ["'x'", "categories"]),
        ([{"loss_weight": -1}], [], ["'x'", "loss_weight"]),
        ([{"loss_weight": 1, "when": "request"}], [], ["'x'", "request"]),
        ([{"kind": "number"}], [], ["'x'", "edges"]),
        ([{"edges": [1]}], [], ["'x'", "edges"]),
        ([{"kind": "number", "edges": [1, 1]}], [], ["'x'", "rise"]),
        ([{"kind": "number", "edges": [2, 1]}], [], ["'x'", "rise"]),
        ([{"kind": "number", "edges": [1, float("nan")]}], [], ["'x'", "nan", "numbers"]),
        ([{"kind": "number", "edges": "123"}], [], ["'x'", "'123'", "numbers"]),
        ([{"kind": "number", "edges": [True]}], [], ["'x'", "True", "numbers"]),
        ([{"loss_weight": float("nan")}], [], ["'x'", "loss_weight nan"]),
        ([{"loss_weight": float("inf")}], [], ["'x'", "loss_weight inf"]),
        ([{"loss_weight": True}], [], ["'x'", "loss_weight True"]),
        ([{"width": 10**12}], [], ["'x'", "width 1000000000000"]),
        ([{"width": True}], [], ["'x'", "width True"]),
        ([{"kind": "categories", "slots": 10**9}], [], ["'x'", "slots 1000000000"]),
        ([{"name": None}], [], ["name None"]),
        ([{"name": 5}], [], ["name 5"]),
        ([{"name": ""}], [], ["name ''"]),
        ([{"path": None}], [], ["'x'", "path None"]),
        ([{"path": "where."}], [], ["'x'", "path 'where.'"]),
        ([{"path": "where.timestamp", "when": "request"}], [], ["'x'", "'where.timestamp'"]),
        ([{}, {"name": "y", "kind": "id"}], [], ["exactly one"]),
        ([{}, {"name": "y", "kind": "categories"}], [], ["'y'", "'x' reads 'what.x' too"]),
        ([{}, {"name": "y", "path": "what.x.y"}], [], ["'x'", "'what.x.y'"]),
        ([{"kind": "number", "edges": ["low"]}], [], ["'x'", "low"]),
        ([{"path": "x"}], [], ["'x'", "what."]),
        ([{"kind": "hour"}], [], ["'x'", "timestamp", "what.x"]),
        ([{}, {}], [], ["'x'", "differ"]),
        ([TITLE | {"name": "second"}], [], ["exactly one", "id"]),
        ([{"path": "title.x"}], [], ["'x'", "title.x"]),
        ([{"path": "title.x", "kind": "categories"}], [{}], ["'x'", "title.x", "kind"]),
        ([{"path": "title.x", "kind": "categories"}], [{"kind": "categories", "slots": 3}], ["'x'", "slots"]),
        ([{"path": "title.x", "when": "request"}], [{}], ["'x'", "after the action"]),
        ([{"path": "what.x"}], [{}], ["'x'", "another path"]),
        ([], [{"path": "what.x"}], ["'x'", "title."]),
        ([], [{"kind": "hour"}], ["'x'", "title."]),
        ([], [{}, {"path": "title.y"}], ["'x'", "differ"]),
        ([], [{}, {"name": "y"}], ["'x'", "'y'", "differ"]),
    ],
)  # fmt: skip
def test_error_names_the_field_and_what_is_wrong(
    fields: list[dict[str, Any]], title_fields: list[dict[str, Any]], words: list[str]
) -> None:
    with pytest.raises(SchemaError) as error:
        Schema.from_dict(declare(*fields, title_fields=tuple(title_fields)))
    assert [w for w in words if w not in str(error.value)] == []


@pytest.mark.parametrize(
    "change", [{"when": "request", "loss_weight": 0.0}, {"loss_weight": 0.0}], ids=["an input", "not predicted"]
)
def test_title_must_be_predicted(change: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="'title'"):
        Schema.from_dict({"fields": [TITLE | change]})


@pytest.mark.parametrize(
    "data",
    [{}, [], {"fields": [{"name": "x"}]}, {"fields": [{**TITLE, "colour": 1}]}, {"fields": 3}, {**declare(), "x": 1}],
)
def test_what_is_not_a_schema_is_refused(data: Any) -> None:
    with pytest.raises(SchemaError):
        Schema.from_dict(data)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"fields": []}'])
def test_file_that_is_no_schema_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    with pytest.raises(SchemaError, match=r"mine\.json"):
        Schema.load(file)


def test_spans_are_columns_in_order_and_split_by_when_they_are_known() -> None:
    schema = Schema.from_dict(
        declare(
            {"name": "tags", "kind": "categories", "slots": 3},
            {"name": "device", "path": "where.device", "when": "request"},
        )
    )
    assert schema.spans == {"title": (0, 1), "tags": (1, 4), "device": (4, 5)}
    assert schema.width == 5
    assert schema.action_columns.tolist() == [0, 1, 2, 3]
    assert schema.request_columns.tolist() == [4]


def test_default_schema_covers_every_column_once() -> None:
    schema = default_schema()
    columns = np.concatenate([schema.request_columns, schema.action_columns])
    assert sorted(columns.tolist()) == list(range(schema.width))


@pytest.mark.parametrize(
    ("fields", "what", "expected"),
    [
        ([], {}, []),
        ([{"name": "tags", "path": "what.tags", "kind": "categories", "slots": 3}], {"tags": ["b", "?"]}, [3, 1, 0]),
        ([{"name": "tags", "path": "what.tags", "kind": "categories", "slots": 2}], {"tags": list("abab")}, [2, 3]),
        ([{"name": "price", "path": "what.price", "kind": "number", "edges": [1, 10]}], {"price": 5.5}, [3]),
        ([{"name": "hour", "path": "timestamp", "kind": "hour", "when": "request"}], {}, [FIRST + 1]),
    ],
    ids=["title only", "tags", "tags cut to their slots", "number", "time"],
)
def test_any_declared_fields_are_encoded(
    fields: list[dict[str, Any]], what: dict[str, Any], expected: list[int]
) -> None:
    """No title fields, no time fields, fields of one's own: a JSON file is enough."""
    schema = Schema.from_dict(json.loads(json.dumps(declare(*fields))))
    vocabularies = {"title": Vocabulary([10, 20]), "tags": Vocabulary(["a", "b"])}
    counts = Counts()
    columns = parse_events(schema, [{"timestamp": 3600, "what": {"entity_id": 20, **what}}], now=1e9)
    titles = np.zeros((FIRST + 2, 0), np.int32)
    found = encode(schema, vocabularies, columns, np.array([0, 1]), titles, counts)
    assert found.ids.tolist() == [[FIRST + 1, *expected]]
    assert counts.unknown_values == expected.count(UNKNOWN)


def test_vocabulary_ids() -> None:
    words, ids = Vocabulary(["TV", "phone"]), Vocabulary([10, 20])
    assert words.encode_coded(np.array([0, 1, 2, -1]), ["phone", "?", "TV"]).tolist() == [3, UNKNOWN, 2, ABSENT]
    assert ids.encode_ints(np.array([20, 10, 15, 99, -1])).tolist() == [3, 2, UNKNOWN, UNKNOWN, ABSENT]
    assert Vocabulary([]).encode_ints(np.array([3, -1])).tolist() == [UNKNOWN, ABSENT]
    assert (words.size, len(words)) == (4, 2)


@pytest.mark.parametrize("values", [["a", "a"], [2, 1], [1, 1]], ids=str)
def test_vocabulary_refuses_repeats_and_unsorted_ids(values: list[Any]) -> None:
    with pytest.raises(SchemaError):
        Vocabulary(values)


def test_table_sizes_of_kinds_without_vocabulary() -> None:
    sizes = {
        kind: Field("x", "timestamp", kind, "request", 4, edges=(1, 2) if kind == "gap" else ()).fixed_size()
        for kind in ("hour", "weekday", "gap")
    }
    assert sizes == {"hour": 26, "weekday": 9, "gap": 5}
