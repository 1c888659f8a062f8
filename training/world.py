"""The simulated world: members, titles, homepages and what came of them. SIMULATED: no number from it is about people.

No open data set has device, canvas, duration, locale and page impressions together. Here they are, as a log in the
public event shape, with the truth behind it: what any page is worth at any visit, exactly. world_population.py has who
lives there, world_choice.py the choice model with its formulas, world_pages.py the pages.

    world = simulate(WorldConfig(seed=0, members=2000, titles=2000, days=60))
    world.write(Path("data/simulated"))                # events, titles, impressions; then frontrow train --data …
    some = world.visits.take(np.arange(100))           # of the log; or world.visit(7, world.end, "TV", "en-US")
    world.page_value(some, world.oracle_page(some))    # chance of an enjoyed play, float64 [100]

A visit is one look at the homepage: what is not played from it may be searched for. The clock is every member's local
time. Evaluate on seeds that nothing was tuned on, beside `oracle_page` and `random_page`.
Shape letters: B members, N titles, V visits, T plays, E events, R rows, C titles per row, Q rows to choose from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import world_pages
from .data import write_dataset
from .world_choice import FROZEN_SINCE, Outcomes, mood_chances, page_outcomes
from .world_log import ACTIONS, Events, Homepages, Life, WorldConfig, collected, drawn, events_of, search
from .world_pages import ROW_IDS, ROWS, Shelves
from .world_population import (
    DAY,
    DEVICES,
    GENRES,
    LANGUAGES,
    LOCALES,
    START,
    Members,
    Memory,
    Plays,
    Titles,
    Visits,
    populate,
)  # fmt: skip

_CELLS = 50_000_000  # of progress, members × titles, in memory at once while simulating
_AT_ONCE = 256  # visits whose pages are valued together
_MASK = 500_000  # visits × titles whose eligibility is known together


@dataclass(frozen=True)
class World:
    """A simulated log, and the truth behind it."""

    config: WorldConfig
    titles: Titles
    members: Members
    shelves: Shelves
    visits: Visits
    homepages: Homepages
    plays: Plays
    events: Events

    @property
    def end(self) -> int:
        """Seconds: when the simulated days are over."""
        return START + self.config.days * DAY

    def visit(
        self,
        member: int | Sequence[int] | np.ndarray,
        time: int | Sequence[int] | np.ndarray,
        device: str | Sequence[str],
        locale: str | Sequence[str],
    ) -> Visits:
        """Visits, real or not, by public names; single values stand for all. Raises ValueError naming the value."""
        wanted = np.atleast_1d(member), np.atleast_1d(time), *map(np.atleast_1d, (device, locale))
        member, time, *names = np.broadcast_arrays(*wanted)
        codes = []
        for name, given, known in zip(("device", "locale"), names, (DEVICES, LOCALES), strict=True):
            if strange := sorted(set(given.tolist()) - set(known)):
                raise ValueError(f"{name} is {strange[0]!r}; give one of {', '.join(known)}")
            codes.append(np.array([known.index(value) for value in given.tolist()], np.int8))
        return self._checked(Visits(member.astype(np.int64), time.astype(np.int64), *codes))

    def memory(self, visits: Visits) -> Memory:
        """What each visit's member did before it; takes 2 bytes per visit and title."""
        return Memory.of(self.plays, visits, self.titles)

    def outcomes(self, visits: Visits, pages: np.ndarray) -> Outcomes:
        """What pages of title ids [V, R, C] (−1: none) lead to at visits [V], exactly. A title that stands twice counts
        at its first place only; one not out yet or not available counts nowhere. Raises ValueError."""
        pages = np.asarray(pages)
        if pages.ndim != 3 or len(pages) != len(visits) or not np.issubdtype(pages.dtype, np.integer):
            raise ValueError(
                f"pages have shape {pages.shape} and type {pages.dtype}; give integers [{len(visits)}, R, C]"
            )
        if ((pages < -1) | (pages >= len(self.titles))).any():
            strange = pages[(pages < -1) | (pages >= len(self.titles))][0]
            raise ValueError(f"pages have title {strange}; ids go from 0 to {len(self.titles) - 1}, −1 is no title")
        found = [
            page_outcomes(self.titles, self.members, memory, some, pages[piece])
            for piece, some, memory in self._pieces(visits)
        ]
        return Outcomes(*(np.concatenate([getattr(o, f.name) for o in found]) for f in fields(Outcomes)))

    def page_value(self, visits: Visits, pages: np.ndarray) -> np.ndarray:
        """The probability float64 [V] that a visit leads to an enjoyed play from its page [V, R, C]; see `outcomes`."""
        return self.outcomes(visits, pages).enjoyed

    def eligible(self, visits: Visits) -> np.ndarray:
        """bool [V, Q, N]: which titles may stand in which of ROW_IDS."""
        return self.shelves.eligible(self._checked(visits), self.memory(visits))

    def oracle_page(
        self, visits: Visits, rows: int | None = None, columns: int | None = None, eligible: np.ndarray | None = None
    ) -> np.ndarray:
        """Titles int32 [V, R, C] by the truth, greedily (`world_pages.oracle_page`). eligible: bool [V, Q, N] of other
        rows than the world's, for an oracle over what a model's own rows allow."""
        shape = rows or self.config.rows, columns or self.config.columns
        return np.concatenate([
            world_pages.oracle_page(self.titles, self.members, memory, some, allowed, *shape)
            for some, memory, allowed in self._with_eligible(visits, eligible)
        ])  # fmt: skip

    def random_page(
        self, visits: Visits, rng: np.random.Generator, rows: int | None = None, columns: int | None = None,
        eligible: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Titles int32 [V, R, C]: random rows of random titles, from what `oracle_page` may take."""
        shape = rows or self.config.rows, columns or self.config.columns
        return np.concatenate([
            world_pages.random_page(allowed, *shape, rng)
            for _, _, allowed in self._with_eligible(visits, eligible)
        ])  # fmt: skip

    def logging_page(self, visits: Visits, rng: np.random.Generator) -> np.ndarray:
        """Titles int32 [V, R, C]: another draw of the policy that made the log."""
        shape = self.config.rows, self.config.columns
        return np.concatenate([
            self.shelves.logging_page(some, memory, np.arange(len(some)), *shape, rng)[0]
            for _, some, memory in self._pieces(visits)
        ])  # fmt: skip

    def searched(self, visits: Visits, rng: np.random.Generator) -> np.ndarray:
        """Titles int64 [V] that members would search for and find at visits, −1 for none: another draw of what made the
        log's searches."""
        found = []
        for _, some, memory in self._pieces(visits):
            mood = drawn(mood_chances(self.members, some), rng)[:, None]
            found.append(search(self.titles, self.members, some, memory, np.arange(len(some)), mood, rng)[0])
        return np.concatenate(found)

    def write(self, folder: Path) -> None:
        """events.parquet and titles.parquet as `load_dataset` reads them, impressions.parquet and world.json.

        impressions: page_id (of one visit), member_id, timestamp, device, locale, row_position and title_position (0 is
        first; `canvas` of an event names the same row), row_id, row_label, title_id, explored (the row's titles were
        not its most popular), played.
        """
        write_dataset(folder, self._event_table(), self._title_table())
        scratch = folder / "impressions.parquet.tmp"
        with pq.ParquetWriter(scratch, self._impressions(slice(0, 0)).schema) as writer:
            for begin in range(0, len(self.visits), 20_000):
                writer.write_table(self._impressions(slice(begin, begin + 20_000)))
        scratch.replace(folder / "impressions.parquet")
        about = {"simulated": True, "config": asdict(self.config), "choice_frozen_since": FROZEN_SINCE,
                 "rows": ROWS, "visits": len(self.visits), "events": len(self.events)}  # fmt: skip
        (folder / "world.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")

    def _event_table(self) -> pa.Table:
        events, plays = self.events, self.plays.take(self.events.play)
        title, visits = plays.title, self.visits.take(plays.visit)
        what = {
            "action_type": _coded(events.action, ACTIONS),
            "entity_id": pa.array(title.astype(np.int64)),
            "entity_type": _coded(self.titles.episodes[title] > 1, ("movie", "show")),
            "duration_watched_seconds": pa.array(np.rint(events.seconds), from_pandas=True),
        }
        canvases = ("search", *(f"home_page_row_{r}" for r in range(self.config.rows)))
        where = {
            "device": _coded(visits.device, DEVICES),
            "canvas": _coded(plays.row + 1, canvases),
            "locale": _coded(visits.locale, LOCALES),
        }
        return pa.table({
            "member_id": plays.member,
            "timestamp": events.time,
            "what": pa.StructArray.from_arrays(list(what.values()), list(what)),
            "where": pa.StructArray.from_arrays(list(where.values()), list(where)),
        })  # fmt: skip

    def _title_table(self) -> pa.Table:
        titles = self.titles
        release = titles.release.astype("datetime64[s]")
        return pa.table({
            "title_id": np.arange(len(titles)),
            "name": [_name(i) for i in range(len(titles))],
            "year": release.astype("datetime64[Y]").astype(np.int64) + 1970,
            "release": pa.array(release.astype("datetime64[D]")),
            "genres": [[GENRES[g] for g in pair if g >= 0] for pair in titles.genres.tolist()],
            "entity_type": ["show" if e > 1 else "movie" for e in titles.episodes.tolist()],
            "minutes": titles.minutes.astype(np.int64),
            "episodes": titles.episodes.astype(np.int64),
            "language": [LANGUAGES[code] for code in titles.language.tolist()],
            "locales": [[LOCALES[code] for code in np.flatnonzero(a)] for a in titles.available.T],
        })  # fmt: skip

    def _impressions(self, piece: slice) -> pa.Table:
        """The impressions of some visits, in the order of their pages."""
        page, rows = self.homepages.titles[piece], self.homepages.rows[piece]
        v, r, c = np.nonzero(page >= 0)
        visits, row = self.visits.take(piece).take(v), rows[v, r]
        labels = tuple(dict.fromkeys(ROWS.values()))
        label = np.array([labels.index(name) for name in ROWS.values()])
        return pa.table({
            "page_id": np.arange(len(self.visits))[piece][v],
            "member_id": visits.member,
            "timestamp": visits.time,
            "device": _coded(visits.device, DEVICES),
            "locale": _coded(visits.locale, LOCALES),
            "row_position": r.astype(np.int16),
            "title_position": c.astype(np.int16),
            "row_id": ROW_IDS[row],
            "row_label": _coded(label[row], labels),
            "title_id": page[v, r, c].astype(np.int64),
            "explored": self.homepages.explored[piece][v, r],
            "played": self.homepages.played[piece][v] == r * page.shape[2] + c,
        })  # fmt: skip

    def _pieces(self, visits: Visits) -> Iterator[tuple[slice, Visits, Memory]]:
        self._checked(visits)
        size = max(1, min(_AT_ONCE, _MASK // len(self.titles)))
        for begin in range(0, max(1, len(visits)), size):
            piece = slice(begin, begin + size)
            yield piece, visits.take(piece), self.memory(visits.take(piece))

    def _with_eligible(
        self, visits: Visits, eligible: np.ndarray | None
    ) -> Iterator[tuple[Visits, Memory, np.ndarray]]:
        shape = () if eligible is None else eligible.shape
        if eligible is not None and (len(shape) != 3 or (shape[0], shape[2]) != (len(visits), len(self.titles))):
            raise ValueError(f"eligible has shape {shape}; give bool [{len(visits)}, rows, {len(self.titles)}]")
        for piece, some, memory in self._pieces(visits):
            yield some, memory, self.shelves.eligible(some, memory) if eligible is None else eligible[piece]

    def _checked(self, visits: Visits) -> Visits:
        # A visit begins late where the member is still watching, so the last ones may begin a little after the end.
        limits = {"member": (0, len(self.members) - 1), "time": (START, self.end + DAY),
                  "device": (0, len(DEVICES) - 1), "locale": (0, len(LOCALES) - 1)}  # fmt: skip
        for name, (low, high) in limits.items():
            values = getattr(visits, name)
            if (wrong := values[(values < low) | (values > high)]).size:
                raise ValueError(f"a visit has {name} {wrong[0]}; in this world it goes from {low} to {high}")
        return visits


def simulate(config: WorldConfig, on_progress: Callable[[int, int], None] = lambda done, total: None) -> World:
    """The world of a config. on_progress: called with how many of how many visits are done. Raises ValueError if the
    world is so small that nobody visits."""
    nature, behaviour, logging = np.random.SeedSequence(config.seed).spawn(3)
    rng = np.random.default_rng(nature)
    titles, members = populate(config.members, config.titles, config.days, rng)
    shelves = Shelves(titles, members, rng)
    size = max(1, _CELLS // config.titles)
    groups = [np.arange(b, min(b + size, config.members)) for b in range(0, config.members, size)]
    lives = [
        Life(config, titles, members, shelves, group, np.random.default_rng(seed))
        for group, seed in zip(groups, behaviour.spawn(len(groups)), strict=True)
    ]
    total, done = sum(len(life.plan) for life in lives), 0
    for life in lives:
        for count in life.live():
            done += count
            on_progress(done, total)
    if total == 0:
        raise ValueError(f"nobody visited: {config.members} members in {config.days} days; give more of either")
    visits, homepages, plays = collected([step for life in lives for step in life.steps])
    events = events_of(plays, members, np.random.default_rng(logging))
    return World(config, titles, members, shelves, visits, homepages, plays, events)


def _coded(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int8)), list(values))


_FIRST = (
    "Silent", "Golden", "Broken", "Hidden", "Last", "Paper", "Winter", "Burning", "Electric", "Crooked", "Distant",
)  # fmt: skip
_SECOND = ("Harbour", "Letter", "Garden", "Empire", "River", "Signal", "Orchard", "Witness", "Machine", "Island")


def _name(title: int) -> str:
    """A name that no other title has: `The Paper Orchard 3`."""
    turn, within = divmod(title, len(_FIRST) * len(_SECOND))
    name = f"The {_FIRST[within % len(_FIRST)]} {_SECOND[within // len(_FIRST)]}"
    return name if turn == 0 else f"{name} {turn + 1}"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m frontrow.training.world FOLDER`: write a world; 0 if it was written."""
    parser = argparse.ArgumentParser(prog="python -m frontrow.training.world", description="Write a simulated world.")
    parser.add_argument("folder", type=Path, help="where the files go; then `frontrow train --data FOLDER`")
    about = {"seed": "another world for each", "members": "who live there", "titles": "of the catalogue",
             "days": "that are simulated", "rows": "of each homepage", "columns": "titles in a row"}  # fmt: skip
    for f in fields(WorldConfig):
        parser.add_argument(f"--{f.name}", type=int, default=f.default, help=f"{about[f.name]} (default {f.default})")
    given = vars(parser.parse_args(arguments))
    folder = given.pop("folder")
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    try:
        with Progress(transient=True, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("simulating", total=None)
            config = WorldConfig(**given)
            world = simulate(config, lambda done, total: progress.update(task, completed=done, total=total))
            progress.update(task, description="writing")
            world.write(folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(world.visits):,} simulated visits with {len(world.events):,} events in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
