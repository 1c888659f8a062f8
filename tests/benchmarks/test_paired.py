"""Intervals of differences hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from frontrow.benchmarks.paired import over_worlds


def test_a_members_values_count_as_one() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    apart, together = over_worlds([values], [np.arange(4)]), over_worlds([values], [np.array([0, 0, 1, 1])])
    assert apart["mean"] == together["mean"] == 0.5
    assert together["to"] - together["mean"] == pytest.approx(2**0.5 * (apart["to"] - apart["mean"]))


@pytest.mark.parametrize("between", [0.0, 0.05, 0.3])
def test_intervals_over_worlds_hold_the_truth_nine_times_in_ten(between: float) -> None:
    """Two visits of each member, which are alike; three worlds that differ by `between`, of a true mean of 0."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        worlds = []
        for _ in range(3):
            member = np.repeat(rng.normal(size=100), 2)
            worlds.append(between * rng.normal() + member + 0.5 * rng.normal(size=200))
        found = over_worlds(worlds, [np.repeat(np.arange(100), 2)] * 3)
        held += found["from"] <= 0 <= found["to"]
    assert 0.9 <= held / 400 <= 0.99
