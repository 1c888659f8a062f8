"""One dial from the best titles of a row to varied ones: maximal marginal relevance (Carbonell & Goldstein 1998).

A row's titles are picked one after the other, each the one of greatest
    (1 − diversity) · relevance − diversity · its greatest likeness to a title picked before
among the row's pool: its best POOL titles for each place to fill, so that variety never reaches down to what does not
suit the member at all. Relevance is the score, likeness the cosine of title vectors, which every catalogue has; both
are stretched to go from 0 to 1 within the pool, so that the dial means as much for any model. At 0 titles stand by
score; at 1 the best title comes first and then the least alike. Ties go to the greater score, then to the smaller id.
Which row comes next, and what its score says, is still by its best titles: the row ranker was trained on those.
Shape letters: K candidates, D vector width, P titles in the pool.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

POOL = 5

# (places int64 into the candidates, best first; how many of the first stay where they are; how many to show) → places
Fill = Callable[[np.ndarray, int, int], np.ndarray]


def varied(scores: np.ndarray, units: np.ndarray, diversity: float) -> Fill:
    """Rows filled with variety. scores: float32 [K] of the candidates, best first; units: their vectors float32 [K, D],
    of length 1; diversity: above 0, at most 1."""

    def fill(places: np.ndarray, lead: int, count: int) -> np.ndarray:
        pool = places[: lead + POOL * count]
        count = min(count, len(pool))
        if lead >= count:
            return pool[:count]
        own, vectors = scores[pool], units[pool]
        least, most = own[lead:].min(), own[lead:].max()
        value = (1 - diversity) * (own - least) / max(most - least, 1e-6)
        alike = vectors @ vectors.T  # [P, P]
        np.fill_diagonal(alike, alike.min())
        alike -= alike.min()
        alike *= diversity / max(alike.max(), 1e-6)
        picked = list(range(lead))
        value[picked] = -np.inf
        nearest = alike[:lead].max(0, initial=0.0)
        for _ in range(count - lead):
            best = int((value - nearest).argmax())
            picked.append(best)
            value[best] = -np.inf
            np.maximum(nearest, alike[best], out=nearest)
        return pool[picked]

    return fill


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 [N, D]; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
