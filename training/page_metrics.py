"""How good are pages of rows? All pages at once; page cells and titles of −1 are empty and count nothing.

DCG2D and its normalised form: UMAP'21 10.1145/3450614.3461680 and CEUR 2947 paper 4. Recall@m-by-n:
"Learning a Personalized Homepage" (Netflix, 2015). Row-AUC and Entity-AUC: GenPage, arXiv 2606.31031.
Shape letters: P pages, R rows, C titles per row, N titles.
"""

from __future__ import annotations

import numpy as np


def discounts(rows: int, columns: int, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """1 / log2(α·i + β·j) float64 [R, C], i and j counted from 1: 1 at the top left where α = β = 1.

    Raises ValueError where that is no positive number: α + β must be above 1 and neither below 0.
    """
    if alpha < 0 or beta < 0 or alpha + beta <= 1:
        raise ValueError(f"alpha {alpha} and beta {beta} must be at least 0 and together above 1")
    return 1.0 / np.log2(alpha * np.arange(1, rows + 1)[:, None] + beta * np.arange(1, columns + 1))


def _reading_order(rows: int, columns: int) -> np.ndarray:
    """int64 [R·C]: cells of the flat page by ascending i + j, then by row."""
    i, j = np.divmod(np.arange(rows * columns), columns)
    return np.lexsort((i, i + j))


def first_places(pages: np.ndarray) -> np.ndarray:
    """bool [P, R, C]: cells with a title that stands nowhere before on its page [P, R, C], in reading order."""
    count, rows, columns = pages.shape
    order = _reading_order(rows, columns)
    flat = pages.reshape(count, rows * columns)[:, order]
    by_title = np.argsort(flat, axis=1, kind="stable")  # of one title the first in reading order comes first
    ranked = np.take_along_axis(flat, by_title, 1)
    new = ranked >= 0
    new[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order[by_title], new, 1)
    return first.reshape(pages.shape)


def relevance_of(pages: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """float64 [P, R, C]: relevance [P, N] of the title (an index) in each cell of pages [P, R, C], 0 in empty cells and
    where a title stands a second time."""
    flat = np.where(pages >= 0, pages, 0).reshape(len(pages), pages.shape[1] * pages.shape[2])
    return np.take_along_axis(relevance, flat, 1).reshape(pages.shape) * first_places(pages)


def ndcg2d(pages: np.ndarray, relevance: np.ndarray, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """N2DCG float64 [P] of pages of title indices int [P, R, C] with relevance [P, N]; NaN where nothing is relevant.

    Σ (2^rel − 1) / log2(α·i + β·j), of the best that a page of that shape could have: the highest relevances in the
    cells of the greatest discounts, which are those of the least i + j where α = β. Raises ValueError for relevances
    of no title.
    """
    if not relevance.shape[1]:
        raise ValueError("relevance has no titles; give [P, N] with N of 1 or more")
    count, rows, columns = pages.shape
    discount = discounts(rows, columns, alpha, beta)
    found = ((2.0 ** relevance_of(pages, relevance) - 1) * discount).sum((1, 2))
    most = min(rows * columns, relevance.shape[1])
    best = -np.partition(-relevance, most - 1, axis=1)[:, :most]
    gains = 2.0 ** -np.sort(-best, axis=1) - 1
    ideal = (gains * -np.sort(-discount, axis=None)[:most]).sum(1)
    return np.divide(found, ideal, out=np.full(count, np.nan), where=ideal > 0)


def recall(pages: np.ndarray, relevance: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Recall@m-by-n float64 [P]: share of a page's relevant titles (relevance [P, N] above 0) that stand in the first
    `rows` × `columns` cells; NaN where nothing is relevant. Rows may be short; a title in two of them counts once.
    Raises ValueError for a negative number of rows or columns."""
    if rows < 0 or columns < 0:
        raise ValueError(f"rows is {rows} and columns {columns}; give 0 or more")
    seen = relevance_of(pages[:, :rows, :columns], (relevance > 0).astype(float)).sum((1, 2))
    there = (relevance > 0).sum(1)
    return np.divide(seen, there, out=np.full(len(pages), np.nan), where=there > 0)


def weighted_auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a relevant sample scores above an irrelevant one, ties half. A sample of scores [S] is drawn as a
    relevant one by its weight `positive` [S], as an irrelevant one by `negative` [S]. NaN if there is only one
    kind. A score that is NaN stands below all others."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    _, level = np.unique(scores, return_inverse=True)
    relevant, irrelevant = np.bincount(level, positive), np.bincount(level, negative)
    total = relevant.sum() * irrelevant.sum()
    if total == 0:
        return float("nan")
    below = np.cumsum(irrelevant) - irrelevant
    return float((relevant * (below + 0.5 * irrelevant)).sum() / total)


def row_auc(scores: np.ndarray, relevance: np.ndarray, shown: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Row-AUC over the rows shown, bool [P, R], of all pages together, by scores [P, R]. relevance [P, R]: true or
    false, or the chance that a row is relevant; weight [P, R] of the samples, else each 1."""
    weight = np.ones(scores.shape) if weight is None else weight
    positive = weight * relevance
    return weighted_auc(scores[shown], positive[shown], (weight - positive)[shown])


def entity_auc(scores: np.ndarray, pages: np.ndarray, relevance: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Entity-AUC over the filled cells of all pages [P, R, C] together, each title at its first place, by title scores
    [P, R, C]. relevance [P, N]: true or false, or chances, as in `row_auc`; weight [P, R, C], else each 1."""
    return row_auc(scores, relevance_of(pages, relevance), first_places(pages), weight)
