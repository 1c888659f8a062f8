"""Differences of ranked lists, member by member: what each gains, and in which interval the mean difference lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CUTOFF = 10
_STUDENT = (1.96, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t of a 95 % interval by the number of seeds; one seed adds nothing."""


def gain(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of each list, float64: ranks int64 of the one held-out title, from 0."""
    return np.where(ranks < CUTOFF, 1 / np.log2(ranks + 2.0), 0.0)


def difference(ours: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Mean of ours − base, float64 [seeds, B], with a 95 % interval that holds for other members and other seeds:
    two-way clustered variance (Cameron, Gelbach and Miller 2011), at least that over members. What seeds add counts by
    Student's t: they are few. One seed: over members alone. What has no seed stands in one line [1, B], for every
    seed."""
    each = ours - base
    seeds, members = each.shape
    by_member, beyond = each.mean(0).var(ddof=1) / members, 0.0
    if seeds > 1:
        beyond = max(0.0, each.mean(1).var(ddof=1) / seeds - each.var(ddof=1) / each.size)
    half = (1.96**2 * by_member + _STUDENT[min(seeds, len(_STUDENT)) - 1] ** 2 * beyond) ** 0.5
    return {"mean": float(each.mean()), "from": float(each.mean() - half), "to": float(each.mean() + half)}


def over_worlds(values: Sequence[np.ndarray], members: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean of values, float64 [V] of each world, with a 95 % interval that holds for other members and other worlds:
    the values of a member (of `members` int64 [V]) are one cluster, and what worlds differ by beyond that counts by
    Student's t. One world: over members alone."""
    every = np.concatenate(values)
    mean, spread = float(every.mean()), 0.0
    for own, member in zip(values, members, strict=True):
        total = np.bincount(np.unique(member, return_inverse=True)[1], own - mean)
        spread += float(np.square(total).sum())
    by_member, beyond = spread / len(every) ** 2, 0.0
    if len(values) > 1:
        between = float(np.var([own.mean() for own in values], ddof=1)) / len(values)
        beyond = max(0.0, between - by_member)
    half = float((1.96**2 * by_member + _STUDENT[min(len(values), len(_STUDENT)) - 1] ** 2 * beyond) ** 0.5)
    return {"mean": mean, "from": mean - half, "to": mean + half}
