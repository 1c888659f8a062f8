"""What lists and whole pages are worth beside accuracy: diversity within and across rows, serendipity, exposure.

Titles are indices, −1 is none. How unlike two titles are is measured in ways that neither the model nor the page's dial
`diversity` (cosine of title vectors) works on, else the measure would praise what it is made of:
    genres    1 − |shared genres| / |genres of either| (Jaccard): what members themselves would call alike
    members   1 − members of both / √(members of one · members of the other) (cosine): whoever they are for
Diversity is the mean over pairs of titles (Ziegler et al. 2005): of one row, or of two different rows of a page.
Serendipity is the share of members whose list holds a title that was relevant and that no primitive recommender would
have shown: the useful part of RS \\ PM (Ge, Delgado-Battenfeld & Jannach 2010). The primitive ones are popularity and
item-item similarity, each with a list as long.
Shape letters: B members, N titles, R rows, C titles per row, G genres, P lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .baselines import interactions, item_item_scores, popularity_scores
from .batches import Part, training_events
from .data import Dataset
from .evaluate import CUTOFF, chunks, score_unseen

_PIECE = 256  # lists whose pairs are looked up together


def dissimilarities(data: Dataset) -> dict[str, np.ndarray]:
    """float32 [N, N] by name, from metadata and training events; NaN for a pair of which one has no genre.

    Takes 8 bytes a pair; raises TooLarge above 14,142 titles.
    """
    matrix = interactions(data)
    together = matrix.T @ matrix
    members = np.sqrt(np.diag(together))
    found = {"members": 1 - together / np.maximum(np.outer(members, members), 1)}
    several = [genres if isinstance(genres, list) else [] for genres in data.titles.metadata.get("genres", ())]
    if names := sorted({genre for genres in several for genre in genres}):
        has = np.array([[name in genres for name in names] for genres in several], np.float32)
        shared, size = has @ has.T, has.sum(1)
        either = size[:, None] + size - shared
        known = (size > 0)[:, None] & (size > 0)
        found["genres"] = np.where(known, 1 - shared / np.maximum(either, 1), np.nan).astype(np.float32)
    return found


def within(dissimilarity: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Mean over the pairs of titles of each list int [P, C], float64 [P]; NaN for a list of less than two."""
    count = lists.shape[1]
    pairs = np.triu(np.ones((count, count), bool), 1)
    return np.concatenate([_mean(dissimilarity, piece, pairs) for piece in _pieces(lists)])


def across(dissimilarity: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """Mean over the pairs of titles in different rows of each page int [B, R, C], float64 [B]; NaN for one row."""
    flat, row = pages.reshape(len(pages), -1), np.repeat(np.arange(pages.shape[1]), pages.shape[2])
    pairs = row[:, None] < row
    return np.concatenate([_mean(dissimilarity, piece, pairs) for piece in _pieces(flat)])


def _pieces(lists: np.ndarray) -> list[np.ndarray]:
    size = max(1, _PIECE * 64**2 // max(1, lists.shape[1] ** 2))
    return [lists[i : i + size] for i in range(0, max(1, len(lists)), size)]


def _mean(dissimilarity: np.ndarray, lists: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Mean over those `pairs` bool [C, C] of places of each list [P, C] at which both have a title."""
    values, title = dissimilarity[lists[:, :, None], lists[:, None]], lists >= 0
    there = pairs & title[:, :, None] & title[:, None] & ~np.isnan(values)
    count = there.sum((1, 2))
    total = np.where(there, values, 0).sum((1, 2), dtype=np.float64)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def gini(shown: np.ndarray, titles: int) -> float:
    """Of how often each title of the catalogue is shown: 0 if all are shown as often, near 1 if few take all places."""
    counts = np.sort(np.bincount(shown[shown >= 0].ravel(), minlength=titles))
    if not counts.sum():
        return 0.0
    rank = np.arange(1, titles + 1)
    return float((2 * rank - titles - 1) @ counts / (titles * counts.sum()))


def exposure(data: Dataset, shown: np.ndarray) -> dict[str, float]:
    """Who gets the places of lists or pages [B, …]: coverage and novelty_bits as in evaluate.py, gini."""
    titles, index = len(data.titles), data.title_indices()
    plays = np.bincount(index[training_events(data) & (index >= 0)], minlength=titles)
    share = (plays + 1) / (plays.sum() + titles)
    places = shown[shown >= 0]
    return {
        "coverage": len(np.unique(places)) / titles,
        "gini": gini(shown, titles),
        "novelty_bits": float(-np.log2(share[places]).mean()),
    }


def primitive_lists(data: Dataset, part: Part, length: int = CUTOFF) -> np.ndarray:
    """The titles int64 [B, 2 · length] that popularity and item-item similarity would show the evaluated members."""
    found = []
    for scorer in (popularity_scores(data, part), item_item_scores(data, part)):
        scored = (score_unseen(scorer, data, part, members)[0] for members in chunks(data))
        found.append(np.concatenate([np.argsort(-scores, axis=1, kind="stable")[:, :length] for scores in scored]))
    return np.concatenate(found, axis=1)


def serendipity(lists: np.ndarray, primitive: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of lists int [B, C] beside primitive ones int [B, P] and the next title int [B] of each member: serendipity; and
    unexpected, the share of the listed titles that the primitive ones lack."""
    there = lists >= 0
    expected = (lists[:, :, None] == primitive[:, None]).any(2)
    useful = (lists == targets[:, None]) & there & ~expected
    return {
        "serendipity": float(useful.any(1).mean()),
        "unexpected": float((there & ~expected).sum() / max(1, there.sum())),
    }


def of_lists(
    data: Dataset, lists: np.ndarray, targets: np.ndarray, primitive: np.ndarray, unlike: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """All of it for lists int [B, C] of titles in order."""
    return {
        **exposure(data, lists),
        **serendipity(lists, primitive, targets),
        **{f"within_{name}": _average(within(matrix, lists)) for name, matrix in unlike.items()},
    }


def of_pages(data: Dataset, pages: np.ndarray, unlike: Mapping[str, np.ndarray]) -> dict[str, float]:
    """All of it for pages int [B, R, C]: rows count as often as they are shown."""
    rows = pages.reshape(-1, pages.shape[2])
    found: dict[str, Any] = exposure(data, pages)
    for name, matrix in unlike.items():
        found[f"within_rows_{name}"] = _average(within(matrix, rows))
        found[f"across_rows_{name}"] = _average(across(matrix, pages))
    return found


def _average(values: np.ndarray | Sequence[float]) -> float:
    """Without the lists that have no pair."""
    some = np.asarray(values)[~np.isnan(values)]
    return float(some.mean()) if some.size else float("nan")
