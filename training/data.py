"""Data sets: a folder with `events.parquet` and `titles.parquet`, and what training makes of it.

events.parquet: member_id int64, timestamp int64 seconds (or an Arrow timestamp), structs `what` and `where` as in the
public event shape, in file order. titles.parquet: title_id int64, name string, then metadata (`genres` list<string>,
`year`, …): numbers, texts or lists of texts; dates become texts. Everything is checked here, before any training.
The order of a member's events is (timestamp, file order): 44 % of ML-100K's members have ties at the end.
Shape letters: B members, T events, C encoded columns, N titles.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..foundation.bundle import vocabularies_by_path
from ..foundation.encoding import Encoded, encode
from ..foundation.events import Coded, EventColumns, EventError, columns_from_table
from ..foundation.schema import FIRST, Schema, SchemaError, Vocabulary
from ..foundation.titles import Titles, encode_titles, fit_title_vocabularies
from ..serving.rows import RESERVED

FILES = {
    "events.parquet": "one line per event: member_id int64, timestamp int64 seconds, struct what with entity_id, "
    "action_type, …, and optionally struct where with device, canvas, locale",
    "titles.parquet": "one line per title: title_id int64, name string, and optionally year, genres (list<string>), …",
}
_LONGEST_LABEL = 200  # a value of a list becomes a row's name and part of its expression
_MILLISECONDS_FROM = 1e11  # seconds reach this in the year 5138


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

    @property
    def counts(self) -> dict[str, int]:
        """What was read. events_without_title: those about a title that titles.parquet lacks, which are read as an
        unknown title and never predicted."""
        missing = int((self.title_indices() < 0).sum())
        return {
            "events": len(self.events.ids),
            "members": len(self),
            "titles": len(self.titles),
            "events_without_title": missing,
        }

    def title_indices(self) -> np.ndarray:
        """The title index int64 [T] of every event, −1 for a title that the catalogue lacks."""
        column = self.schema.spans[self.schema.id_field.name][0]
        index = self.events.ids[:, column].astype(np.int64) - FIRST
        return np.maximum(index, -1)


def write_dataset(folder: Path, events: pa.Table, titles: pa.Table) -> None:
    """Write the two files of a data set, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("titles.parquet", titles), ("events.parquet", events)):
        scratch = folder / f"{name}.tmp"
        pq.write_table(table, scratch)
        scratch.replace(folder / name)


def read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    """One of the two files, all of its columns for None. Raises DataError if it is missing or damaged."""
    if not file.is_file():
        raise DataError(f"{file} is missing; it has {FILES[file.name]}")
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read ({error}); delete it and make it again") from error


def event_count(folder: Path) -> int:
    """How many events a data set has, without reading them. Raises DataError as `read_table` does."""
    return read_table(folder / "events.parquet", []).num_rows


def load_dataset(folder: Path, schema: Schema) -> Dataset:
    """Read, check, sort and encode a data set. Raises DataError naming the file, the column and what is wrong."""
    file = folder / "events.parquet"
    table = read_table(file)
    titles = read_titles(folder / "titles.parquet")
    if not len(table):
        raise DataError(f"{file} has no events")
    members = _ids(file, table, "member_id")
    try:
        columns = columns_from_table(schema, _in_seconds(file, table))
    except EventError as error:
        raise DataError(f"{file}: {error}") from error
    order = np.lexsort((columns.timestamp, members))  # stable: ties stay in file order
    columns, members = columns.take(order), members[order]
    member_ids, starts = np.unique(members, return_index=True)
    offsets = np.append(starts, len(members)).astype(np.int64)
    try:
        vocabularies = fit_vocabularies(schema, columns, titles)
        title_ids = encode_titles(schema, vocabularies_by_path(schema, vocabularies), titles)
    except SchemaError as error:
        raise DataError(f"{folder / 'titles.parquet'}: {error}") from error
    events = encode(schema, vocabularies, columns, offsets, title_ids)
    return Dataset(schema, vocabularies, titles, title_ids, member_ids, events, fingerprint(folder))


def _ids(file: Path, table: pa.Table, name: str) -> np.ndarray:
    """A column of ids, int64."""
    if name not in table.column_names:
        raise DataError(f"{file} has no column {name!r}; it has {', '.join(table.column_names)}")
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(
            f"{file}: column {name!r} has type {column.type} and {column.null_count} nulls; give int64 without nulls"
        )
    limits = pc.min_max(column).as_py()  # type: ignore[attr-defined]
    if wrong := [v for v in limits.values() if v is not None and not 0 <= v < 2**63]:
        raise DataError(f"{file}: column {name!r} has {wrong[0]}; ids are integers from 0 to 2**63 - 1")
    return column.to_numpy().astype(np.int64)


def _in_seconds(file: Path, table: pa.Table) -> pa.Table:
    """The table with its column `timestamp` in whole seconds, if there is one."""
    if "timestamp" not in table.column_names:
        return table
    column = table["timestamp"]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{file}: column 'timestamp' has type {column.type}; give seconds since 1970 as int64")
    last = pc.max(column).as_py()  # type: ignore[attr-defined]
    if last is not None and math.isinf(last):
        raise DataError(f"{file}: column 'timestamp' has {last}; give seconds since 1970")
    if last is not None and last > _MILLISECONDS_FROM:
        unit = "milliseconds, divide by 1000" if last < 1e14 else "microseconds, divide by 1000000"
        raise DataError(f"{file}: column 'timestamp' has {last}, which looks like {unit}; give seconds since 1970")
    return table.set_column(table.column_names.index("timestamp"), "timestamp", column)


def read_titles(file: Path) -> Titles:
    """Titles from Parquet. Raises DataError naming the column, a wrong value and the fix."""
    table = read_table(file)
    ids = _ids(file, table, "title_id")
    if not len(table):
        raise DataError(f"{file} has no titles")
    several, count = np.unique(ids, return_counts=True)
    if len(several) < len(ids):
        raise DataError(f"{file}: title_id {several[count > 1][0]} stands there more than once; ids must be different")
    if "name" not in table.column_names:
        raise DataError(f"{file} has no column 'name'; it has {', '.join(table.column_names)}")
    kind, nulls = table["name"].type, table["name"].null_count
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or nulls:
        raise DataError(f"{file}: column 'name' has type {kind} and {nulls} nulls; give a string for every title")
    metadata = {c: _metadata(file, c, table[c]) for c in table.column_names if c not in ("title_id", "name")}
    return Titles.from_columns(ids.tolist(), table["name"].to_pylist(), metadata)


def _metadata(file: Path, name: str, column: pa.ChunkedArray) -> list[Any]:
    """Numbers, texts or lists of texts [N], None where absent (NaN too); dates become texts, decimals numbers."""
    where, kind, is_a = f"{file}: column {name!r}", column.type, pa.types
    if name in RESERVED:
        raise DataError(
            f"{where} has a name that row expressions use themselves; rename it, e.g. to {name + '_given'!r}"
        )
    if is_a.is_date(kind) or is_a.is_timestamp(kind):
        column = column.cast(pa.string())
    elif is_a.is_decimal(kind):
        column = column.cast(pa.float64())
    elif is_a.is_list(kind) or is_a.is_large_list(kind):
        for value in (v for several in column.to_pylist() for v in several or ()):
            if not isinstance(value, str) or len(repr(value)) > _LONGEST_LABEL:
                raise DataError(
                    f"{where} has {repr(value)[:60]} in a list; give texts of at most {_LONGEST_LABEL} characters"
                )
    elif not any(
        fits(kind)
        for fits in (is_a.is_integer, is_a.is_floating, is_a.is_boolean, is_a.is_string, is_a.is_large_string,
                     is_a.is_dictionary, is_a.is_null)
    ):  # fmt: skip
        raise DataError(f"{where} has type {kind}; give numbers, texts or lists of texts, or leave the column out")
    values = [None if v != v else v for v in column.to_pylist()]
    if any(isinstance(v, float) and math.isinf(v) for v in values):
        raise DataError(f"{where} has an infinite value; give numbers, and null where there is none")
    return values


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
