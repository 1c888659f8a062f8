"""The simulated worlds that benchmarks share, and the model trained on each, once: `runs/world/seed-N`.

World seeds below 100 are for trying things out; EVALUATION_SEEDS are looked at for results only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..foundation.model import FoundationModel
from ..foundation.schema import default_schema
from ..training.data import Dataset, load_dataset
from ..training.runs import differences, load_run, train_run
from ..training.train import Progress
from ..training.world import World, simulate
from ..training.world_log import WorldConfig
from .reproduce import recipe

RUNS = Path("runs/world")
EVALUATION_SEEDS = (101, 102, 103)
CONFIG = WorldConfig(members=2000, titles=2000, days=60)  # about 240,000 events
EPOCHS = 8


def world_of(seed: int, config: WorldConfig = CONFIG) -> World:
    """The world of a seed; some seconds."""
    return simulate(replace(config, seed=seed))


def trained_on(
    world: World, on_progress: Callable[[Progress], None] = lambda progress: None, epochs: int = EPOCHS
) -> tuple[FoundationModel, Dataset]:
    """The recipe's model of a world, and its data (the entity_id of a title is its index in the world).

    A run that stopped goes on, a finished one is read, one of another config or recipe is replaced.
    """
    folder = RUNS / f"seed-{world.config.seed}"
    world.write(folder / "data")
    data = load_dataset(folder / "data", default_schema())
    _, config = recipe(data.schema, len(data.events.ids))
    config = replace(config, epochs=epochs)
    if (folder / "run" / "run.json").is_file() and differences(folder / "run", data, config):
        shutil.rmtree(folder / "run")
    train_run(folder / "run", folder / "data", data, config, on_progress, resume=True)
    return load_run(folder / "run")
