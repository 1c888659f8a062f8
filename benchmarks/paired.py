"""Differences of ranked lists, member by member: what each gains, and in which interval the mean difference lies."""

from __future__ import annotations

import numpy as np

CUTOFF = 10


def gain(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of each list, float64: ranks int64 of the one held-out title, from 0."""
    return np.where(ranks < CUTOFF, 1 / np.log2(ranks + 2.0), 0.0)


def difference(ours: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Mean of ours − base, float64 [seeds, B], with a 95 % interval that holds for other members and other seeds:
    two-way clustered variance (Cameron, Gelbach and Miller 2011), at least that over members. One seed: over members
    alone. What has no seed stands in one line [1, B], for every seed."""
    each = ours - base
    seeds, members = each.shape
    variance = by_member = each.mean(0).var(ddof=1) / members
    if seeds > 1:
        by_seed = each.mean(1).var(ddof=1) / seeds
        variance = max(by_member, by_member + by_seed - each.var(ddof=1) / each.size)
    half = 1.96 * variance**0.5
    return {"mean": float(each.mean()), "from": float(each.mean() - half), "to": float(each.mean() + half)}
