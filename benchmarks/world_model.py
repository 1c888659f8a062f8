"""The simulated worlds that benchmarks share, and the model trained on each, once: `runs/world/seed-N`.

World seeds below 100 are for trying things out; EVALUATION_SEEDS are looked at for results only.

    python -m frontrow.benchmarks.world_model    how fast a world is simulated → results/world.json
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..foundation.model import FoundationModel
from ..foundation.schema import default_schema
from ..training.data import Dataset, load_dataset
from ..training.recipe import recipe, size_for
from ..training.runs import differences, load_run, train_run
from ..training.train import Progress
from ..training.world import World, simulate
from ..training.world_log import WorldConfig
from .command import command
from .provenance import provenance, write_result

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
    _, config = recipe(data.schema, size_for(len(data.events.ids)))
    config = replace(config, epochs=epochs)
    if (folder / "run" / "run.json").is_file() and differences(folder / "run", data, config):
        shutil.rmtree(folder / "run")
    train_run(folder / "run", folder / "data", data, config, on_progress, resume=True)
    return load_run(folder / "run")


def markdown(found: dict[str, Any]) -> str:
    """The section of quality.md."""
    size, rates = found["config"], [run["events_per_second"] for run in found["runs"]]
    return (
        f"{size['members']:,} members, {size['titles']:,} titles, {size['days']} days: "
        f"{found['runs'][0]['events']:,} events, simulated at {statistics.median(rates):,.0f} events/s (median of "
        f"{len(rates)} seeds, {min(rates):,.0f} to {max(rates):,.0f}), {found['device']}, one process."
    )


def main() -> None:
    runs = []
    for seed in range(5):
        started = time.perf_counter()
        world = world_of(seed)
        seconds = time.perf_counter() - started
        count = len(world.events)
        runs.append({"seed": seed, "events": count, "events_per_second": round(count / seconds)})
        print(runs[-1], flush=True)
    command = "python -m frontrow.benchmarks.world_model"
    print(write_result("world", {"config": asdict(CONFIG), "runs": runs, **provenance(command)}))


if __name__ == "__main__":
    with command("world_model", __doc__) as parser:
        parser.parse_args()
        main()
