"""Two axes: which rows, in which order, and which titles in each. Mostly properties over many small pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from frontrow.serving.page import FIRST_TITLES, Placed, RowWorth, assemble, log_mass
from frontrow.serving.rows import RowSpec
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """What `assemble` is given."""

    specs: tuple[RowSpec, ...]
    worth: RowWorth
    eligible: np.ndarray
    titles: np.ndarray
    rows: int
    columns: int

    def page(self) -> list[Placed]:
        return assemble(self.specs, self.worth, self.eligible, self.titles, self.rows, self.columns)

    def needed(self, row: int) -> int:
        """Titles without which a row is not shown."""
        return min(self.specs[row].min_titles, self.columns)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few distinct scores, so that ties are common; few titles, so that they run out."""
    count, candidates = draw(st.integers(0, 6)), draw(st.integers(0, 12))
    titles = draw(st.permutations(range(500, 500 + candidates)))
    row_ids = draw(st.permutations(range(10, 10 + count)))
    specs = []
    for row_id in row_ids:
        least = draw(st.integers(1, 4))
        specs.append(
            RowSpec(
                row_id, "row", "True", min_titles=least, max_titles=draw(st.integers(least, 6)),
                pin=draw(st.none() | st.integers(0, 5)),
                first=tuple(draw(st.lists(st.integers(500, 514), max_size=3, unique=True))),
            )
        )  # fmt: skip
    base = np.array([draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in specs], np.float32)
    chance = np.array(sorted((draw(st.integers(0, 3)) / 8 for _ in titles), reverse=True))
    worth = RowWorth(base, draw(st.sampled_from([0.0, 0.3, 1.0])), chance)
    eligible = np.array([[draw(st.booleans()) for _ in titles] for _ in specs], bool).reshape(count, candidates)
    page = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return Case(tuple(specs), worth, eligible, np.array(titles, np.int64), *page)


many = settings(max_examples=200, deadline=None, derandomize=True)


@many
@given(cases())
def test_no_title_twice_no_row_twice_nothing_ineligible_never_more_than_asked(case: Case) -> None:
    page = case.page()
    places = [at for placed in page for at in placed.places.tolist()]
    assert len(places) == len(set(places))
    assert len({placed.row for placed in page}) == len(page) <= case.rows
    for placed in page:
        spec = case.specs[placed.row]
        assert case.eligible[placed.row, placed.places].all()
        assert case.needed(placed.row) <= len(placed.places) <= min(case.columns, spec.max_titles)


@many
@given(cases())
def test_rows_stand_by_score_and_ties_by_the_smaller_id(case: Case) -> None:
    unpinned = [placed for placed in case.page() if case.specs[placed.row].pin is None]
    scores = [placed.score for placed in unpinned]
    assert (np.diff(scores) <= 1e-9).all()
    if not case.worth.slope:
        keys = [(-case.worth.base[placed.row], case.specs[placed.row].row_id) for placed in unpinned]
        assert keys == sorted(keys)


@many
@given(cases())
def test_the_next_row_is_the_one_whose_first_free_titles_are_worth_most(case: Case) -> None:
    """As a loop that looks at every row anew has it."""
    free, left = np.ones(len(case.titles), bool), set(range(len(case.specs)))
    for placed in case.page():
        scores = {}
        for row in left:
            spec, places = case.specs[row], np.flatnonzero(case.eligible[row] & free).tolist()
            named = [at for title in spec.first for at in places if case.titles[at] == title]
            places = named + [at for at in places if at not in named]
            first = places[: min(FIRST_TITLES, case.columns, spec.max_titles)]
            mass = np.array([case.worth.chance[first].sum()])
            scores[row] = float((case.worth.base[row] + case.worth.slope * log_mass(mass))[0])
        assert abs(placed.score - scores[placed.row]) < 1e-6
        if case.specs[placed.row].pin is None:
            for row in left:
                enough = (case.eligible[row] & free).sum() >= case.needed(row)
                assert not enough or case.specs[row].pin is not None or scores[row] <= placed.score + 1e-6
        free[placed.places] = False
        left.remove(placed.row)


@many
@given(cases())
def test_first_titles_stand_first_in_their_order_and_the_others_by_score(case: Case) -> None:
    for placed in case.page():
        first = case.specs[placed.row].first
        titles = case.titles[placed.places].tolist()
        lead = [t for t in titles if t in first]
        assert titles[: len(lead)] == lead == [t for t in first if t in lead]
        others = placed.places[len(lead) :].tolist()
        assert others == sorted(others), "candidates come best first"


@many
@given(cases())
def test_each_row_takes_all_it_may_of_what_the_rows_above_left(case: Case) -> None:
    free = np.ones(len(case.titles), bool)
    for placed in case.page():
        left = np.flatnonzero(case.eligible[placed.row] & free)
        assert len(placed.places) == min(len(left), case.columns, case.specs[placed.row].max_titles)
        free[placed.places] = False


@many
@given(cases())
def test_a_pinned_row_stands_at_its_place_or_as_near_as_can_be(case: Case) -> None:
    """Above a pinned row stand as many rows as its pin says; more only if another pinned row claimed the same place,
    fewer only if the others ran out."""
    page = case.page()
    pins = [case.specs[placed.row].pin for placed in page]
    for at, pin in enumerate(pins):
        if pin is None:
            continue
        others = [p for p in pins[:at] if p is not None]
        assert at <= pin + len(others)
        if at > pin:
            assert all(p is not None for p in pins[pin:at]), "no unpinned row took its place"
        if at < pin:
            assert all(p is not None for p in pins[at:]), "only when no unpinned row is left to stand above it"


@many
@given(cases())
def test_fewer_rows_than_asked_only_when_every_row_left_out_has_too_few_titles(case: Case) -> None:
    page = case.page()
    if len(page) == case.rows:
        return
    taken = np.zeros(len(case.titles), bool)
    for placed in page:
        taken[placed.places] = True
    for row in set(range(len(case.specs))) - {placed.row for placed in page}:
        assert (case.eligible[row] & ~taken).sum() < case.needed(row)


# --- Examples that read as the rules do ---


def page_of(*specs: RowSpec, scores: list[float], eligible: list[list[int]], titles: int = 6, **size: int) -> Any:
    """[(row id, places)] of a page; `eligible` lists places per row."""
    masks = np.zeros((len(specs), titles), bool)
    for row, places in enumerate(eligible):
        masks[row, places] = True
    ids = np.arange(500, 500 + titles)
    worth = RowWorth(np.array(scores, np.float32), 0.0, np.zeros(titles))
    page = assemble(specs, worth, masks, ids, size.get("rows", 9), size.get("columns", 3))
    return [(specs[placed.row].row_id, placed.places.tolist()) for placed in page]


ALL = list(range(6))


def test_a_title_stands_in_the_highest_row_that_shows_it() -> None:
    low, high = RowSpec(1, "low", "True", min_titles=1), RowSpec(2, "high", "True", min_titles=1)
    assert page_of(low, high, scores=[0.2, 0.8], eligible=[ALL, ALL]) == [(2, [0, 1, 2]), (1, [3, 4, 5])]


def test_a_row_whose_titles_stand_above_falls_behind() -> None:
    """Alone row 2 is worth more than row 3; below row 1, which shows most of its titles, it is worth less."""
    specs = tuple(RowSpec(i, "row", "True", min_titles=1) for i in (1, 2, 3))
    eligible = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0]], bool)
    worth = RowWorth(np.array([0.1, 0.0, 0.0]), 1.0, np.array([0.4, 0.3, 0.2, 0.09, 0.01]))
    page = assemble(specs, worth, eligible, np.arange(5), 3, 3)
    assert [(p.row, p.places.tolist()) for p in page] == [(0, [0, 1]), (2, [2, 3]), (1, [4])]
    alone = assemble(specs[1:], RowWorth(np.zeros(2), 1.0, worth.chance), eligible[1:], np.arange(5), 1, 3)
    assert alone[0].row == 0


def test_equal_rows_stand_by_id_whatever_their_order_in_the_file() -> None:
    nine, three = RowSpec(9, "nine", "True", min_titles=1), RowSpec(3, "three", "True", min_titles=1)
    assert page_of(nine, three, scores=[0.5, 0.5], eligible=[ALL, ALL]) == [(3, [0, 1, 2]), (9, [3, 4, 5])]


def test_a_row_with_fewer_titles_than_its_minimum_is_left_out() -> None:
    four, two = RowSpec(1, "four", "True", min_titles=4), RowSpec(2, "two", "True", min_titles=2)
    shown = page_of(four, two, scores=[0.9, 0.1], eligible=[[0, 1, 2], [0, 1]], columns=5)
    assert shown == [(2, [0, 1])], "and its titles are free for the rows below"


def test_a_page_narrower_than_a_rows_minimum_shows_the_row() -> None:
    assert page_of(RowSpec(1, "r", "True", min_titles=4), scores=[0.5], eligible=[ALL], columns=2) == [(1, [0, 1])]


def test_a_row_never_exceeds_its_maximum() -> None:
    spec = RowSpec(1, "r", "True", min_titles=1, max_titles=2)
    assert page_of(spec, scores=[0.5], eligible=[ALL], columns=5) == [(1, [0, 1])]


def test_a_pinned_row_stands_at_its_place_and_is_skipped_when_it_is_short() -> None:
    specs = [RowSpec(i, "r", "True", min_titles=1) for i in (1, 2, 3)]
    pinned = RowSpec(7, "pinned", "True", min_titles=2, pin=1)
    scores, each = [0.9, 0.8, 0.7, 0.0], [[0], [1], [2]]
    shown = page_of(*specs, pinned, scores=scores, eligible=[*each, [3, 4]])
    assert [row for row, _ in shown] == [1, 7, 2, 3]
    shown = page_of(*specs, pinned, scores=scores, eligible=[*each, [3]])
    assert [row for row, _ in shown] == [1, 2, 3]


def test_rows_pinned_to_one_place_follow_each_other_by_id() -> None:
    specs = [RowSpec(i, "r", "True", min_titles=1, pin=0) for i in (8, 4)]
    other = RowSpec(1, "r", "True", min_titles=1)
    shown = page_of(*specs, other, scores=[0.1, 0.1, 0.9], eligible=[[0], [1], [2]])
    assert [row for row, _ in shown] == [4, 8, 1]


def test_a_row_pinned_below_the_end_stands_at_the_end() -> None:
    shown = page_of(
        RowSpec(1, "pinned", "True", min_titles=1, pin=50), RowSpec(2, "r", "True", min_titles=1),
        scores=[0.9, 0.1], eligible=[[0], [1]],
    )  # fmt: skip
    assert [row for row, _ in shown] == [2, 1]


def test_first_titles_come_in_the_order_of_the_row_and_only_if_eligible() -> None:
    spec = RowSpec(1, "r", "True", min_titles=1, first=(504, 999, 502, 501))
    assert page_of(spec, scores=[0.5], eligible=[[0, 2, 3, 4, 5]], columns=4) == [(1, [4, 2, 0, 3])]


def test_nothing_to_show_is_an_empty_page() -> None:
    assert page_of(scores=[], eligible=[]) == []
    assert page_of(RowSpec(1, "r", "True"), scores=[0.5], eligible=[[]]) == []
    assert page_of(RowSpec(1, "r", "True"), scores=[0.5], eligible=[[]], titles=0) == []
