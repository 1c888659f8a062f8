"""Rows are data: what an expression means, what is refused, and that a new row is a new line."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.foundation.titles import Titles
from frontrow.serving.homepage import HomepageEngine, PageRequest
from frontrow.serving.rows import Eligibility, MemberView, RowCatalogue, RowError, RowSpec, TitleColumns, read_rows
from frontrow.serving.store import Store

YEAR = [1979, 1980, None, 1989, 1990, 2024, 2023, 1985]
LANGUAGE = ["ja", "en", "ja", None, "en", "fr", "ja", ""]
GENRES = [["Comedy"], [], None, ["Comedy", "Drama"], ["Drama"], ["Horror"], ["Comedy"], ["Drama"]]
KIDS = [True, None, False, True, None, False, True, False]
PLAYS = [5, 1, 9, 2, 0, 7, 3, 3]
N = len(YEAR)
COLUMNS = TitleColumns.from_metadata(
    N, {"year": YEAR, "language": LANGUAGE, "genres": GENRES, "kids": KIDS}, np.array(PLAYS, np.int64)
)


def qualifies(text: str, member: MemberView | None = None) -> list[int]:
    """Titles that an expression lets in."""
    nobody = MemberView(0, (), lambda title: np.empty(0, np.int64))
    return np.flatnonzero(Eligibility(text, COLUMNS).mask(member or nobody)).tolist()


# --- What an expression means: the same as a loop over the titles ---


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("1980 <= year < 1990", lambda i: YEAR[i] is not None and 1980 <= YEAR[i] < 1990),
        ("year == 1990", lambda i: YEAR[i] == 1990),
        ("year != 1990", lambda i: YEAR[i] is not None and YEAR[i] != 1990),
        ("not year < 1985", lambda i: YEAR[i] is not None and not YEAR[i] < 1985),
        ("not 1980 <= year < 1990", lambda i: YEAR[i] is not None and not 1980 <= YEAR[i] < 1990),
        ("year >= latest_year - 1", lambda i: YEAR[i] is not None and YEAR[i] >= 2023),
        ("-year < -1989", lambda i: YEAR[i] is not None and YEAR[i] > 1989),
        ("year > -5", lambda i: YEAR[i] is not None),
        ("kids", lambda i: KIDS[i] is True),
        ("not kids", lambda i: KIDS[i] is False),
        ("kids == True", lambda i: KIDS[i] is True),
        ("kids != True", lambda i: KIDS[i] is False),
        ("year + 1 > 1990 - 4.5", lambda i: YEAR[i] is not None and YEAR[i] + 1 > 1985.5),
        ('language == "ja"', lambda i: LANGUAGE[i] == "ja"),
        ('language != "ja"', lambda i: LANGUAGE[i] is not None and LANGUAGE[i] != "ja"),
        ('"en" <= language', lambda i: LANGUAGE[i] is not None and LANGUAGE[i] >= "en"),
        ('"Comedy" in genres', lambda i: GENRES[i] is not None and "Comedy" in GENRES[i]),
        ('"Comedy" not in genres', lambda i: GENRES[i] is not None and "Comedy" not in GENRES[i]),
        ('not "Comedy" in genres', lambda i: GENRES[i] is not None and "Comedy" not in GENRES[i]),
        ('"Western" in genres', lambda i: False),
        ("popularity >= 0.5", lambda i: sum(p < PLAYS[i] or (p == PLAYS[i] and j < i)
                                            for j, p in enumerate(PLAYS)) / (N - 1) >= 0.5),
        ('"Drama" in genres and year < 1990 or language == "fr"',
         lambda i: (GENRES[i] is not None and "Drama" in GENRES[i] and YEAR[i] < 1990) or LANGUAGE[i] == "fr"),
        ('("Drama" in genres or "Horror" in genres) and not (year < 1990 or language == "fr")',
         lambda i: GENRES[i] == ["Drama"] and YEAR[i] >= 1990),
        ("True", lambda i: True),
        ("not True or 1 > 2", lambda i: False),
    ],
)  # fmt: skip
def test_an_expression_lets_in_what_a_loop_over_the_titles_would(text: str, loop: Any) -> None:
    assert qualifies(text) == [i for i in range(N) if loop(i)]


def test_some_titles_qualify_as_they_do_among_all() -> None:
    some = np.array([5, 2, 0, 3, 2])
    nobody = MemberView(1, (6,), lambda title: np.array([2, 3]))
    for text in ("kids", "year > 1988", 'language == "ja"', '"Comedy" not in genres', "similar_to_liked(1)", "True"):
        rule = Eligibility(f"{text} and history_length == 1", COLUMNS)
        assert rule.mask(replace(nobody, titles=some)).tolist() == rule.mask(nobody)[some].tolist(), text


def test_what_is_not_known_of_a_title_never_lets_it_in() -> None:
    """Title 2 has neither year nor genres, title 3 no language: not even a negation admits them."""
    for text in ("year < 3000", "not year < 3000", "year != 1", '"x" not in genres', 'not "x" in genres'):
        assert 2 not in qualifies(text), text
    for text in ('language < "zz"', 'not language < "zz"', 'not (language == "en" and year > 0)'):
        assert 3 not in qualifies(text), text
    assert 2 in qualifies('year < 1980 or language == "ja"'), "another part that is known may let it in"


# --- Rows that depend on the member ---


def test_a_row_about_a_liked_title_shows_that_titles_neighbours() -> None:
    member = MemberView(9, [4, 6], lambda title: np.array([title - 1, title + 1]))
    assert qualifies("similar_to_liked(1)", member) == [3, 5]
    assert qualifies("similar_to_liked(2)", member) == [5, 7]
    assert qualifies("similar_to_liked(3)", member) == [], "the member has liked two titles"
    assert qualifies('similar_to_liked(1) and not "Drama" in genres', member) == [5]
    assert qualifies("similar_to_liked(1)") == []


def test_a_row_may_ask_for_a_long_history() -> None:
    assert qualifies("history_length >= 5 and year < 1980", MemberView(5, (), lambda t: np.empty(0, int))) == [0]
    assert qualifies("history_length >= 5 and year < 1980", MemberView(4, (), lambda t: np.empty(0, int))) == []


def test_a_row_says_whether_it_shows_what_the_member_has_seen() -> None:
    shows = [{"where": "year > 0", "seen": seen} for seen in ("exclude", "only", "any")]
    rows, seen = catalogue(*shows), np.array([True, False, True])
    masks = rows.masks(MemberView(0, (), lambda title: np.empty(0, int)), np.array([0, 1, 3]), seen)
    assert masks.tolist() == [(~seen).tolist(), seen.tolist(), [True] * 3]


def test_masks_of_static_and_dynamic_rows_stand_together() -> None:
    rows = catalogue({"where": "year > 1988"}, {"where": "similar_to_liked(2)", "label": "Like {title}"})
    member = MemberView(3, [1, 0], lambda title: np.array([5]))
    titles, unseen = np.array([5, 0, 4, 3]), np.zeros(4, bool)
    expected = [[True, False, True, True], [True, False, False, False]]
    assert rows.masks(member, titles, unseen).tolist() == expected
    nobody = MemberView(0, (), member.neighbours)
    assert rows.masks(nobody, titles, unseen)[1].tolist() == [False] * 4, "nobody's likes stay"
    assert rows.seeds(member) == {1: 0}
    assert rows.seeds(MemberView(1, [1], member.neighbours)) == {}


# --- Everything else is refused, and the row is named ---


def catalogue(*rows: dict[str, Any]) -> RowCatalogue:
    full = [{"row_id": 70 + i, "label": f"Row {i}", "where": "True", **row} for i, row in enumerate(rows)]
    return RowCatalogue({"liked_actions": ["like"], "rows": full}, COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        "year.real > 1",
        "().__class__.__base__",
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "similar_to_liked()",
        "similar_to_liked(0)",
        "similar_to_liked(-1)",
        "similar_to_liked(True)",
        "similar_to_liked(year)",
        "similar_to_liked(1, 2)",
        "similar_to_liked(n=1)",
        "similar_to_liked(*[1])",
        "similar_to_liked(1) or similar_to_liked(2)",
        "similar_to_liked",
        "(lambda: True)()",
        "lambda: True",
        "[y for y in year]",
        "any(y > 1 for y in year)",
        "genres[0] == 'Comedy'",
        "year[0] > 1",
        "(y := 1) > 0",
        "year if True else year",
        "{'a': 1}",
        "f'{year}' == 'x'",
        "yeer > 1980",
        "'Comedy' in genre",
        "'Comedy' in year",
        "year in genres",
        "'Comedy' == genres",
        "year",
        "year + 1",
        "history_length",
        "1",
        "'text'",
        "year and True",
        "not year",
        "not language",
        "year > '1980'",
        "year == '1980'",
        "language == 3",
        "language + 'x' == 'jax'",
        "1 < 'a'",
        "year / 2 > 990",
        "year // 2 > 990",
        "year % 2 == 0",
        "year * 2 > 1",
        "2 ** 99 > year",
        "-language < 0",
        "kids + 1 > 0",
        "kids == 1",
        "language == True",
        "year is None",
        "language == None",
        "year > " + "9" * 400,
        "year + " + "9" * 400 + " > 1",
        "year > 1e400",
        "year > 1j",
        "language == b'ja'",
        "year > ...",
        "year > True",
        "9" * 5000 + " > year",
        "(" * 400 + "True" + ")" * 400,
        "not " * 20_000 + "True",
        "not " * 240 + "year",
        "+".join(["1"] * 30_000) + " > year",
        "True or " * 30_000 + "True",
        "",
        "year >",
        "year > 1; True",
        "year = 1",
        "import os",
        "year > 1\0",
    ],
    ids=lambda text: text if len(text) < 50 else f"{text[:12]}… ({len(text)})",
)
def test_what_is_outside_the_subset_is_refused_with_the_row_named(text: str) -> None:
    with pytest.raises(RowError, match=r"^row 71 \('Row 1'\): ") as refused:
        catalogue({}, {"where": text})
    assert len(str(refused.value)) < 800, "a readable message, whatever the expression"


def test_an_unknown_column_is_answered_with_those_there_are() -> None:
    with pytest.raises(RowError, match=r"no column 'yeer'.*genres, .*language, .*popularity, .*year"):
        catalogue({"where": "yeer > 1980"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"row_id": -1}, "row_id"),
        ({"row_id": True}, "row_id"),
        ({"row_id": "7"}, "row_id"),
        ({"row_id": 2**63}, "row_id"),
        ({"label": None}, "label"),
        ({"where": 5}, "where"),
        ({"seen": "never"}, "seen 'never' is not exclude, only or any"),
        ({"min_titles": 0}, "min_titles 0"),
        ({"min_titles": "4"}, "min_titles '4'"),
        ({"min_titles": 9, "max_titles": 8}, "max_titles 8"),
        ({"max_titles": 7.5}, "max_titles 7.5"),
        ({"pin": -1}, "pin -1"),
        ({"pin": "0"}, "pin '0'"),
        ({"pin": 1.5}, "pin 1.5"),
        ({"first": 501}, "first 501"),
        ({"first": "501"}, "first '501'"),
        ({"first": [-1]}, r"first \[-1\]"),
        (
            {"colour": "red"},
            r"row number 2 \('Row 1'\) has the key 'colour'; a row's keys are row_id, label, where, seen",
        ),
    ],
    ids=str,
)
def test_a_wrong_part_of_a_row_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        catalogue({}, wrong)


def test_a_row_id_is_used_once() -> None:
    with pytest.raises(RowError, match=r"row_id \[4\] is used more than once"):
        catalogue({"row_id": 4}, {"row_id": 5}, {"row_id": 4})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "None is no row catalogue; give {"),
        ([], r"\[\] is no row catalogue"),
        ({}, r"{} is no row catalogue"),
        ({"rows": []}, "is no row catalogue"),
        ({"liked_actions": [], "rows": [], "x": 1}, "is no row catalogue"),
        ({"liked_actions": [], "rows": [7]}, "row number 1 is 7; give an object with row_id, label, where"),
        ({"liked_actions": [], "rows": []}, r"rows is \[\]; .* one at least"),
        ({"liked_actions": [], "rows": None}, "rows is None"),
        ({"liked_actions": "play", "rows": [7]}, "liked_actions is 'play'; give a list"),
        ({"liked_actions": [5], "rows": [7]}, r"liked_actions is \[5\]; give a list"),
        ({"liked_actions": [], "rows": [7], "diversity": 1.5}, "diversity is 1.5; give a number from 0"),
        ({"liked_actions": [], "rows": [7], "diversity": True}, "diversity is True; give a number"),
        ({"liked_actions": [], "rows": [7], "diversity": float("nan")}, "diversity is nan; give a number"),
    ],
)
def test_what_is_no_row_catalogue_is_refused(data: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        RowCatalogue(data, COLUMNS)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "cannot be read as JSON"), (b"\xff", "cannot be read as JSON"), (b"[" * 100_000, "cannot be read as JSON"),
     (b"[]", "is no row catalogue"), (None, "cannot be read as JSON: .*No such file")],
)  # fmt: skip
def test_a_file_of_rows_is_named_by_the_name_it_was_given(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RowError, match=rf"mine\.json.*{words}"):
        read_rows(file, Titles(np.array([5, 6]), ["a", "b"], {}))


def test_a_row_without_an_expression_is_refused() -> None:
    with pytest.raises(RowError, match=r"row number 1 \('No titles said'\) lacks 'where'"):
        RowCatalogue({"liked_actions": [], "rows": [{"row_id": 1, "label": "No titles said"}]}, COLUMNS)


# --- Whoever wants another row adds a line ---


def test_a_user_adds_a_row_by_adding_a_line(tiny_bundle: Any) -> None:
    """The row ranker has never seen the row: it stands on the page with a usable score, and with the right titles."""
    store = Store.open(tiny_bundle)
    line = {"row_id": 900, "label": "Nineties drama", "where": '"Drama" in genres and 1990 <= year < 2000'}
    rows = {**store.bundle.rows, "rows": [*store.bundle.rows["rows"], line]}
    store = Store(dataclasses.replace(store.bundle, rows=rows))
    assert store.rows.specs[-1] == RowSpec(**line)
    page = HomepageEngine(store).pages([PageRequest(rows=100, titles=6)])[0]
    assert not isinstance(page, ValueError)
    at = page.row_ids.tolist().index(900)
    assert 0 < page.row_scores[at] < 1
    metadata, ids = store.bundle.titles.metadata, store.bundle.titles.ids
    shown = np.searchsorted(ids, page.title_ids[at][page.title_ids[at] >= 0])
    assert len(shown) >= 4
    for i in shown:
        assert "Drama" in metadata["genres"][i]
        assert 1990 <= metadata["year"][i] < 2000
