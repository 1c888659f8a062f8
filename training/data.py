"""Data sets: a folder with `events.parquet` and `titles.parquet`, and what training makes of it.

events.parquet: member_id int64, timestamp int64 seconds, structs `what` and `where` as in the public event shape, in
file order. titles.parquet: title_id int64, name string, then metadata (`genres` list<string>, `year`, …).
The order of a member's events is (timestamp, file order): 44 % of ML-100K's members have ties at the end.
Shape letters: B members, T events, C encoded columns, N titles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..foundation.bundle import vocabularies_by_path
from ..foundation.events import Coded, Encoded, EventColumns, EventError, columns_from_table, encode
from ..foundation.schema import FIRST, Schema, Vocabulary
from ..foundation.titles import Titles, encode_titles, fit_title_vocabularies


class DataError(ValueError):
    """A data set is missing something; the message names the file and the column."""


@dataclass(frozen=True)
class Dataset:
    """Histories of B members, encoded. member_ids int64 [B], sorted, as `events.offsets` has them.

    vocabularies: by event field name. title_ids: metadata ids int32 [FIRST+N, title columns].
    """

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    titles: Titles
    title_ids: np.ndarray
    member_ids: np.ndarray
    events: Encoded
    fingerprint: str

    def __len__(self) -> int:
        return len(self.member_ids)

    @property
    def sizes(self) -> dict[str, int]:
        """Table rows of each field with a vocabulary, by name."""
        return {name: v.size for name, v in self.vocabularies.items()}

    def title_indices(self) -> np.ndarray:
        """The title index int64 [T] of every event, −1 for a title that the catalogue lacks."""
        column = self.schema.spans[self.schema.id_field.name][0]
        index = self.events.ids[:, column].astype(np.int64) - FIRST
        return np.maximum(index, -1)


def write_dataset(folder: Path, events: pa.Table, titles: pa.Table) -> None:
    """Write the two files of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(titles, folder / "titles.parquet")


def load_dataset(folder: Path, schema: Schema) -> Dataset:
    """Read, sort and encode a data set. Raises DataError naming the file and what is wrong."""
    for name in ("events.parquet", "titles.parquet"):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing; make it with `frontrow data movielens-100k`")
    titles, file = read_titles(folder / "titles.parquet"), folder / "events.parquet"
    table = pq.read_table(file)
    if "member_id" not in table.column_names:
        raise DataError(f"{file} has no column 'member_id'; it has {table.column_names}")
    if not len(table):
        raise DataError(f"{file} has no events")
    kind, nulls = table["member_id"].type, table["member_id"].null_count
    if not pa.types.is_integer(kind) or nulls:
        raise DataError(f"{file}: column 'member_id' has type {kind} and {nulls} nulls; give int64 without nulls")
    try:
        columns = columns_from_table(schema, table)
    except EventError as error:
        raise DataError(f"{file}: {error}") from error
    members = table["member_id"].to_numpy().astype(np.int64)
    order = np.lexsort((columns.timestamp, members))  # stable: ties stay in file order
    columns, members = columns.take(order), members[order]
    member_ids, starts = np.unique(members, return_index=True)
    offsets = np.append(starts, len(members)).astype(np.int64)
    vocabularies = fit_vocabularies(schema, columns, titles)
    title_ids = encode_titles(schema, vocabularies_by_path(schema, vocabularies), titles)
    events = encode(schema, vocabularies, columns, offsets, title_ids)
    return Dataset(schema, vocabularies, titles, title_ids, member_ids, events, fingerprint(folder))


def read_titles(path: Path) -> Titles:
    """Titles from Parquet. Raises DataError."""
    table = pq.read_table(path)
    if missing := {"title_id", "name"} - set(table.column_names):
        raise DataError(f"{path} has no column {sorted(missing)}; it has {table.column_names}")
    for column, right in (("title_id", pa.types.is_integer), ("name", pa.types.is_string)):
        if not right(table[column].type) or table[column].null_count:
            kind, nulls = table[column].type, table[column].null_count
            raise DataError(f"{path}: column {column!r} has type {kind} and {nulls} nulls; title_id int64, name string")
    metadata = {c: table[c].to_pylist() for c in table.column_names if c not in ("title_id", "name")}
    try:
        return Titles.from_columns(table["title_id"].to_pylist(), table["name"].to_pylist(), metadata)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def fit_vocabularies(schema: Schema, columns: EventColumns, titles: Titles) -> dict[str, Vocabulary]:
    """Vocabularies by field name: all titles of the catalogue, and every value seen, sorted."""
    by_title_path = fit_title_vocabularies(schema, titles)
    found: dict[str, Vocabulary] = {}
    for f in schema.fields:
        if not f.has_vocabulary:
            continue
        column = columns.data.get(f.path)
        if f.kind == "id":
            found[f.name] = Vocabulary(titles.ids.tolist())
        elif f.path in by_title_path:
            found[f.name] = by_title_path[f.path]
        else:
            found[f.name] = Vocabulary(sorted(column.values) if isinstance(column, Coded) else ())
    return found | {f.name: by_title_path[f.path] for f in schema.title_fields if f.path in by_title_path}


def fingerprint(folder: Path) -> str:
    """sha256 over both files of a data set."""
    digest = hashlib.sha256()
    for name in ("events.parquet", "titles.parquet"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def recent_events(data: Dataset, member_id: int, count: int) -> list[tuple[str, str, str]]:
    """(day, action, name) of a member's newest events, newest first; none for an unknown member."""
    at = int(np.searchsorted(data.member_ids, member_id))
    if at == len(data) or data.member_ids[at] != member_id:
        return []
    events = data.events.member(at)
    titles = events.ids[:, data.schema.spans[data.schema.id_field.name][0]] - FIRST
    actions: list[str] = []
    action = np.full(len(titles), -1)
    if f := next((f for f in data.schema.fields if f.path == "what.action_type"), None):
        actions, action = data.vocabularies[f.name].values, events.ids[:, data.schema.spans[f.name][0]] - FIRST
    found = []
    for i in range(len(titles) - 1, max(-1, len(titles) - 1 - count), -1):
        day = datetime.fromtimestamp(int(events.timestamp[i]), UTC).strftime("%Y-%m-%d")
        name = data.titles.names[titles[i]] if titles[i] >= 0 else "a title not in the catalogue"
        found.append((day, actions[action[i]] if action[i] >= 0 else "", name))
    return found


def events_from_ratings(ratings: Mapping[str, Any]) -> pa.Table:
    """Explicit ratings as public events: action type `rate_1` … `rate_5` by the stars, entity type `movie`.

    ratings: arrays member_id, title_id, rating, timestamp in file order.
    """
    stars = pa.array([f"rate_{round(r)}" for r in ratings["rating"]])
    what = pa.StructArray.from_arrays(
        [
            stars,
            pa.array(ratings["title_id"], pa.int64()),
            pa.array(["movie"] * len(stars)),
        ],
        names=["action_type", "entity_id", "entity_type"],
    )
    return pa.table(
        {
            "member_id": pa.array(ratings["member_id"], pa.int64()),
            "timestamp": pa.array(ratings["timestamp"], pa.int64()),
            "what": what,
        }
    )
