"""Two axes: rows down the page by row score, titles across each row by title score; a title once per page.

Going down the page, the next row is the one whose first titles, of those that no row above shows, are likeliest to
hold what the member wants; it takes its best titles of those. A row that overlaps with those above falls behind as its
titles go, and no row's score is above that of the row before it.
Shape letters: R rows, C titles per row, K candidates, L longest row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rows import RowSpec

FIRST_TITLES = 8  # a row's score is about so many of its titles, or as many as the page shows
_FLOOR = 1e-6  # of a chance whose logarithm is taken


@dataclass(frozen=True)
class RowWorth:
    """A row's score, a logit: base [R] + slope · log of the summed chance [K] of its first titles; slope is at least 0.

    chance: of each candidate, that it is the next title: the title head's softmax over the candidates.
    """

    base: np.ndarray
    slope: float
    chance: np.ndarray


@dataclass(frozen=True)
class Placed:
    """A row on the page: its index in the row catalogue, its score there and places into the candidates, in order."""

    row: int
    score: float
    places: np.ndarray


def log_mass(mass: np.ndarray) -> np.ndarray:
    """Logarithm of summed chances, finite where a row has no title."""
    return np.log(mass + _FLOOR)


def assemble(
    specs: tuple[RowSpec, ...],
    worth: RowWorth,
    eligible: np.ndarray,
    titles: np.ndarray,
    rows: int,
    columns: int,
) -> list[Placed]:
    """Choose and fill at most `rows` rows of at most `columns` titles.

    eligible: bool [R, K], which candidate may stand in which row. titles: title ids int64 [K], candidates best first.
    Pinned rows stand at their place if they are filled; ties between rows go to the smaller row id. A row with fewer
    than min_titles (or `columns`, if that is less) is left out.
    """
    order = ordered_places(specs, eligible, titles)
    by_id = np.argsort(np.array([s.row_id for s in specs], np.int64))
    most, least = np.array([[min(columns, s.max_titles), min(columns, s.min_titles)] for s in specs]).reshape(-1, 2).T
    pinned = [i for _, _, i in sorted((s.pin, s.row_id, i) for i, s in enumerate(specs) if s.pin is not None)]
    floating = np.array([s.pin is None for s in specs], bool)
    size, left = eligible.sum(1), np.ones(len(specs), bool)
    free, taken = np.append(np.ones(len(titles), bool), False), 0  # the last is past the end of a row
    chance = np.append(worth.chance, 0.0)
    score = worth.base + worth.slope * log_mass(first_mass(order, free, most, chance, 0))
    page: list[Placed] = []
    while len(page) < rows:
        left &= size >= least  # rows only get shorter
        waiting = [i for i in pinned if left[i]]
        choice = left & floating
        if waiting and (not choice.any() or (specs[waiting[0]].pin or 0) <= len(page)):
            row = waiting[0]
        elif choice.any():
            row = int(by_id[np.where(choice, score, -np.inf)[by_id].argmax()])
        else:
            break
        places = order[row, free[order[row]]][: most[row]]
        page.append(Placed(row, float(score[row]), places))
        free[places], left[row] = False, False
        taken += len(places)
        lost = eligible[:, places].sum(1)
        size = size - lost
        changed = np.flatnonzero((lost > 0) & left)
        mass = first_mass(order[changed], free, most[changed], chance, taken)
        score[changed] = worth.base[changed] + worth.slope * log_mass(mass)
    return page


def ordered_places(specs: tuple[RowSpec, ...], eligible: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """Places int64 [R, L] of each row's eligible candidates [R, K] in the row's order, K past the end: the titles it
    names first, then best first."""
    row, place = np.nonzero(eligible)
    size = eligible.sum(1)
    order = np.full((len(specs), int(size.max(initial=0))), len(titles))
    order[row, np.arange(len(row)) - (np.cumsum(size) - size)[row]] = place
    for i, spec in enumerate(specs):
        if spec.first:
            rank = {title: n for n, title in enumerate(spec.first)}
            own = order[i, : size[i]]
            order[i, : size[i]] = sorted(own.tolist(), key=lambda at: rank.get(int(titles[at]), len(rank)))
    return order


def first_mass(order: np.ndarray, free: np.ndarray, most: np.ndarray, chance: np.ndarray, taken: int) -> np.ndarray:
    """Summed chance [R] of each row's first FIRST_TITLES free titles, or first `most` [R] if that is less.

    order [R, L] from `ordered_places`; free bool and chance [K+1], the last for no title; taken: how many of
    the K are not free.
    """
    near = order[:, : FIRST_TITLES + taken]  # so many hold the first free ones
    there = free[near]
    there &= there.cumsum(1, dtype=np.int32) <= np.minimum(most, FIRST_TITLES)[:, None]
    return (chance[near] * there).sum(1)
