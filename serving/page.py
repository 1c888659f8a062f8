"""Two axes: rows down the page by row score, titles across each row by title score; a title once per page.

Going down the page, each row takes its best titles that no row above has taken: a title stands in the highest-ranked
row that shows it, where it is worth most.
Shape letters: R rows, C titles per row, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rows import RowSpec


@dataclass(frozen=True)
class Placed:
    """A row on the page: its index in the row catalogue and places into the list of candidates, in order."""

    row: int
    places: np.ndarray


def assemble(
    specs: tuple[RowSpec, ...],
    row_scores: np.ndarray,
    eligible: np.ndarray,
    titles: np.ndarray,
    rows: int,
    columns: int,
) -> list[Placed]:
    """Choose and fill at most `rows` rows of at most `columns` titles.

    row_scores: float32 [R]. eligible: bool [R, K], which candidate may stand in which row. titles: title ids int64
    [K], candidates best first. Pinned rows stand at their place if they are filled; ties between rows go to the
    smaller row id. A row with fewer than min_titles (or `columns`, if that is less) is left out.
    """
    free = np.ones(len(titles), bool)
    order = np.lexsort((np.array([s.row_id for s in specs]), -row_scores)).tolist() if specs else []
    pinned = sorted((s.pin, s.row_id, i) for i, s in enumerate(specs) if s.pin is not None)
    unpinned = iter([i for i in order if specs[i].pin is None])
    page: list[Placed] = []
    while len(page) < rows:
        row = pinned.pop(0)[2] if pinned and pinned[0][0] <= len(page) else next(unpinned, None)
        if row is None:
            if not pinned:
                break
            row = pinned.pop(0)[2]
        spec = specs[row]
        places = np.flatnonzero(eligible[row] & free)
        if len(places) < min(spec.min_titles, columns):
            continue
        if spec.first:
            rank = {title: i for i, title in enumerate(spec.first)}
            places = np.array(sorted(places.tolist(), key=lambda at: rank.get(int(titles[at]), len(rank))), np.int64)
        places = places[: min(columns, spec.max_titles)]
        free[places] = False
        page.append(Placed(row, places))
    return page
