"""Orders of rows that are compared, each over the same titles: the row ranker, parts of it, and plain rules.

Shape letters: P pages, R rows, K candidates, C titles per row, N titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..serving.homepage import Ranked
from ..serving.page import FIRST_TITLES, RowWorth, assemble, first_mass, log_mass, ordered_places
from ..serving.store import Store

RULES = ("popularity", "size", "mean title score", "best title score")  # what the row ranker must beat
OTHERS = ("state alone", "titles alone", "rows by themselves", "mean score of its first titles")
ORDERS = ("row ranker", *RULES, *OTHERS)
TRUTH = "knowing the truth"  # rows by the true chance of their titles: what an order could gain at most, about
UNBOUND = "titles by score, no rows"


def worths(store: Store, ranked: Ranked, wanted: np.ndarray) -> dict[str, RowWorth]:
    """What each of ORDERS, and one that knows what is wanted (a chance for each title, [N]), says rows are worth.

    popularity: mean plays of a row's titles; size: how many it has; mean and best score: of all its titles. All of the
    titles that the member may be shown in it. titles alone: the chance of a row's first titles; rows by themselves: the
    row ranker without regard to what rows above show.
    """
    chance, eligible, own = ranked.worth.chance, ranked.eligible, ranked.worth
    count = eligible.sum(1)
    order = ordered_places(store.rows.specs, eligible, store.bundle.titles.ids[ranked.titles])
    most = np.full(len(eligible), FIRST_TITLES)
    mass = first_mass(order, most, np.append(chance, 0.0))
    scores = np.append(ranked.scores.astype(float), np.nan)[order]
    with np.errstate(all="ignore"):
        fixed = {
            "popularity": eligible @ store.popularity[ranked.titles] / count,
            "size": count.astype(float),
            "mean title score": eligible @ ranked.scores.astype(float) / count,
            "best title score": np.where(count, np.where(eligible, ranked.scores, -np.inf).max(1, initial=-1e9), -1e9),
            "state alone": own.base,
            "rows by themselves": own.base + own.slope * log_mass(mass),
            "mean score of its first titles": np.where(
                count, np.nan_to_num(scores[:, :FIRST_TITLES]).sum(1) / np.minimum(count, FIRST_TITLES), -1e9
            ),
        }
    found = {name: RowWorth(np.nan_to_num(base, nan=-1e9), 0.0, chance) for name, base in fixed.items()}
    found["row ranker"] = own
    found["titles alone"] = replace(own, base=np.zeros(len(eligible)), slope=1.0)
    found[TRUTH] = replace(found["titles alone"], chance=wanted[ranked.titles])
    return {name: found[name] for name in (*ORDERS, TRUTH)}


def pages_of(
    store: Store, ranked: Sequence[Ranked], chance: np.ndarray, rows: int, columns: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(title indices int64 [P, R, C] by order, −1 past the end; scores float64 [P, R, C] of the row ranker's titles as
    log chances), where titles are wanted with that chance [P, N]."""
    names = (*ORDERS, TRUTH, UNBOUND)
    pages = {name: np.full((len(ranked), rows, columns), -1, np.int64) for name in names}
    scores = np.full((len(ranked), rows, columns), -np.inf)
    cells = sorted(np.ndindex(rows, columns), key=lambda cell: (sum(cell), cell))
    for p, (one, wanted) in enumerate(zip(ranked, chance, strict=True)):
        ids = store.bundle.titles.ids[one.titles]
        for name, worth in worths(store, one, wanted).items():
            for r, placed in enumerate(assemble(store.rows.specs, worth, one.eligible, ids, rows, columns)):
                pages[name][p, r, : len(placed.places)] = one.titles[placed.places]
                if name == "row ranker":
                    scores[p, r, : len(placed.places)] = np.log(worth.chance[placed.places])
        best = one.titles[one.eligible.any(0)]
        for (r, c), title in zip(cells, best.tolist(), strict=False):
            pages[UNBOUND][p, r, c] = title
    return pages, scores
