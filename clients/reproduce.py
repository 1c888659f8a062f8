"""`frontrow reproduce`: the table of a data set, from one command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ..benchmarks.reproduce import SEEDS, prepare, reproduce, result_file
from ..training.data import event_count, load_dataset
from ..training.interactions import read_interactions
from ..training.recipe import Size, recipe, size_for
from ..training.train import Progress
from . import show
from .cli import console, errors, print_json


def run_reproduce(
    name: str | None,
    source: Path | None,
    interactions: Path | None,
    titles: Path | None,
    seeds: list[int] | None,
    epochs: int | None,
    size: Size | None,
    as_json: bool,
) -> None:
    """Trains, prints and writes. Raises ValueError for what does not go together."""
    name = name or (interactions.stem if interactions else None)
    if name is None or (name in SEEDS) == (interactions is not None):
        raise ValueError(
            f"give one of {', '.join(SEEDS)}, or --interactions FILE and a name that is not one of them: "
            "frontrow reproduce NAME --interactions FILE"
        )
    if titles is not None and interactions is None:
        raise ValueError("--titles goes with --interactions")
    given = read_interactions(interactions, titles) if interactions else None
    folder, schema, order = prepare(name, source, given)
    schema, config = recipe(schema, size or size_for(event_count(folder)))
    data = load_dataset(folder, schema)
    config = config if epochs is None else replace(config, epochs=epochs)

    def bar(seed: int) -> AbstractContextManager[Callable[[Progress], None]]:
        if not as_json:
            most = f"at most {config.epochs} epochs"
            errors.print(f"{name}, seed {seed}: {most}; stopped, the same command goes on", highlight=False)
        return show.training_bar(errors, config.epochs, quiet=as_json, of=f"seed {seed}, ")

    # Where somebody keeps their files says nothing about the result.
    command = "frontrow " + shlex.join("FOLDER" if word == str(source) else word for word in sys.argv[1:])
    trial = epochs is not None or size is not None
    result = reproduce(name, folder, data, order, seeds or SEEDS.get(name, [0]), config, command, bar, trial)
    if as_json:
        print_json(result)
    else:
        show.reproduction(console, result)
        console.print(f"result: {result_file(name, trial)}", soft_wrap=True, highlight=False)
