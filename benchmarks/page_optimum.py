"""How far below the best page is one assembled from the top down? Small pages, where every page can be looked at.

The worth of a page is the expected NDCG2D of one next title: Σ over its cells of the title's chance / log2(i + j).
Shape letters: R rows of the catalogue, K candidates; rows × columns of the page.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ..serving.page import RowWorth, assemble
from ..serving.rows import RowSpec
from ..training.page_metrics import discounts


def best_value(eligible: np.ndarray, chance: np.ndarray, rows: int, columns: int) -> float:
    """Worth of the best page of rows with eligible titles, bool [R, K], and chances [K], each row and title once.

    For each choice and order of rows the titles are dealt one by one to the cells that are still free, in every way
    (dynamic programming over sets of filled cells), which is exact.
    """
    worth = discounts(rows, columns).ravel()
    lines = np.array(list(permutations(range(len(eligible)), min(rows, len(eligible)))))  # [orders, rows]
    best = np.full((len(lines), 1 << len(worth)), -np.inf)
    best[:, 0] = 0.0
    sets = np.arange(1 << len(worth))
    for k in range(len(chance)):
        after = best.copy()
        for cell in range(lines.shape[1] * columns):
            without = sets[(sets >> cell) & 1 == 0]
            allowed = eligible[lines[:, cell // columns], k]
            value = np.where(allowed[:, None], best[:, without] + chance[k] * worth[cell], -np.inf)
            filled = without | (1 << cell)
            after[:, filled] = np.maximum(after[:, filled], value)
        best = after
    return float(best.max())


def greedy_value(eligible: np.ndarray, chance: np.ndarray, rows: int, columns: int) -> float:
    """Worth of the page that serving assembles, rows by the chance of their titles."""
    specs = tuple(RowSpec(i, "row", "True", min_titles=1) for i in range(len(eligible)))
    worth = RowWorth(np.zeros(len(eligible)), 1.0, chance)
    page = assemble(specs, worth, eligible, np.arange(len(chance)), rows, columns)
    discount = discounts(rows, columns)
    return float(sum((chance[p.places] * discount[r, : len(p.places)]).sum() for r, p in enumerate(page)))


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(eligible bool [R, K], chance [K], falling): 5 rows that overlap, 9 titles."""
    count, titles = 5, 9
    chance = np.sort(rng.dirichlet(np.full(titles, 0.7)))[::-1]
    return rng.random((count, titles)) < rng.uniform(0.2, 0.7, count)[:, None], chance


def shortfalls(pages: int, rows: int = 2, columns: int = 3, seed: int = 0) -> np.ndarray:
    """Of random cases, float64 [pages]: by what share the assembled page is below the best one."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < pages:
        eligible, chance = random_case(rng)
        if (best := best_value(eligible, chance, rows, columns)) > 0:
            found.append(1 - greedy_value(eligible, chance, rows, columns) / best)
    return np.array(found)
