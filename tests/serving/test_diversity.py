"""The dial from the best titles of a row to varied ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from frontrow.serving.diversity import POOL, unit_vectors, varied
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.known import check_known, known_answers
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store
from frontrow.training.beyond_accuracy import within

NOW = 1_720_000_000.0


def with_dial(store: Store, **dial: float) -> HomepageEngine:
    """An engine of the same bundle with rows.json as it is but for the dial, which is absent where not given."""
    rows = {name: value for name, value in store.bundle.rows.items() if name != "diversity"} | dial
    return HomepageEngine(Store(dataclasses.replace(store.bundle, rows=rows)))


def page_of(engine: HomepageEngine, member: int, rows: int = 12, titles: int = 8) -> Page:
    (page,) = engine.pages([PageRequest(member, rows=rows, titles=titles)], NOW)
    assert isinstance(page, Page), page
    return page


def by_the_formula(scores: np.ndarray, units: np.ndarray, lead: int, count: int, diversity: float) -> list[int]:
    """Carbonell & Goldstein's loop, one title at a time."""
    pool = list(range(min(len(scores), lead + POOL * count)))
    least, most = scores[pool[lead:]].min(), scores[pool[lead:]].max()
    cosines = {(a, b): float(units[a] @ units[b]) for a in pool for b in pool if a != b}
    low, high = min(cosines.values()), max(cosines.values())
    picked = pool[:lead]
    while len(picked) < min(count, len(pool)):
        left = [t for t in pool if t not in picked]
        worth = [
            (1 - diversity) * (scores[t] - least) / (most - least)
            - diversity * max(((cosines[t, p] - low) / (high - low) for p in picked), default=0.0)
            for t in left
        ]
        picked.append(left[int(np.argmax(worth))])
    return picked


@pytest.mark.parametrize("diversity", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("lead", [0, 2])
def test_a_row_is_what_the_formula_gives(diversity: float, lead: int) -> None:
    rng = np.random.default_rng(0)
    for length in (60, 9, 4):
        scores = -np.sort(-rng.normal(size=length)).astype(np.float32)
        units = unit_vectors(rng.normal(size=(length, 6)).astype(np.float32))
        found = varied(scores, units, diversity)(np.arange(length), lead, 6)
        assert found.tolist() == by_the_formula(scores, units, lead, 6, diversity)


def test_places_are_of_the_row_and_its_first_titles_stay() -> None:
    scores, units = np.linspace(2, 1, 9, dtype=np.float32), np.eye(9, dtype=np.float32)
    places = np.array([8, 1, 3, 4, 6])
    fill = varied(scores, units, 0.5)
    assert fill(places, 1, 3).tolist() == [8, 1, 3], "all are as unlike, so the best are taken"
    assert fill(places, 3, 2).tolist() == [8, 1]


def test_of_equals_the_one_before_is_taken() -> None:
    scores, units = np.ones(20, np.float32), np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1))
    assert varied(scores, units, 0.7)(np.arange(20), 0, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_dial_at_0_or_absent_is_todays_page_to_the_last_bit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    members = (1000, 1017, 1059)
    expected = [page_of(HomepageEngine(store), member) for member in members]
    assert store.bundle.rows["diversity"] == 0, "it stands in every bundle, for the operator to find"
    monkeypatch.setattr("frontrow.serving.homepage.varied", None)  # not even called
    for engine in (with_dial(store), with_dial(store, diversity=0), with_dial(store, diversity=0.0)):
        for member, wanted in zip(members, expected, strict=True):
            found = page_of(engine, member)
            for name in ("row_ids", "row_scores", "title_ids", "title_scores", "sources"):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_more_of_the_dial_is_more_variety_at_a_lower_score(store: Store) -> None:
    unlike, scores = [], []
    units = store.unit_vectors
    for diversity in (0.0, 0.3, 1.0):
        engine = with_dial(store, diversity=diversity)
        pages = [page_of(engine, int(member), rows=6) for member in store.bundle.member_ids[:10]]
        rows = np.concatenate([store.title_indices(p.title_ids) for p in pages])
        unlike.append(np.nanmean(within(1 - units @ units.T, rows)))
        scores.append(np.mean([p.title_scores[p.title_ids >= 0].mean() for p in pages]))
        for page in pages:
            ids = page.title_ids[page.title_ids >= 0]
            assert len(ids) == len(set(ids.tolist()))
            shown = np.where(page.title_ids >= 0, page.title_scores, -np.inf)
            assert (shown[:, 0] == shown.max(1)).all(), "a row begins with its best title"
    assert unlike == sorted(unlike)
    assert unlike[2] > unlike[0] + 0.05
    assert scores == sorted(scores, reverse=True)


def test_known_answers_do_not_hang_on_the_last_bit_of_a_varied_row(store: Store) -> None:
    """Each row's choice may turn round between processors; its first title may not."""
    engine = with_dial(store, diversity=0.5)
    known = known_answers(engine, [1000, -1], int(NOW))
    assert known["titles"] == 1
    bundle = dataclasses.replace(engine.store.bundle, known=known)
    check_known(HomepageEngine(Store(bundle)))
    check_known(HomepageEngine(Store(dataclasses.replace(bundle, rows=store.bundle.rows))))  # the same at 0
