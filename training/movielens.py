"""MovieLens-100K: from a folder the user names, else from the copy in the `recbole` wheel.

GroupLens' terms allow research use and forbid redistribution: the data is fetched, never committed or shipped.
Ratings become events, films become titles; what is known of the members (age, gender, occupation) is not used, because
a member is what she did. Title 267, a placeholder called `unknown`, stays: results are over all 1682 titles.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path

import pyarrow as pa

from .data import FILES, DataError, events_from_ratings, read_table, write_dataset
from .wheel import WheelError, download_wheel

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_IN_WHEEL = "recbole/dataset_example/ml-100k/"
_GROUPLENS = ("u.data", "u.item", "u.genre")
_RECBOLE = ("ml-100k.inter", "ml-100k.item")


def fetch_movielens_100k(folder: Path, source: Path | None = None) -> Path:
    """Write the data set to `folder` and return it; where it is there already and whole, and no source is given,
    nothing is done.

    source: a folder with GroupLens' own files (u.data, u.item, u.genre) or RecBole's (ml-100k.inter, ml-100k.item);
    without it pip downloads the wheel (about 2 MB) and its sha256 is checked. Raises DataError.
    """
    if source is None and _is_whole(folder):
        return folder
    if source is None:
        texts = _from_wheel()
    elif all((source / name).is_file() for name in _GROUPLENS):
        texts = _from_grouplens(source)
    elif all((source / name).is_file() for name in _RECBOLE):
        texts = {name: (source / name).read_text("utf-8") for name in _RECBOLE}
    else:
        raise DataError(f"{source} holds neither {', '.join(_GROUPLENS)} nor {', '.join(_RECBOLE)}")
    events, titles = _tables(texts)
    write_dataset(folder, events, titles)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return all(len(read_table(folder / name)) for name in FILES)
    except DataError:
        return False


def _from_wheel() -> dict[str, str]:
    try:
        data = download_wheel(WHEEL, WHEEL_SHA256)
    except WheelError as error:
        raise DataError(
            f"{WHEEL} holds MovieLens-100K; give a folder with the data instead (--source).\n{error}"
        ) from error
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(_IN_WHEEL + name).decode() for name in _RECBOLE}


def _from_grouplens(source: Path) -> dict[str, str]:
    """GroupLens' files in RecBole's columns."""
    inter = "user\titem\trating\ttimestamp\n" + (source / "u.data").read_text("utf-8")
    names = [g.split("|")[0] for g in (source / "u.genre").read_text("utf-8").split()]
    lines = ["item\ttitle\tyear\tclass"]
    text = (source / "u.item").read_text("latin-1")
    for i, row in enumerate(csv.reader(io.StringIO(text), delimiter="|", quoting=csv.QUOTE_NONE), start=1):
        if len(row) < 5 + len(names):
            raise DataError(f"{source / 'u.item'}: line {i} has {len(row)} columns, not {5 + len(names)}: {row}")
        title, _, year = row[1].rpartition(" (")
        flags = [g for g, flag in zip(names, row[5:], strict=False) if flag == "1"]
        lines.append(f"{row[0]}\t{title or row[1]}\t{year.rstrip(')')}\t{' '.join(flags)}")
    return {_RECBOLE[0]: inter, _RECBOLE[1]: "\n".join(lines)}


def _rows(text: str) -> list[list[str]]:
    rows = [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]]
    if wrong := [row for row in rows if len(row) < 4 or not row[0].isdigit()]:
        raise DataError(
            f"MovieLens has a line that is no rating or title: {wrong[0]}; it needs an id and 3 more columns"
        )
    return rows


def _tables(texts: dict[str, str]) -> tuple[pa.Table, pa.Table]:
    inter = _rows(texts[_RECBOLE[0]])
    events = events_from_ratings(
        {
            "member_id": [int(r[0]) for r in inter],
            "title_id": [int(r[1]) for r in inter],
            "rating": [float(r[2]) for r in inter],
            "timestamp": [int(float(r[3])) for r in inter],
        }
    )
    items = _rows(texts[_RECBOLE[1]])
    titles = pa.table(
        {
            "title_id": pa.array([int(r[0]) for r in items], pa.int64()),
            "name": [_display_name(r[1]) for r in items],
            "year": pa.array([int(r[2]) if r[2].isdigit() else None for r in items], pa.int64()),
            "genres": [[g for g in r[3].split() if g != "unknown"] for r in items],
        }
    )
    return events, titles


def _display_name(name: str) -> str:
    """`Godfather, The` → `The Godfather`, `City of Lost Children, The (…)` → `The City of Lost Children (…)`."""
    found = re.fullmatch(r"(.+), (The|A|An|Les|La|Le|Il|L'|Das|Der)( \(.*)?", name)
    return f"{found[2]} {found[1]}{found[3] or ''}" if found else name
