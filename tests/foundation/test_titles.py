"""The title table: sorted by id, saved as JSON, its metadata encoded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from frontrow.foundation.schema import FIRST, UNKNOWN, SchemaError, Vocabulary, default_schema
from frontrow.foundation.titles import Titles, encode_titles, fit_title_vocabularies

SCHEMA = default_schema()  # genres: 6 slots; year: one column, an edge every five years from 1930
GENRES, YEAR = slice(0, 6), 6


def titles(**metadata: Sequence[Any]) -> Titles:
    """Three titles, given as 9, 2, 5."""
    return Titles.from_columns([9, 2, 5], ["nine", "two", "five"], metadata)


def test_titles_are_sorted_by_id_with_everything_that_belongs_to_them() -> None:
    found = titles(genres=[["a"], None, ["b"]], year=[9.0, 2.0, 5.0])
    assert (found.ids.tolist(), found.names) == ([2, 5, 9], ["two", "five", "nine"])
    assert found.metadata == {"genres": [None, ["b"], ["a"]], "year": [2.0, 5.0, 9.0]}


def test_round_trip(tmp_path: Path) -> None:
    before = titles(genres=[["Comédie"], None, []], year=[1999, None, 2001])
    before.save(tmp_path / "titles.json")
    after = Titles.load(tmp_path / "titles.json")
    assert (after.ids.tolist(), after.names, after.metadata) == (before.ids.tolist(), before.names, before.metadata)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"ids": [2, 1], "names": ["a", "b"], "metadata": {}}'], ids=repr)
def test_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json"):
        Titles.load(tmp_path / "t.json")


@pytest.mark.parametrize("ids", [[1, 1], [-1, 1]], ids=["twice", "negative"])
def test_wrong_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="title ids"):
        Titles.from_columns(ids, ["a", "b"], {})


def test_metadata_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("{'year': 2}")):
        Titles(titles().ids, titles().names, {"year": [1.0, 2.0]})


def test_metadata_ids_are_vocabulary_places_and_year_buckets() -> None:
    table = titles(genres=[["b", "a"], None, ["b"]], year=[1930, 1929, None])
    vocabularies = fit_title_vocabularies(SCHEMA, table)
    assert vocabularies["title.genres"].values == ["a", "b"]
    ids = encode_titles(SCHEMA, vocabularies, table)
    assert not ids[:FIRST].any()
    assert ids[FIRST:, GENRES].tolist() == [[0] * 6, [3, 0, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0]]
    assert ids[FIRST:, YEAR].tolist() == [2, 0, 3]


def test_a_genre_the_vocabulary_lacks_is_unknown_and_missing_metadata_is_absent() -> None:
    vocabularies = {"title.genres": Vocabulary(["a"])}
    assert encode_titles(SCHEMA, vocabularies, titles(genres=[["z"], [], []]))[FIRST + 2, 0] == UNKNOWN
    assert not encode_titles(SCHEMA, vocabularies, titles()).any()


@pytest.mark.parametrize(
    ("name", "values"),
    [("year", ["x", None, None]), ("genres", ["Drama", None, None]), ("genres", [[1], None, None])],
    ids=str,
)
def test_metadata_of_the_wrong_type_is_named(name: str, values: list[Any]) -> None:
    table = titles(**{name: values})
    with pytest.raises(SchemaError, match=name):
        encode_titles(SCHEMA, fit_title_vocabularies(SCHEMA, table), table)
