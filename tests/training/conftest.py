"""The simulated world that several tests look at."""

from __future__ import annotations

import pytest
from frontrow.training.world import World, simulate
from small_world import SMALL


@pytest.fixture(scope="session")
def world() -> World:
    return simulate(SMALL)
