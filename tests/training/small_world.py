"""A small simulated world for the tests of its log and of its truth."""

from __future__ import annotations

import numpy as np
from frontrow.training.world import World, WorldConfig
from frontrow.training.world_population import DAY, START, Visits

SMALL = WorldConfig(seed=5, members=300, titles=400, days=40)


def some(world: World, count: int, seed: int = 0) -> Visits:
    """Visits of the log, late enough that members remember something."""
    late = np.flatnonzero(world.visits.time > START + 10 * DAY)
    return world.visits.take(np.random.default_rng(seed).choice(late, count, replace=False))
