"""Diversity, serendipity and exposure equal loops over their definitions, on lists and on pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from frontrow.training.baselines import item_item_scores, popularity_scores
from frontrow.training.batches import training_events
from frontrow.training.beyond_accuracy import (
    across,
    dissimilarities,
    exposure,
    gini,
    of_lists,
    of_pages,
    primitive_lists,
    serendipity,
    within,
)
from frontrow.training.data import Dataset
from frontrow.training.evaluate import evaluate_scorer


@pytest.fixture(scope="module")
def pages() -> np.ndarray:
    """20 pages of 3 rows of up to 4 titles, some short, some empty."""
    rng = np.random.default_rng(0)
    pages = np.stack([rng.permutation(120)[:12].reshape(3, 4) for _ in range(20)])
    for row in pages.reshape(-1, 4):
        row[rng.integers(0, 6) :] = -1
    return pages


def test_dissimilarities_equal_their_definitions(tiny_data: Dataset) -> None:
    found, genres = dissimilarities(tiny_data), tiny_data.titles.metadata["genres"]
    used, index = training_events(tiny_data), tiny_data.title_indices()
    members = np.repeat(np.arange(len(tiny_data)), np.diff(tiny_data.events.offsets))
    of = [set(members[used & (index == title)].tolist()) for title in range(len(tiny_data.titles))]
    for one, other in [(0, 1), (3, 40), (7, 7), (119, 2)]:
        a, b = set(genres[one]), set(genres[other])
        assert found["genres"][one, other] == pytest.approx(1 - len(a & b) / len(a | b))
        both = len(of[one] & of[other]) / max(1, len(of[one]) * len(of[other])) ** 0.5
        assert found["members"][one, other] == pytest.approx(1 - both, abs=1e-6)
    assert len(of[119]) == 0, "nobody has the last title, so it is like no other"


def test_within_and_across_rows_equal_loops(pages: np.ndarray) -> None:
    unlike = np.random.default_rng(1).random((120, 120)).astype(np.float32)
    unlike = unlike + unlike.T
    unlike[5], unlike[:, 5] = np.nan, np.nan  # a title without genres
    rows = pages.reshape(-1, 4)
    for row, found in zip(rows, within(unlike, rows), strict=True):
        pairs = [unlike[a, b] for a, b in itertools.combinations([t for t in row if t >= 0], 2)]
        pairs = [value for value in pairs if not np.isnan(value)]
        assert found == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)
    for page, found in zip(pages, across(unlike, pages), strict=True):
        pairs = [
            unlike[a, b]
            for one, other in itertools.combinations(page, 2) for a in one for b in other if a >= 0 and b >= 0
        ]  # fmt: skip
        pairs = [value for value in pairs if not np.isnan(value)]
        assert found == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


def test_gini_is_0_for_equal_shares_and_near_1_for_one_title() -> None:
    assert gini(np.arange(50), 50) == pytest.approx(0)
    assert gini(np.zeros(1000, int), 50) == pytest.approx(1 - 1 / 50)
    counts = np.array([0, 1, 2, 7])
    shown = np.repeat(np.arange(4), counts)
    by_pairs = np.abs(counts[:, None] - counts).sum() / (2 * 4 * counts.sum())
    assert gini(np.append(shown, -1), 4) == pytest.approx(by_pairs)
    assert gini(np.full(3, -1), 4) == 0


def test_serendipity_is_relevant_and_not_what_anyone_would_have_shown() -> None:
    lists = np.array([[1, 2, 3], [4, 5, 6], [7, 8, -1], [9, 1, 2]])
    primitive = np.array([[1, 9], [5, 6], [7, 8], [3, 4]])
    found = serendipity(lists, primitive, np.array([2, 5, 7, 30]))
    assert found["serendipity"] == 1 / 4, "2 was unexpected and next; 5 and 7 were expected; 30 was not listed"
    assert found["unexpected"] == pytest.approx((2 + 1 + 0 + 3) / 11)
    assert serendipity(np.array([[-1, -1]]), np.array([[-1]]), np.array([-1])) == {"serendipity": 0, "unexpected": 0}


def test_primitive_lists_are_those_of_popularity_and_item_item(tiny_data: Dataset) -> None:
    """And so the primitive recommenders themselves surprise nobody."""
    primitive = primitive_lists(tiny_data, "test")
    index, offsets = tiny_data.title_indices(), tiny_data.events.offsets
    scores = [scorer(tiny_data, "test")(np.arange(3)) for scorer in (popularity_scores, item_item_scores)]
    for member in range(3):
        seen = set(index[offsets[member] : offsets[member + 1] - 1].tolist())
        target = int(index[offsets[member + 1] - 1])
        for way in range(2):
            left = [t for t in range(len(tiny_data.titles)) if t not in seen or t == target]
            best = sorted(left, key=lambda t: (-scores[way][member, t], t))[:10]
            assert primitive[member, way * 10 : way * 10 + 10].tolist() == best
    assert serendipity(primitive[:, :10], primitive, primitive[:, 0])["serendipity"] == 0


def test_lists_and_pages_have_every_measure(tiny_data: Dataset, pages: np.ndarray) -> None:
    unlike, primitive = dissimilarities(tiny_data), primitive_lists(tiny_data, "test")
    lists, target = primitive[:, :10], tiny_data.title_indices()[tiny_data.events.offsets[1:] - 1]
    found = of_lists(tiny_data, lists, target, primitive, unlike)
    known = evaluate_scorer(popularity_scores(tiny_data, "test"), tiny_data, "test")
    assert found["coverage"] == pytest.approx(known["coverage"])
    assert found["novelty_bits"] == pytest.approx(known["novelty_bits"])
    assert {"gini", "serendipity", "unexpected", "within_genres", "within_members"} < set(found)
    whole = of_pages(tiny_data, pages, unlike)
    assert whole["within_rows_genres"] == pytest.approx(np.nanmean(within(unlike["genres"], pages.reshape(-1, 4))))
    assert whole["across_rows_members"] == pytest.approx(np.nanmean(across(unlike["members"], pages)))
    assert exposure(tiny_data, pages)["coverage"] == len(set(pages[pages >= 0].tolist())) / 120
