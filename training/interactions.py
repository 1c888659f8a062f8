"""Data sets of plain interactions: who, what, and perhaps when and how it was liked; no devices, no durations.

Read from a file of the user's own, or from ML-1M in the copy that the published tables use; written as the two files of
any data set. Where there are no times, the order in the file is the order of events.
Shape letters: T interactions, N titles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ..foundation.schema import Schema, default_schema
from .data import DataError, write_dataset

COLUMNS = ("member", "title", "timestamp", "rating")  # of a file of interactions; the last two may be left out
METADATA = ("title", "name", "year", "genres")  # of a file of titles; all but the first may be left out
MOST_GRADES = 101  # 0 to 100
_OF_TIME = ("hour", "weekday", "gap")
_NEVER = ("entity_type", "duration", "device", "canvas", "locale")  # fields that interactions have not


@dataclass(frozen=True)
class Interactions:
    """member_id, title_id: int64 [T], in the order of the file. timestamp: [T], checked when it is
    loaded. rating: float64 [T].
    titles: a table with title_id, name and, where known, genres (list<string>) and year. members: where they were
    texts, a table of member_id and member."""

    member_id: np.ndarray
    title_id: np.ndarray
    timestamp: pa.ChunkedArray | None
    rating: np.ndarray | None
    titles: pa.Table
    members: pa.Table | None = None

    def write(self, folder: Path) -> Path:
        """events.parquet and titles.parquet in `folder`; members.parquet where members were texts."""
        count = len(self.member_id)
        action = [f"rate_{r:g}" for r in self.rating] if self.rating is not None else ["choose"] * count
        what = pa.StructArray.from_arrays(
            [pa.array(action, pa.string()), pa.array(self.title_id)], names=["action_type", "entity_id"]
        )
        timestamp = np.zeros(count, np.int64) if self.timestamp is None else self.timestamp
        events = pa.table({"member_id": self.member_id, "timestamp": timestamp, "what": what})
        write_dataset(folder, events, self.titles)
        if self.members is not None:
            pq.write_table(self.members, folder / "members.parquet")
        return folder

    def schema(self) -> Schema:
        """The default schema without the fields that these interactions have not."""
        absent = {*_NEVER, *(() if self.rating is not None else ("action_type",))}
        kinds = () if self.timestamp is not None else _OF_TIME
        columns = {f"title.{name}" for name in self.titles.column_names}
        full = default_schema()

        def known(path: str) -> bool:
            return not path.startswith("title.") or path in columns

        return replace(
            full,
            fields=tuple(f for f in full.fields if f.name not in absent and f.kind not in kinds and known(f.path)),
            title_fields=tuple(f for f in full.title_fields if known(f.path)),
        )


def read_interactions(file: Path, titles: Path | None = None) -> Interactions:
    """From CSV or Parquet with the columns member, title and perhaps timestamp (seconds) and rating; ids are integers
    or texts. titles: CSV or Parquet with the column title and perhaps name, year and genres (a list, or a text with |
    between). Members and titles keep ids that are integers; texts are numbered in their order, and stand in
    members.parquet and in the titles' names. Raises DataError."""
    table = _table(file, COLUMNS, ("member", "title"))
    strange = [name for name in table.column_names if name not in COLUMNS]
    if strange and "timestamp" not in table.column_names:
        raise DataError(
            f"{file} has no column 'timestamp', and {', '.join(map(repr, strange))}, which nobody reads: name the one "
            "that has the times 'timestamp', or leave such columns out, and the order of lines is the order in time"
        )
    member_id, texts = _numbered(file, table, "member")
    different = np.unique(member_id)
    same = texts == [str(i) for i in different]
    members = None if same else pa.table({"member_id": different, "member": texts})
    title_id, names = _numbered(file, table, "title")
    of_title = dict(zip(np.unique(title_id).tolist(), names, strict=True))
    columns: dict[str, list[object]] = {}
    if titles is not None:
        columns = _metadata(titles, of_title)
    ids = sorted(of_title)
    listed = pa.table(
        {"title_id": pa.array(ids, pa.int64()), "name": [of_title[i] for i in ids]}
        | {name: pa.array(values) for name, values in columns.items()}
    )
    timestamp = table["timestamp"] if "timestamp" in table.column_names else None
    return Interactions(member_id, title_id, timestamp, _ratings(file, table), listed, members)


def read_ml_1m(folder: Path) -> Interactions:
    """MovieLens-1M without times or ratings, in the SASRec copy's order: a folder with `sequences.npz` (member i's
    movies, oldest first, are movie_id[offsets[i]:offsets[i+1]]; user_id) and GroupLens' `movies.dat`, or with the
    copy's own `ml-1m.txt` (a user and an item a line), which has no metadata. Raises DataError."""
    if (file := folder / "ml-1m.txt").is_file():
        try:
            pairs = np.loadtxt(file, np.int64, ndmin=2)
        except ValueError as error:
            raise DataError(f"{file} cannot be read ({error}); it has a user and an item a line") from error
        if pairs.shape[1] != 2:
            raise DataError(f"{file} has {pairs.shape[1]} columns; it has a user and an item a line")
        ids = np.unique(pairs[:, 1])
        names = pa.table({"title_id": ids, "name": [str(i) for i in ids]})
        return Interactions(pairs[:, 0].copy(), pairs[:, 1].copy(), None, None, names)
    if not (folder / "sequences.npz").is_file() or not (folder / "movies.dat").is_file():
        raise DataError(f"{folder} holds neither ml-1m.txt nor sequences.npz and movies.dat")
    try:
        with np.load(folder / "sequences.npz", allow_pickle=False) as arrays:
            title_id = arrays["movie_id"].astype(np.int64)
            member_id = np.repeat(arrays["user_id"].astype(np.int64), np.diff(arrays["offsets"]))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{folder / 'sequences.npz'} cannot be read ({error}); it has movie_id, offsets, user_id"
        ) from error
    used = set(title_id.tolist())
    rows = [line.split("::") for line in (folder / "movies.dat").read_text("latin-1").splitlines()]
    if wrong := [row for row in rows if len(row) != 3]:
        raise DataError(f"{folder / 'movies.dat'} has the line {'::'.join(wrong[0])!r}; it has id::title::genres")
    known = [(int(i), re.fullmatch(r"(.*) \((\d{4})\)", title), genres) for i, title, genres in rows if int(i) in used]
    titles = pa.table(
        {
            "title_id": pa.array([i for i, _, _ in known], pa.int64()),
            "name": [found[1] if found else "" for _, found, _ in known],
            "year": pa.array([int(found[2]) if found else None for _, found, _ in known], pa.int64()),
            "genres": [genres.split("|") for _, _, genres in known],
        }
    )
    if missing := used - {i for i, _, _ in known}:
        raise DataError(f"{folder / 'movies.dat'} lacks movie {min(missing)}, which sequences.npz has")
    return Interactions(member_id, title_id, None, None, titles)


def _table(file: Path, known: tuple[str, ...], needed: tuple[str, ...]) -> pa.Table:
    parquet = file.suffix.lower() == ".parquet"
    try:
        table = pq.read_table(file) if parquet else _as_written(file, pyarrow.csv.read_csv(file))
        columns = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as {'Parquet' if parquet else 'CSV'} ({error})") from error
    if len(columns) == 1 and (mark := next((m for m in ";\t|" if m in columns[0]), None)):
        raise DataError(f"{file} has {mark!r} between its columns; save it with commas, or as Parquet")
    for name in (name for name in known if name in columns):
        if columns.count(name) > 1:
            raise DataError(f"{file} has several columns {name!r}; give one")
        if pa.types.is_binary(table[name].type):
            raise DataError(f"{file}: column {name!r} has bytes that are not UTF-8; save the file as UTF-8")
    for name in needed:
        if name not in columns:
            raise DataError(f"{file} has no column {name!r}; it has {', '.join(columns)}; name them {', '.join(known)}")
        if table[name].null_count:
            raise DataError(f"{file}: column {name!r} has {table[name].null_count} empty values; leave such lines out")
    if not len(table):
        raise DataError(f"{file} has no lines")
    return table


def _as_written(file: Path, table: pa.Table) -> pa.Table:
    """A CSV's ids as texts where some integer is not written as one, so that 1 and 01 stay two."""
    for at, name in enumerate(table.column_names):
        if name in ("member", "title") and pa.types.is_integer(table.column(at).type):
            options = pyarrow.csv.ConvertOptions(include_columns=[name], column_types={name: pa.string()})
            texts = pyarrow.csv.read_csv(file, convert_options=options).column(0).combine_chunks()
            if not texts.equals(table.column(at).combine_chunks().cast(pa.string())):
                table = table.set_column(at, name, texts)
    return table


def _numbered(file: Path, table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """(id int64 [T], the text of each different id, by rising id)."""
    column = table[name].combine_chunks()
    if pa.types.is_integer(column.type):
        if (most := pc.max(column).as_py()) >= 2**63:  # type: ignore[attr-defined]
            raise DataError(f"{file}: column {name!r} has {most}; integers must be below 2**63, or give texts")
        ids = column.to_numpy(zero_copy_only=False).astype(np.int64)
        if ids.min() < 0:
            raise DataError(f"{file}: column {name!r} has {ids.min()}; integers must be from 0, or give texts")
        return ids, [str(i) for i in np.unique(ids)]
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{file}: column {name!r} has type {column.type}; give integers or texts")
    texts, ids = np.unique(column.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    return ids.astype(np.int64), texts.tolist()


def _ratings(file: Path, table: pa.Table) -> np.ndarray | None:
    """The column of ratings [T], or None where the file has none."""
    if "rating" not in table.column_names:
        return None
    column = table["rating"]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
        raise DataError(
            f"{file}: column 'rating' has type {column.type} and {column.null_count} empty values; give numbers"
        )
    ratings = column.to_numpy().astype(np.float64)
    if not np.isfinite(ratings).all():
        raise DataError(f"{file}: column 'rating' has {ratings[~np.isfinite(ratings)][0]}; give finite numbers")
    if (grades := len(np.unique(ratings))) > MOST_GRADES:
        raise DataError(
            f"{file}: column 'rating' has {grades:,} different values, and each is an action type; round them to at "
            f"most {MOST_GRADES} grades, or leave the column out"
        )
    return ratings


def _metadata(file: Path, of_title: dict[int, str]) -> dict[str, list[object]]:
    """Columns by name, a value for each title of `of_title` by rising id; names are put into `of_title`."""
    table = _table(file, METADATA, ("title",))
    by_text = {str(row["title"]): row for row in table.to_pylist()}
    if len(by_text) < len(table):
        texts = [str(t) for t in table["title"].to_pylist()]
        raise DataError(f"{file}: title {next(t for t in texts if texts.count(t) > 1)!r} has several lines; give one")
    if not by_text.keys() & set(of_title.values()):
        raise DataError(f"{file}: none of its titles is among the interactions; {next(iter(by_text))!r} is its first")
    rows = [by_text.get(of_title[i], {}) for i in sorted(of_title)]
    found: dict[str, list[object]] = {}
    if "genres" in table.column_names:
        texts = [row.get("genres") for row in rows]
        found["genres"] = [[g for g in t.split("|") if g] if isinstance(t, str) else t or [] for t in texts]
    if "year" in table.column_names:
        found["year"] = [row.get("year") for row in rows]
        if wrong := [year for year in found["year"] if year is not None and not isinstance(year, int)]:
            said = next((year for year in wrong if not str(year).isdigit()), wrong[0])  # one text makes all texts
            raise DataError(f"{file}: column 'year' has {said!r}; give whole numbers, or nothing")
    if "name" in table.column_names:
        of_title |= {i: str(row.get("name") or of_title[i]) for i, row in zip(sorted(of_title), rows, strict=True)}
    return found
