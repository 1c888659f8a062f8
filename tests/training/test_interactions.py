"""Interactions of one's own and ML-1M's copies become data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frontrow.training.data import DataError, load_dataset
from frontrow.training.interactions import read_interactions, read_ml_1m

CSV = "member,title,timestamp,rating\nann,b,30,4\nann,a,10,5\nbob,a,5,1\nann,c,20,3.5\n"


def test_a_csv_of_texts_becomes_a_data_set_in_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "plays.csv").write_text(CSV)
    given = read_interactions(tmp_path / "plays.csv")
    data = load_dataset(given.write(tmp_path / "set"), given.schema())
    assert data.titles.names == ["a", "b", "c"]
    assert data.title_indices().tolist() == [0, 2, 1, 0]  # ann's in order of time, then bob's
    assert "rate_3.5" in data.vocabularies["action_type"].values
    assert [f.name for f in data.schema.fields] == ["action_type", "entity_id", "hour", "weekday", "gap"]


def test_without_times_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"member": [7, 7, 3], "title": [20, 10, 10]}), tmp_path / "plays.parquet")
    given = read_interactions(tmp_path / "plays.parquet")
    data = load_dataset(given.write(tmp_path / "set"), given.schema())
    assert data.member_ids.tolist() == [3, 7]
    assert data.titles.ids[data.title_indices()].tolist() == [10, 20, 10]
    assert [f.name for f in data.schema.fields] == ["entity_id"]


def test_metadata_gives_names_genres_and_years(tmp_path: Path) -> None:
    (tmp_path / "plays.csv").write_text(CSV)
    (tmp_path / "titles.csv").write_text("title,name,year,genres\nb,Bee,1999,Drama||War|\na,Ay,,\n")
    given = read_interactions(tmp_path / "plays.csv", tmp_path / "titles.csv")
    data = load_dataset(given.write(tmp_path / "set"), given.schema())
    assert data.titles.names == ["Ay", "Bee", "c"]
    assert given.titles["genres"].to_pylist() == [[], ["Drama", "War"], []]
    assert given.titles["year"].to_pylist() == [None, 1999, None]
    assert [f.name for f in data.schema.title_fields] == ["genres", "year"]


def test_ids_that_are_written_differently_are_different(tmp_path: Path) -> None:
    (tmp_path / "plays.csv").write_text("member,title\n1,01\n1,1\n2,2\n")
    (tmp_path / "titles.csv").write_text("title,name\n01,Zero one\n1,One\n")
    given = read_interactions(tmp_path / "plays.csv", tmp_path / "titles.csv")
    assert given.titles["name"].to_pylist() == ["Zero one", "One", "2"]
    assert given.member_id.tolist() == [1, 1, 2], "these are written as integers are"
    assert given.members is None


def test_members_that_were_texts_can_be_found_again(tmp_path: Path) -> None:
    (tmp_path / "plays.csv").write_text(CSV)
    folder = read_interactions(tmp_path / "plays.csv").write(tmp_path / "set")
    assert pq.read_table(folder / "members.parquet").to_pylist() == [
        {"member_id": 0, "member": "ann"}, {"member_id": 1, "member": "bob"},
    ]  # fmt: skip


def test_ids_that_int64_does_not_hold_are_named(tmp_path: Path) -> None:
    many = pa.array([1, 2**63 + 5], pa.uint64())
    pq.write_table(pa.table({"member": many, "title": [1, 2]}), tmp_path / "plays.Parquet")
    with pytest.raises(DataError, match="column 'member' has 9223372036854775813; integers must be below"):
        read_interactions(tmp_path / "plays.Parquet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,title\n1,2\n", "has no column 'member'; it has user, title; name them member, title, timestamp, rating"),
        ("member,title\n1,\n", "column 'title' has 1 empty values"),
        ("member,title\n-1,2\n", "column 'member' has -1"),
        ("member,title\n1.5,2\n", "column 'member' has type double; give integers or texts"),
        ("member,title,rating\n1,2,good\n", "column 'rating' has type string"),
        ("member,title,rating\n1,2,inf\n", "column 'rating' has inf; give finite numbers"),
        (
            "member,title,rating\n" + "".join(f"1,2,{i / 7}\n" for i in range(102)),
            "column 'rating' has 102 different values, and each is an action type; round them to at most 101 grades",
        ),
        ("member,title,when\n1,2,3\n", "has no column 'timestamp', and 'when', which nobody reads"),
        ("member,title\n", "has no lines"),
        ("member;title\n1;2\n", "has ';' between its columns; save it with commas, or as Parquet"),
        ("member,title,title\n1,2,3\n", "has several columns 'title'; give one"),
        ("member,title\n1,été\n", "column 'title' has bytes that are not UTF-8; save the file as UTF-8"),
        ("mémber,title\n1,2\n", "cannot be read as CSV"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plays.csv").write_text(text, "latin-1")
    with pytest.raises(DataError, match=words) as error:
        read_interactions(tmp_path / "plays.csv")
    assert "plays.csv" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title,name\nb,Bee\nb,Wasp\n", "title 'b' has several lines"),
        ("title,year\na,1999\nb,19x9\n", "column 'year' has '19.9'; give whole numbers"),
        ("title,name\nB,Bee\n", "none of its titles is among the interactions; 'B' is its first"),
        ("title,name\nb,Abeille dorée\n", "column 'name' has bytes that are not UTF-8"),
        ("title,name,name\nb,Bee,Wasp\n", "several columns 'name'"),
    ],
)
def test_a_file_of_titles_that_does_not_fit_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plays.csv").write_text(CSV)
    (tmp_path / "titles.csv").write_text(text, "latin-1")
    with pytest.raises(DataError, match=f"titles.csv.*{words}"):
        read_interactions(tmp_path / "plays.csv", tmp_path / "titles.csv")


def test_ml_1m_is_read_from_either_copy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither ml-1m"):
        read_ml_1m(tmp_path)
    np.savez(
        tmp_path / "sequences.npz",
        movie_id=np.array([5, 1, 5], np.int32), offsets=np.array([0, 2, 3]), user_id=np.array([9, 4], np.int32),
    )  # fmt: skip
    movies = "1::Toy Story (1995)::Animation|Comedy\n2::Never (1990)::Drama\n5::Été (1996)::Drama\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    given = read_ml_1m(tmp_path)
    data = load_dataset(given.write(tmp_path / "set"), given.schema())
    assert data.titles.names == ["Toy Story", "Été"]
    assert data.member_ids.tolist() == [4, 9]
    assert data.title_indices().tolist() == [1, 1, 0]
    (tmp_path / "ml-1m.txt").write_text("1 3\n1 2\n2 3\n")
    assert read_ml_1m(tmp_path).title_id.tolist() == [3, 2, 3]
