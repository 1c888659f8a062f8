"""What every recommender must beat, on the same split: popularity, item-item and user-user collaborative filtering.

The same similarities feed the served candidate sources. Interactions and similarities are dense matrices of at most
2e8 cells (0.8 GB each): 200,000 members with 1,000 titles, but no more than 14,142 titles, or members for user-user.
Shape letters: B members, N titles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .batches import Part, target_positions, training_events
from .data import Dataset

NEIGHBOURS = 50
SHRINKAGE = 10.0
MOST_CELLS = 200_000_000


class TooLarge(ValueError):
    """A dense matrix would not fit; the message names its size and the limit."""


def _check_size(rows: int, columns: int, what: str) -> None:
    if rows * columns > MOST_CELLS:
        raise TooLarge(
            f"{what} would be a matrix of {rows:,} × {columns:,}; at most {MOST_CELLS:,} cells are supported"
        )


def interactions(data: Dataset, events: np.ndarray | None = None) -> np.ndarray:
    """float32 [B, N]: 1 where a member has an event about a title; of training events, or those in bool [T]."""
    used = training_events(data) if events is None else events
    index = data.title_indices()
    member = np.repeat(np.arange(len(data)), np.diff(data.events.offsets))
    used = used & (index >= 0)
    _check_size(len(data), len(data.titles), "members × titles")
    matrix = np.zeros((len(data), len(data.titles)), np.float32)
    matrix[member[used], index[used]] = 1.0
    return matrix


def item_similarity(matrix: np.ndarray) -> np.ndarray:
    """Shrunk cosine between titles float32 [N, N], zero diagonal (Sarwar et al. 2001; shrinkage as in Bell & Koren
    2007): co-occurrence / (√(n_i n_j) + 10)."""
    _check_size(matrix.shape[1], matrix.shape[1], "the similarity of titles")
    together = matrix.T @ matrix
    counts = np.diag(together).copy()
    np.fill_diagonal(together, 0.0)
    return together / (np.sqrt(np.outer(counts, counts)) + SHRINKAGE)


def user_similarity(matrix: np.ndarray) -> np.ndarray:
    """Cosine between members float32 [B, B], zero diagonal."""
    _check_size(len(matrix), len(matrix), "the similarity of members")
    together = matrix @ matrix.T
    counts = np.sqrt(np.diag(together))
    np.fill_diagonal(together, 0.0)
    return together / np.maximum(np.outer(counts, counts), 1.0)


def keep_largest(similarity: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
    """All but the `count` largest of each row set to 0."""
    if similarity.shape[1] <= count:
        return similarity
    least = np.partition(similarity, -count, axis=1)[:, -count, None]
    return np.where(similarity >= least, similarity, 0.0).astype(np.float32)


def popularity_scores(data: Dataset, part: Part) -> Callable[[np.ndarray], np.ndarray]:
    """The number of members with a training event about each title, the same for every member."""
    index, member = data.title_indices(), np.repeat(np.arange(len(data)), np.diff(data.events.offsets))
    used = training_events(data) & (index >= 0)
    once = np.unique(member[used] * len(data.titles) + index[used])
    plays = np.bincount(once % len(data.titles), minlength=len(data.titles)).astype(np.float32)
    return lambda members: np.tile(plays, (len(members), 1))


def _history(data: Dataset, part: Part, members: np.ndarray) -> np.ndarray:
    """float32 [B, N] of what the members saw before the held-out event."""
    before = np.zeros(len(data.events.ids), bool)
    for start, stop in zip(data.events.offsets[members], target_positions(data, members, part), strict=True):
        before[start:stop] = True
    return interactions(data, before)[members]


def item_item_scores(data: Dataset, part: Part) -> Callable[[np.ndarray], np.ndarray]:
    """Sum of the similarities of a title's 50 nearest titles that the member has seen."""
    similarity = keep_largest(item_similarity(interactions(data)))
    return lambda members: _history(data, part, members) @ similarity.T


def user_user_scores(data: Dataset, part: Part) -> Callable[[np.ndarray], np.ndarray]:
    """Sum of the similarities of the member's 50 nearest members who have seen the title."""
    matrix = interactions(data)
    similarity = keep_largest(user_similarity(matrix))
    return lambda members: similarity[members] @ matrix
