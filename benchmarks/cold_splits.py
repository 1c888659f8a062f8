"""Titles held out of training entirely: what a model may learn from, and which events about new titles are asked for.

Shape letters: N titles, T events, Q events asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..foundation.schema import Field, Schema, default_schema
from ..training.batches import trained_titles
from ..training.data import Dataset, load_dataset, read_table, write_dataset
from ..training.movielens import fetch_movielens_100k
from ..training.world import simulate
from ..training.world_log import WorldConfig
from ..training.world_population import DAY, START

RUNS = Path("runs/cold")
PER_MEMBER = 3
CUT_DAY = 45
WORLD = WorldConfig(members=2000, titles=2000, days=60)


@dataclass(frozen=True)
class Split:
    """train: what the model may learn from. full: the same titles and vocabularies, all events. new: bool [N]. asked:
    int64 [Q], the events in `full` about new titles that are asked for; warm: as many about others, of the same time.
    """

    folder: Path
    train: Dataset
    full: Dataset
    new: np.ndarray
    asked: np.ndarray
    warm: np.ndarray


def stratified(plays: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool [N]: a share of the titles with plays, drawn from each of ten strata by their number of plays."""
    chosen = np.zeros(len(plays), bool)
    played = np.flatnonzero(plays)
    for stratum in np.array_split(played[np.argsort(-plays[played], kind="stable")], 10):
        chosen[rng.choice(stratum, max(1, round(share * len(stratum))), replace=False)] = True
    return chosen


def newest_per_member(data: Dataset, events: np.ndarray) -> np.ndarray:
    """Positions int64 [Q] of the newest PER_MEMBER of each member's events that are set in bool [T]."""
    positions = np.flatnonzero(events)
    member = np.searchsorted(data.events.offsets, positions, side="right") - 1
    ends = np.append(np.flatnonzero(np.diff(member)), len(member) - 1)
    after = np.repeat(ends, np.diff(np.append(-1, ends))) - np.arange(len(member))
    return positions[after < PER_MEMBER]


def movielens_split(seed: int) -> Split:
    source = fetch_movielens_100k(Path("data/movielens-100k"))
    full = load_dataset(source, default_schema())
    plays = np.bincount(full.title_indices(), minlength=len(full.titles))
    new = stratified(plays, 0.1, np.random.default_rng(seed))
    folder = RUNS / f"ml-100k-{seed}" / "data"
    events = read_table(source / "events.parquet")
    cold = pc.is_in(pc.struct_field(events["what"], "entity_id"), pa.array(full.titles.ids[new]))  # type: ignore[attr-defined]
    write_dataset(folder, events.filter(pc.invert(cold)), read_table(source / "titles.parquet"))  # type: ignore[attr-defined]
    train = load_dataset(folder, full.schema)
    last = np.zeros(len(full.events.ids), bool)
    last[full.events.offsets[1:] - 1] = True
    index = full.title_indices()
    warm = last & ~new[index]  # where the last event of all is about a new title, the member is asked for that only
    return _checked(Split(folder, train, full, new, newest_per_member(full, new[index]), np.flatnonzero(warm)))


def world_schema() -> Schema:
    """The default one, and what else the simulated catalogue knows of a title before anybody has played it."""
    schema = default_schema()
    more = (
        Field("kind", "title.entity_type", "category", "action", 8),
        Field("language", "title.language", "category", "action", 8),
        Field("minutes", "title.minutes", "number", "action", 8, edges=(20, 30, 45, 60, 90, 110, 130)),
        Field("locales", "title.locales", "categories", "action", 16, slots=6),
    )
    return replace(schema, title_fields=(*schema.title_fields, *more))


def first_plays(events: pa.Table) -> pa.Table:
    """The first `play` of each member of each title, in order of (member, time): what was discovered when."""
    what = events["what"]
    played = pc.equal(pc.struct_field(what, "action_type").cast(pa.string()), "play")  # type: ignore[attr-defined]
    plays = events.filter(played)
    title = pc.struct_field(plays["what"], "entity_id").to_numpy()  # type: ignore[attr-defined]
    _, first = np.unique(plays["member_id"].to_numpy() * (title.max() + 1) + title, return_index=True)
    return plays.take(np.sort(first))


def world_split(seed: int) -> Split:
    world = simulate(replace(WORLD, seed=seed))
    folder = RUNS / f"world-{seed}"
    world.write(folder / "all")
    events, titles = first_plays(read_table(folder / "all" / "events.parquet")), folder / "all" / "titles.parquet"
    cut = START + CUT_DAY * DAY
    write_dataset(folder / "full", events, read_table(titles))
    write_dataset(folder / "data", events.filter(pc.less(events["timestamp"], cut)), read_table(titles))  # type: ignore[attr-defined]
    full, train = (load_dataset(folder / name, world_schema()) for name in ("full", "data"))
    new = (world.titles.release >= cut) & ~trained_titles(train)
    index, late = full.title_indices(), full.events.timestamp >= cut
    asked = newest_per_member(full, late & new[index])
    warm = newest_per_member(full, late & trained_titles(train)[index])
    return _checked(Split(folder / "data", train, full, new, asked, warm))


def _checked(split: Split) -> Split:
    for name, vocabulary in split.full.vocabularies.items():
        assert vocabulary.values == split.train.vocabularies[name].values, f"{name} is encoded in two ways"
    assert not (trained_titles(split.train) & split.new).any()
    return split


SPLITS = {"ml-100k": movielens_split, "world": world_split}
