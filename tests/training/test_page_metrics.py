"""Measures of whole pages, against pages worked out by hand and against loops."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from frontrow.training.page_metrics import (
    discounts,
    entity_auc,
    first_places,
    ndcg2d,
    recall,
    relevance_of,
    row_auc,
    weighted_auc,
)

NONE = -1
LOG3, LOG4, LOG5 = 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(5)


def relevance(titles: int = 8, **of: float) -> np.ndarray:
    """[1, N]: relevance(t3=1) makes title 3 relevant."""
    found = np.zeros((1, titles))
    for name, value in of.items():
        found[0, int(name[1:])] = value
    return found


def test_the_top_left_is_worth_1_and_cells_are_counted_from_1() -> None:
    """Counted from 0 with log2(i + j + 2) it would be the same; with log2(i + j + 2) counted from 1 it would not."""
    assert discounts(2, 3) == pytest.approx(np.array([[1, LOG3, LOG4], [LOG3, LOG4, LOG5]]))
    assert discounts(2, 2, alpha=2, beta=1)[1, 0] == pytest.approx(1 / math.log2(5)), "alpha is for rows"
    with pytest.raises(ValueError, match="together above 1"):
        discounts(2, 2, alpha=0.5, beta=0.5)


def test_a_page_worked_out_by_hand() -> None:
    page = np.array([[[5, 1], [2, 3]]])
    wanted = relevance(t1=1, t3=2)
    dcg = (2**1 - 1) * LOG3 + (2**2 - 1) * LOG4
    ideal = (2**2 - 1) * 1 + (2**1 - 1) * LOG3
    assert ndcg2d(page, wanted) == pytest.approx([dcg / ideal])
    assert ndcg2d(page, relevance(t5=1)) == pytest.approx([1])
    assert ndcg2d(page, relevance(t7=1)) == pytest.approx([0]), "relevant, and not on the page"
    assert np.isnan(ndcg2d(page, relevance())).all()


def test_a_repeated_title_counts_only_at_its_first_place() -> None:
    """First by i + j, then by row: of (1, 2) and (2, 1) the upper one."""
    page = np.array([[[0, 4, 4], [4, 1, 0]]])
    assert first_places(page).tolist() == [[[True, True, False], [False, True, False]]]
    assert ndcg2d(page, relevance(t4=1)) == pytest.approx([LOG3])
    below = np.array([[[0, 1, 2, 3, 4], [5, 4, 6, 7, 7]]])
    assert first_places(below)[0, 0, 4] == np.False_, "i + j is 6 there and 4 in the row below"


def test_empty_cells_count_nothing_even_beside_a_relevant_title_of_index_0() -> None:
    page = np.array([[[NONE, 3], [NONE, NONE]]])
    assert not relevance_of(page, relevance(t0=1)).any()
    assert ndcg2d(page, relevance(t0=1)) == pytest.approx([0])
    assert ndcg2d(page, relevance(t0=1, t3=1)) == pytest.approx([LOG3 / (1 + LOG3)])


def test_the_ideal_has_no_more_titles_than_the_page_has_cells() -> None:
    page = np.array([[[0, 1]]])
    assert ndcg2d(page, relevance(t0=1, t1=1, t2=1, t3=1)) == pytest.approx([1])


def test_the_best_titles_in_reading_order_are_a_page_of_1_and_no_page_has_more() -> None:
    rng = np.random.default_rng(0)
    wanted = np.round(rng.random((200, 9)), 1)
    pages = rng.integers(-1, 9, (200, 3, 2))
    assert (ndcg2d(pages, wanted) <= 1 + 1e-12).all()
    order = [(i, j) for total in range(2, 6) for i, j in product(range(3), range(2)) if i + j + 2 == total]
    ideal = np.empty((200, 3, 2), np.int64)
    for place, title in zip(order, np.argsort(-wanted, axis=1).T, strict=False):
        ideal[:, *place] = title
    assert ndcg2d(ideal, wanted) == pytest.approx(np.ones(200))


def test_recall_knows_rows_that_are_short_and_titles_that_stand_twice() -> None:
    page = np.array([[[0, 1, 2], [1, NONE, NONE], [3, 4, 5]]])
    wanted = relevance(t1=1, t4=0.2, t5=1, t7=1)
    assert recall(page, wanted, 3, 3) == pytest.approx([3 / 4])
    assert recall(page, wanted, 3, 2) == pytest.approx([2 / 4])
    assert recall(page, wanted, 2, 4) == pytest.approx([1 / 4])
    assert recall(page, wanted, 1, 1) == pytest.approx([0])
    assert np.isnan(recall(page, relevance(), 3, 3)).all()


def test_measures_of_many_pages_equal_loops() -> None:
    rng = np.random.default_rng(1)
    pages, wanted = rng.integers(-1, 12, (60, 4, 3)), np.where(rng.random((60, 12)) < 0.3, rng.random((60, 12)), 0)
    wanted[:, 3] = 0.4
    for page, rel, found, share in zip(pages, wanted, ndcg2d(pages, wanted), recall(pages, wanted, 2, 2), strict=True):
        cells = sorted(product(range(4), range(3)), key=lambda c: (sum(c), c[0]))
        seen, dcg, near = {NONE}, 0.0, set()
        for i, j in cells:
            title = int(page[i, j])
            if title not in seen:
                dcg += (2 ** rel[title] - 1) / math.log2(i + j + 2)
                seen.add(title)
            if i < 2 and j < 2 and title >= 0 and rel[title] > 0:
                near.add(title)
        best = sorted(rel, reverse=True)
        ideal = sum((2**r - 1) / math.log2(i + j + 2) for r, (i, j) in zip(best, cells, strict=False))
        assert found == pytest.approx(dcg / ideal)
        assert share == pytest.approx(len(near) / (rel > 0).sum())


def test_auc_is_the_chance_that_a_relevant_sample_scores_higher() -> None:
    rng = np.random.default_rng(2)
    scores, relevant, weight = rng.integers(0, 6, 50) / 5, rng.random(50) < 0.4, rng.random(50)
    won = total = 0.0
    for a in np.flatnonzero(relevant):
        for b in np.flatnonzero(~relevant):
            total += weight[a] * weight[b]
            won += weight[a] * weight[b] * ((scores[a] > scores[b]) + 0.5 * (scores[a] == scores[b]))
    assert weighted_auc(scores, weight * relevant, weight * ~relevant) == pytest.approx(won / total)
    assert np.isnan(weighted_auc(scores, weight, np.zeros(50)))


def test_row_auc_compares_rows_of_all_pages_and_leaves_out_what_is_not_shown() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.7]])
    relevant = np.array([[True, False, False], [False, False, True]])
    shown = np.array([[True, True, False], [True, True, True]])
    # Relevant 0.9 and 0.7 against 0.1, 0.8, 0.2: five of six pairs are right.
    assert row_auc(scores, relevant, shown) == pytest.approx(5 / 6)
    weight = np.array([[1.0, 1, 1], [3, 1, 1]])
    assert row_auc(scores, relevant, shown, weight) == pytest.approx(7 / 10)


def test_a_chance_of_one_half_is_a_relevant_and_an_irrelevant_sample_of_half_the_weight() -> None:
    scores, shown = np.array([[0.9, 0.1, 0.5]]), np.ones((1, 3), bool)
    # Relevant: half of 0.9, half of 0.5. Irrelevant: 0.1, half of 0.9, half of 0.5.
    won = 0.5 * (1 + 0.5 * 0.5 + 0.5) + 0.5 * (1 + 0.5 * 0.5)
    assert row_auc(scores, np.array([[0.5, 0, 0.5]]), shown) == pytest.approx(won / (1 * 2))


def test_entity_auc_counts_a_title_at_its_first_place_and_no_empty_cell() -> None:
    pages = np.array([[[0, 1], [1, NONE]]])
    scores = np.array([[[0.3, 0.6], [0.1, 0.9]]])
    assert entity_auc(scores, pages, relevance(t1=1)) == 1
    assert entity_auc(scores, pages, relevance(t0=1)) == 0
    assert entity_auc(scores, pages, relevance(t0=1), weight=np.ones(pages.shape)) == 0


def test_the_ideal_stands_where_the_discounts_are_greatest() -> None:
    down = np.array([[[0, NONE, NONE], [1, NONE, NONE], [2, NONE, NONE]]])
    assert ndcg2d(down, np.ones((1, 3)), alpha=0.2, beta=3) == pytest.approx([1])


def test_what_cannot_be_measured_is_named_and_a_score_that_is_nan_stands_last() -> None:
    page = np.array([[[0, 1]]])
    with pytest.raises(ValueError, match="relevance has no titles"):
        ndcg2d(np.full((1, 1, 1), NONE), np.ones((1, 0)))
    with pytest.raises(ValueError, match="rows is -1"):
        recall(page, relevance(t0=1), -1, 1)
    assert weighted_auc(np.array([np.nan, 1, 0]), np.array([1, 0, 0]), np.array([0, 1, 1])) == 0
