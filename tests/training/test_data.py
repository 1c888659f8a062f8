"""Data sets from Parquet: order, errors by name, and MovieLens-100K."""

from __future__ import annotations

import math
import re
import shutil
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frontrow.foundation.bundle import load_bundle
from frontrow.foundation.schema import FIRST, Field, Schema, default_schema
from frontrow.training import movielens as movielens_module
from frontrow.training import wheel as wheel_module
from frontrow.training.data import DataError, Dataset, load_dataset, recent_events, write_dataset
from frontrow.training.export import export_bundle
from frontrow.training.movielens import fetch_movielens_100k
from frontrow.training.train import TrainConfig, build_model

SCHEMA = default_schema()
EMPTY = {"title_id": pa.array([], pa.int64()), "name": pa.array([], pa.string())}
TITLES = {"title_id": [30, 10, 20], "name": ["c", "a", "b"], "year": [2001, 1999, None], "genres": [["x"], None, []]}


def load(
    folder: Path, events: dict[str, Any], titles: dict[str, Any] | None = None, schema: Schema = SCHEMA
) -> Dataset:
    write_dataset(folder, pa.table(events), pa.table(titles or TITLES))
    return load_dataset(folder, schema)


def table(*rows: tuple[int, int, int]) -> dict[str, Any]:
    """(member, time, title) in file order."""
    return {
        "member_id": [m for m, _, _ in rows],
        "timestamp": [t for _, t, _ in rows],
        "what": [{"entity_id": i} for _, _, i in rows],
    }


def test_events_are_in_order_of_member_time_and_place_in_the_file(tmp_path: Path) -> None:
    data = load(tmp_path, table((7, 5, 30), (2, 9, 20), (7, 5, 10), (7, 1, 20), (2, 9, 10), (7, 5, 20)))
    assert data.member_ids.tolist() == [2, 7]
    assert data.events.offsets.tolist() == [0, 2, 6]
    assert data.events.timestamp.tolist() == [9, 9, 1, 5, 5, 5]
    played = data.titles.ids[data.title_indices()]
    assert played.tolist() == [20, 10, 20, 30, 10, 20]


def test_a_title_the_catalogue_lacks_has_no_index(tmp_path: Path) -> None:
    assert load(tmp_path, table((1, 1, 10), (1, 2, 99), (1, 3, 30))).title_indices().tolist() == [0, -1, 2]


def test_genres_of_the_title_are_joined_to_its_events(tmp_path: Path) -> None:
    data = load(tmp_path, table((1, 1, 10), (1, 2, 30)))
    assert data.events.ids[:, slice(*SCHEMA.spans["genres"])].tolist() == [[0] * 6, [FIRST, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("events", "titles", "words"),
    [
        ({"timestamp": [1], "what": [{"entity_id": 10}]}, {}, ["events.parquet", "member_id"]),
        (table() | {"what": pa.array([], pa.struct({"entity_id": pa.int64()}))}, {}, ["events.parquet", "no events"]),
        (table((1, 1, 10)) | {"member_id": ["one"]}, {}, ["events.parquet", "member_id", "string"]),
        (table((1, 1, 10)) | {"member_id": [1.5]}, {}, ["events.parquet", "member_id", "double"]),
        (table((1, 1, 10), (1, 2, 10)) | {"member_id": [1, None]}, {}, ["events.parquet", "member_id", "1 nulls"]),
        ({"member_id": [1], "timestamp": [1]}, {}, ["what.entity_id"]),
        ({"member_id": [1], "what": [{"entity_id": 10}]}, {}, ["timestamp"]),
        (table((1, 1, 10)), {"title_id": [1]}, ["titles.parquet", "name"]),
        (table((1, 1, 10)), {"title_id": [1, 1], "name": ["a", "b"]}, ["titles.parquet", "title_id 1 stands"]),
        (table((1, 1, 10)), {"title_id": [-1], "name": ["a"]}, ["titles.parquet", "title_id", "has -1;"]),
        (table((1, 1, 10)), {"title_id": ["1"], "name": ["a"]}, ["titles.parquet", "title_id", "string"]),
        (table((1, 1, 10)), {"title_id": [1, 2], "name": ["a", None]}, ["titles.parquet", "name", "1 nulls"]),
        (table((1, 1, 10)), TITLES | {"genres": ["x|y"] * 3}, ["titles.parquet", "genres", "x|y"]),
        (table((-3, 1, 10)), {}, ["events.parquet", "'member_id' has -3;"]),
        (
            table((1, 1, 10)) | {"member_id": pa.array([2**63], pa.uint64())},
            {},
            ["'member_id' has 92233720"],
        ),
        (table((1, 1_700_000_000_000, 10)), {}, ["events.parquet", "'timestamp' has 1700000000000", "milliseconds"]),
        (table((1, 1_700_000_000_000_000, 10)), {}, ["events.parquet", "microseconds"]),
        (table((1, 1, 10)) | {"timestamp": [math.inf]}, {}, ["events.parquet", "'timestamp' has inf; give seconds"]),
        (table((1, 1, 10)) | {"timestamp": ["today"]}, {}, ["events.parquet", "'timestamp' has type string"]),
        ({"member_id": [1], "timestamp": [1]}, {}, ["events.parquet", "what.entity_id"]),
        (table((1, 1, 10)), EMPTY, ["titles.parquet", "has no titles"]),
        (table((1, 1, 10)), TITLES | {"popularity": [1, 2, 3]}, ["'popularity'", "rename", "'popularity_given'"]),
        (table((1, 1, 10)), TITLES | {"poster": [b"x", b"y", None]}, ["titles.parquet", "'poster' has type binary"]),
        (table((1, 1, 10)), TITLES | {"crew": [[{"a": 1}], None, []]}, ["'crew' has {'a': 1} in a list"]),
        (table((1, 1, 10)), TITLES | {"crew": [{"a": 1}, None, None]}, ["'crew' has type struct"]),
        (table((1, 1, 10)), TITLES | {"genres": [["x", None], [], []]}, ["'genres' has None in a list"]),
        (table((1, 1, 10)), TITLES | {"genres": [["x" * 1200], [], []]}, ["'genres' has 'xxx", "at most 200"]),
        (table((1, 1, 10)), TITLES | {"year": [2001.0, math.inf, None]}, ["'year' has an infinite value"]),
    ],
)
def test_wrong_data_is_named(tmp_path: Path, events: dict[str, Any], titles: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        load(tmp_path, events, titles)
    assert [w for w in words if w not in str(error.value)] == []


@pytest.mark.parametrize(("name", "needs"), [("events.parquet", "member_id int64"), ("titles.parquet", "name string")])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str, needs: str) -> None:
    write_dataset(tmp_path, pa.table(table((1, 1, 10))), pa.table(TITLES))
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{name} cannot be read .*delete it"):
        load_dataset(tmp_path, SCHEMA)
    file.unlink()
    with pytest.raises(DataError, match=f"{name} is missing; it has one line per .*{needs}"):
        load_dataset(tmp_path, SCHEMA)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(tmp_path, table((1, 1, 10))).fingerprint

    def crash(table: pa.Table, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", crash)
    with pytest.raises(OSError, match="disk full"):
        load(tmp_path, table((1, 2, 10)))
    assert load_dataset(tmp_path, SCHEMA).fingerprint == before


def test_dates_become_texts_decimals_numbers_and_no_number_absence(tmp_path: Path) -> None:
    day = date(1999, 3, 1)
    odd = {"released": [day, None, day], "price": [Decimal("1.5"), None, None], "year": [math.nan, 1999.0, 1.0]}
    metadata = load(tmp_path, table((1, 1, 10)), TITLES | odd).titles.metadata
    assert metadata["released"] == [None, "1999-03-01", "1999-03-01"]
    assert metadata["price"] == [None, None, 1.5]
    assert metadata["year"] == [1999.0, 1.0, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_timestamps_are_read_as_seconds(tmp_path: Path, unit: str) -> None:
    at = pa.array([datetime(2024, 1, 1, tzinfo=UTC)], pa.timestamp(unit, "UTC"))
    assert load(tmp_path, table((1, 1, 10)) | {"timestamp": at}).events.timestamp.tolist() == [1_704_067_200]


def test_what_was_read_is_counted(tmp_path: Path) -> None:
    data = load(tmp_path, table((1, 1, 10), (1, 2, 99), (2, 3, 30)))
    assert data.counts == {"events": 3, "members": 2, "titles": 3, "events_without_title": 1}


def test_the_fingerprint_follows_both_files(tmp_path: Path) -> None:
    events = table((1, 1, 10))
    found = {
        load(tmp_path, events).fingerprint,
        load(tmp_path, table((1, 2, 10))).fingerprint,
        load(tmp_path, events, TITLES | {"name": ["c", "a", "!"]}).fingerprint,
    }
    assert len(found) == 3
    assert load(tmp_path, events).fingerprint in found


def test_recent_events_are_newest_first(tmp_path: Path) -> None:
    events = table((1, 0, 10), (1, 86_400, 99), (1, 3 * 86_400, 30))
    events["what"][2]["action_type"] = "play"
    data = load(tmp_path, events)
    assert recent_events(data, 1, 2) == [
        ("1970-01-04", "play", "c"),
        ("1970-01-02", "", "a title not in the catalogue"),
    ]
    assert recent_events(data, 5, 2) == []
    plain = load(tmp_path, events, schema=Schema((SCHEMA.id_field,), ()))
    assert recent_events(plain, 1, 1) == [("1970-01-04", "", "c")]


def test_metadata_that_is_no_event_field_reaches_the_title_vectors_and_the_bundle(
    tiny_folder: Path, tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """A schema may describe titles by fields that its events do not repeat."""
    genres = Field("about", "title.genres", "categories", "action", 8, slots=3)
    data = load_dataset(tiny_folder, Schema((SCHEMA.id_field,), (genres,)))
    bundle = load_bundle(export_bundle(build_model(data, tiny_config.model), data, tmp_path, {}))
    assert (bundle.title_ids == data.title_ids).all()
    assert data.title_ids[FIRST:].any(axis=1).all()
    assert bundle.build_model().title_vectors().shape == (120, SCHEMA.id_field.width)


def test_movielens_has_its_published_size(movielens: Path) -> None:
    data = load_dataset(movielens, SCHEMA)
    assert (len(data), len(data.titles), len(data.events.ids)) == (943, 1682, 100_000)
    assert data.titles.names[data.titles.ids.tolist().index(50)] == "Star Wars"
    assert np.diff(data.events.offsets).min() == 20
    assert [len(data.vocabularies[f]) for f in ("action_type", "entity_type", "device")] == [5, 1, 0]
    assert len(data.vocabularies["genres"]) == 18


def test_movielens_already_there_is_left_alone(movielens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module.subprocess, "run", None)
    assert fetch_movielens_100k(movielens) == movielens


class FakePip:
    """Stands for subprocess.run: "downloads" a wheel with this content, or fails."""

    def __init__(self, content: bytes | None) -> None:
        self.content, self.returncode, self.stderr = content, int(content is None), "no network"

    def __call__(self, command: list[str], **_: Any) -> FakePip:
        if self.content is not None:
            (Path(command[command.index("--dest") + 1]) / "recbole.whl").write_bytes(self.content)
        return self


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module.subprocess, "run", FakePip(b"tampered"))
    with pytest.raises(DataError, match=movielens_module.WHEEL_SHA256):
        fetch_movielens_100k(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_module.subprocess, "run", FakePip(None))
    with pytest.raises(DataError, match=r"--source[^$]*no network"):
        fetch_movielens_100k(tmp_path / "data")


GROUPLENS = {
    "u.data": "1\t2\t3\t881250949\n1\t1\t5\t881250949\n4\t3\t1\t875747190\n",
    "u.genre": "unknown|0\nAction|1\nSci-Fi|2\n\n",
    "u.item": '1|Toy Story (1995)|01-Jan-1995||http://x|0|1|1\n2|unknown||||1|0|0\n3|"Café", The (1994)|||http|0|0|1\n',
}
RECBOLE = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + GROUPLENS["u.data"],
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '1\tToy Story\t1995\tAction Sci-Fi\n2\tunknown\t\tunknown\n3\t"Café", The\t1994\tSci-Fi\n',
}


def from_source(folder: Path, files: dict[str, str], encoding: str) -> list[pa.Table]:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding)
    made = fetch_movielens_100k(folder / "made", folder)
    return [pq.read_table(made / f"{name}.parquet") for name in ("events", "titles")]


def test_grouplens_and_recbole_files_give_the_same_tables(tmp_path: Path) -> None:
    grouplens = from_source(tmp_path / "grouplens", GROUPLENS, "latin-1")
    assert grouplens == from_source(tmp_path / "recbole", RECBOLE, "utf-8")
    events, titles = (t.to_pylist() for t in grouplens)
    assert [e["what"]["action_type"] for e in events] == ["rate_3", "rate_5", "rate_1"]
    assert [(t["name"], t["year"], t["genres"]) for t in titles] == [
        ("Toy Story", 1995, ["Action", "Sci-Fi"]),
        ("unknown", None, []),
        ('The "Café"', 1994, ["Sci-Fi"]),
    ]


def test_a_damaged_copy_is_fetched_again_and_a_source_is_always_read(
    movielens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    shutil.copytree(movielens, folder)
    (folder / "events.parquet").write_bytes(b"PAR1 half a download")
    monkeypatch.setattr(wheel_module.subprocess, "run", FakePip(None))
    with pytest.raises(DataError, match="could not download"):
        fetch_movielens_100k(folder)
    with pytest.raises(DataError, match="nowhere holds neither"):
        fetch_movielens_100k(movielens, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("u.item", "1|Toy Story (1995)\n", r"u\.item: line 1 has 2 columns, not 8"),
        ("u.data", "1\t2\n", "no rating or title: .*'1', '2'"),
        ("u.data", "one\t2\t3\t4\n", "no rating or title: .*'one'"),
    ],
)
def test_a_malformed_source_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    for file, content in (GROUPLENS | {name: text}).items():
        (tmp_path / file).write_text(content, "latin-1")
    with pytest.raises(DataError, match=said):
        fetch_movielens_100k(tmp_path / "made", tmp_path)


def test_a_source_without_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"u\.data, u\.item, u\.genre"):
        fetch_movielens_100k(tmp_path / "data", tmp_path)
