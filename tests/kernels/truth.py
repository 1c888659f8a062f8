"""What the ranking ops should return, by loops in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

INF = math.inf


def ranked(
    vectors: Tensor, titles: Tensor, lists: Sequence[Sequence[int]], k: int,
    scales: Tensor | None = None, bias: Tensor | None = None, exclude: Sequence[Sequence[bool]] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:  # fmt: skip
    """For each vector [D] and its list of titles the k best: indices and scores; ties to the smaller index."""
    indices, scores = [], []
    for i, (vector, listed) in enumerate(zip(vectors.double(), lists, strict=True)):
        found = []
        for place, title in enumerate(listed):
            if title < 0 or (exclude is not None and exclude[i][place]):
                continue
            score = float(vector @ titles[title].double())
            score = score * float(scales[title]) if scales is not None else score
            score = score + float(bias[title]) if bias is not None else score
            if not math.isnan(score) and score != -INF:
                found.append((-score, title))
        found = sorted(found)[:k]
        indices.append([title for _, title in found] + [-1] * (k - len(found)))
        scores.append([-score for score, _ in found] + [-INF] * (k - len(found)))
    return indices, scores
