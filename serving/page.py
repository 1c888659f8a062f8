"""Two axes: rows down the page by row score, titles across each row by title score; a title once per page.

Going down the page, the next row is the one whose first titles, of those that no row above shows, are likeliest to
hold what the member wants; it takes its best titles of those. A row that overlaps with those above falls behind as its
titles go, and no row's score is above that of the row before it.
Shape letters: R rows, C titles per row, K candidates, L longest row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .diversity import Fill
from .rows import RowSpec

FIRST_TITLES = 8  # a row's score is about so many of its titles, or as many as the page shows
FLOOR = 1e-6  # of a chance whose logarithm is taken


@dataclass(frozen=True)
class RowWorth:
    """A row's score, a logit: base [R] + slope · log of the summed chance [K] of its first titles; slope is at least 0.

    chance: of each candidate, that it is the next title: the title head's softmax over the candidates.
    """

    base: np.ndarray
    slope: float
    chance: np.ndarray


class Placed(NamedTuple):
    """A row on the page: its index in the row catalogue, its score there and places into the candidates, in order."""

    row: int
    score: float
    places: np.ndarray


def log_mass(mass: np.ndarray) -> np.ndarray:
    """Logarithm of summed chances, finite where a row has no title."""
    return np.log(mass + FLOOR)


def assemble(
    specs: tuple[RowSpec, ...],
    worth: RowWorth,
    eligible: np.ndarray,
    titles: np.ndarray,
    rows: int,
    columns: int,
    fill: Fill | None = None,
) -> list[Placed]:
    """Choose and fill at most `rows` rows of at most `columns` titles.

    eligible: bool [R, K], which candidate may stand in which row. titles: title ids int64 [K], candidates best first.
    Pinned rows stand at their place if they are filled; ties between rows go to the smaller row id. A row with fewer
    than min_titles (or `columns`, if that is less) is left out. fill: which of its titles a row shows, in which order,
    once it is chosen for its best ones; None: these.
    """
    order = ordered_places(specs, eligible, titles)
    most, least = (
        [min(columns, n) for n in each] for each in ([s.max_titles for s in specs], [s.min_titles for s in specs])
    )
    free, chance = np.append(np.ones(len(titles), bool), False), np.append(worth.chance, 0.0)  # the last: no title
    by_id = np.argsort(np.array([s.row_id for s in specs], np.int64)).tolist()
    place_of, floats = {row: place for place, row in enumerate(by_id)}, [s.pin is None for s in specs]
    pinned = [i for _, _, i in sorted((s.pin, s.row_id, i) for i, s in enumerate(specs) if s.pin is not None)]
    # Scores only fall as titles are taken: those of fuller pages are bounds (lazy greedy, Minoux 1978).
    bound = worth.base + worth.slope * log_mass(first_mass(order, np.array(most), chance))
    bound = np.where(floats, bound, -np.inf)[by_id]

    def now(row: int) -> Placed | None:
        """The row as it would stand next; None if it is too short."""
        near = order[row, : columns + taken]  # so many hold `columns` free ones, if the row has them
        places = near[free[near]][: most[row]]
        if len(places) < least[row]:
            return None
        mass = float(np.add.reduce(chance[places[:FIRST_TITLES]]))
        return Placed(row, base[row] + worth.slope * math.log(mass + FLOOR), places)

    def best() -> Placed | None:
        """The floating row of the highest score; its bound is then that score."""
        looked: dict[int, Placed | None] = {}
        while len(bound) and bound[at := int(bound.argmax())] > -np.inf:
            if at in looked:
                return looked[at]
            looked[at] = found = now(by_id[at])
            bound[at] = -np.inf if found is None else found.score
        return None

    base, taken = worth.base.tolist(), 0
    page: list[Placed] = []
    while len(page) < rows:
        held = next((found for i in pinned if (found := now(i))), None)
        placed = held if held and (specs[held.row].pin or 0) <= len(page) else best()
        placed = placed or held
        if placed is None:
            break
        if fill is not None:
            left = order[placed.row][free[order[placed.row]]]
            lead = int(np.isin(titles[left], specs[placed.row].first).sum())
            placed = placed._replace(places=fill(left, lead, len(placed.places)))
        if floats[placed.row]:
            bound[place_of[placed.row]] = -np.inf
        else:
            pinned.remove(placed.row)
        free[placed.places] = False
        taken += len(placed.places)
        page.append(placed)
    return page


def ordered_places(specs: tuple[RowSpec, ...], eligible: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """Places int64 [R, L] of each row's eligible candidates [R, K] in the row's order, K past the end: the titles it
    names first, then best first."""
    place = np.flatnonzero(np.ascontiguousarray(eligible))
    size = np.count_nonzero(eligible, axis=1)
    place -= np.repeat(np.arange(len(specs)) * len(titles), size)
    order = np.full((len(specs), int(size.max(initial=0))), len(titles))
    order[np.arange(order.shape[1]) < size[:, None]] = place  # both go row by row
    for i, spec in enumerate(specs):
        if spec.first:
            rank = {title: n for n, title in enumerate(spec.first)}
            own = order[i, : size[i]]
            order[i, : size[i]] = sorted(own.tolist(), key=lambda at: rank.get(int(titles[at]), len(rank)))
    return order


def first_mass(order: np.ndarray, most: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Summed chance [R] of each row's first FIRST_TITLES titles, or first `most` [R] if that is less.

    order [R, L] from `ordered_places`; chance [K+1], 0 at the end, which is no title.
    """
    near = order[:, :FIRST_TITLES]
    return np.einsum("rl,rl->r", chance[near], np.arange(near.shape[1]) < most[:, None])
