"""How the log of the simulated world comes about: members visit, see a page, play or search, and remember.

Members do not influence each other, so the k-th visit of all of them is one step of array operations.
Shape letters: B members, V visits, T plays, E events, R rows, C titles per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from .world_choice import EPISODES, FILM_SHARE, by_visit, look, minutes_ahead, mood_chances, most_episodes, page_choices
from .world_pages import Shelves
from .world_population import DAY, DROPPED, LOCALES, START, Members, Memory, Plays, Titles, Visits

ACTIONS = ("search", "play", "pause", "rewind", "skip", "abandon", "complete", "like")
_SEARCH, _PLAY, _PAUSE, _REWIND, _SKIP, _ABANDON, _COMPLETE, _LIKE = range(len(ACTIONS))
_SLOT_SHARE = np.array([0.03, 0.07, 0.12, 0.18, 0.38, 0.22])  # of a day's visits; half as many more at weekends
_DEVICE_BY_SLOT = np.array(
    [[0.6, 1.0, 0.0, 0.2], [-0.5, 1.2, 0.2, 0.0], [0.0, 0.9, 0.2, 0.6], [0.3, 0.6, 0.3, 0.6], [1.8, 0.2, 0.2, 0.0],
     [1.4, 0.7, 0.4, 0.0]]
)  # fmt: skip
_STEP = 1536  # members who visit together: their arrays stay in the processor's cache
_TRAVELLING, _SEARCHES, _SEARCHED = 0.03, 0.3, 64


@dataclass(frozen=True)
class WorldConfig:
    """A world is this and nothing else: the same values give the same world. rows, columns: of each homepage."""

    seed: int = 0
    members: int = 2000
    titles: int = 2000
    days: int = 60
    rows: int = 8
    columns: int = 8

    def __post_init__(self) -> None:
        limits = {"seed": (0, 2**63), "members": (1, 1_000_000), "titles": (20, 50_000), "days": (1, 365),
                  "rows": (1, 40), "columns": (1, 40)}  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high:,}")


@dataclass(frozen=True)
class Homepages:
    """What V visits were shown: titles int32 [V, R, C] (−1: none), rows int64 [V, R] (places in ROW_IDS, −1: none),
    explored bool [V, R], played int64 [V], the place in the flat page, −1 for none of it."""

    titles: np.ndarray
    rows: np.ndarray
    explored: np.ndarray
    played: np.ndarray


@dataclass(frozen=True)
class Events:
    """E public events in order of (member, time): play int64 [E] (index into the plays), time int64 seconds, action
    int8 (index into ACTIONS), seconds float32 watched, NaN but for plays."""

    play: np.ndarray
    time: np.ndarray
    action: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.play)


Columns = TypeVar("Columns", Visits, Homepages, Plays)
Step = tuple[Visits, Homepages, Plays]  # of one visit each of several members; `visit` of the plays counts from 0


class Life:
    """The members of one group, from the first day to the last: `live` it, then take its `steps`."""

    def __init__(
        self, config: WorldConfig, titles: Titles, members: Members, shelves: Shelves, group: np.ndarray,
        rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.config, self.titles, self.members, self.shelves, self.rng = config, titles, members, shelves, rng
        self.group = group
        self.plan = self._plan()
        self.steps: list[Step] = []

    def _plan(self) -> Visits:
        """When members mean to visit and on what device, in order of (member, time)."""
        rng, config = self.rng, self.config
        weekend = np.where(np.arange(config.days) % 7 >= 5, 1.5, 1.0)
        rate = self.members.activity[self.group][:, None, None] * weekend[:, None] * _SLOT_SHARE
        member, day, slot = np.nonzero(rng.random(rate.shape, np.float32) < rate)
        time = START + day * DAY + slot * 4 * 3600 + rng.integers(0, 4 * 3600, len(day))
        member = self.group[member]
        liking = self.members.device[member] + _DEVICE_BY_SLOT[slot]
        device = (liking + rng.gumbel(size=liking.shape)).argmax(1)
        away = rng.random(len(member)) < _TRAVELLING
        locale = np.where(away, rng.integers(0, len(LOCALES), len(member)), self.members.home[member])
        return Visits(member, time, device.astype(np.int8), locale.astype(np.int8))

    def live(self) -> Iterator[int]:
        """Everything that the group does; yields how many visits each step was."""
        memory = Memory(len(self.group), self.titles)
        busy = np.zeros(len(self.group), np.int64)  # until then the member watches
        first = np.searchsorted(self.plan.member, self.group)
        count = np.append(first[1:], len(self.plan)) - first
        for k in range(int(count.max(initial=0))):
            going = np.flatnonzero(count > k)
            for at in np.split(going, range(_STEP, len(going), _STEP)):
                visits = self.plan.take(first[at] + k)
                visits = replace(visits, time=np.maximum(visits.time, busy[at] + 60))
                homepages, plays = self._visit(visits, memory, at)
                self.steps.append((visits, homepages, plays))
                who = at[plays.visit]
                busy[who] = plays.time + np.ceil(plays.minutes * 60).astype(np.int64)
                memory.record(who, plays.time, plays.title, plays.minutes, plays.progress)
                yield len(visits)

    def _visit(self, visits: Visits, memory: Memory, at: np.ndarray) -> tuple[Homepages, Plays]:
        """One visit of each member in the lines `at` of the memory; its plays, `visit` counting from 0."""
        rng, columns = self.rng, self.config.columns
        page, rows, explored = self.shelves.logging_page(visits, memory, at, self.config.rows, columns, rng)
        mood = drawn(mood_chances(self.members, visits), rng)[:, None]
        views = look(self.titles, self.members, memory, at, visits, mood, page)
        chance = by_visit(page_choices(self.titles, visits, mood, views, page))
        played = drawn(chance, rng)
        chosen = np.flatnonzero(played >= 0)
        title, likely = by_visit(page)[chosen, played[chosen]], by_visit(views.enjoyment)
        likely, row = likely[chosen, played[chosen]], played[chosen] // columns
        seconds = 5 + 3 * row + 2 * (played[chosen] % columns)
        some = np.flatnonzero((played < 0) & (rng.random(len(at)) < _SEARCHES))
        found, enjoyment = search(self.titles, self.members, visits.take(some), memory, at[some], mood[some], rng)
        some, found, enjoyment = some[found >= 0], found[found >= 0], enjoyment[found >= 0]
        visit = np.concatenate([chosen, some])
        title, row = np.concatenate([title, found]), np.concatenate([row, np.full(len(found), -1)])
        seconds = np.concatenate([seconds, np.full(len(found), 45)]) + rng.integers(0, 20, len(visit))
        plays = self._watch(visits, memory, at, visit, title, row, seconds, np.concatenate([likely, enjoyment]))
        return Homepages(page, rows, explored, played), plays

    def _watch(
        self, visits: Visits, memory: Memory, at: np.ndarray, visit: np.ndarray, title: np.ndarray, row: np.ndarray,
        seconds: np.ndarray, likely: np.ndarray,
    ) -> Plays:  # fmt: skip
        """How the titles that visits chose were watched."""
        rng, titles, count = self.rng, self.titles, len(visit)
        before = memory.progress[at[visit], title].astype(np.float32)
        before = np.where((before > 0) & (before < 1), before, 0)
        minutes, most = minutes_ahead(titles, title, before), most_episodes(titles, title, before)
        film, enjoyed = titles.episodes[title] == 1, rng.random(count) < likely
        episodes = np.minimum(1 + rng.choice(len(EPISODES), count, p=EPISODES), most)
        episodes = np.where(enjoyed & ~film, episodes, 1)
        share = np.where(enjoyed, np.where(film, rng.beta(*FILM_SHARE, count), 1.0), rng.beta(1.2, 4.0, count))
        after = before + np.where(film, share * (1 - before), episodes / titles.episodes[title])
        after = np.where(after > np.where(film, 0.8, 0.999), 1.0, after)
        return Plays(
            member=visits.member[visit],
            visit=visit,
            time=visits.time[visit] + seconds,
            title=title.astype(np.int32),
            row=row.astype(np.int16),
            enjoyed=enjoyed,
            minutes=(minutes * share * episodes).astype(np.float32),
            episodes=episodes.astype(np.int8),
            progress=np.where(enjoyed, after, DROPPED).astype(np.float16),
        )


def search(
    titles: Titles, members: Members, visits: Visits, memory: Memory, at: np.ndarray, mood: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Titles int64 [V] that members look for and find, −1 for none, and the chance to enjoy them: of some titles that
    come to mind, where no place is better than another, by softmax(u / 0.3). mood: int64 [V, 1]."""
    mind = rng.integers(0, len(titles), (len(at), 1, _SEARCHED))
    views = look(titles, members, memory, at, visits, mood, mind)
    above = views.utility - views.utility.max(-1, keepdims=True, initial=-9)
    strength = np.exp(above / 0.3) * views.possible[:, None]
    total = strength.sum(-1, keepdims=True)
    place = drawn(by_visit(strength / np.maximum(total, 1e-30)), rng)
    line = np.arange(len(at))
    return np.where(place >= 0, mind[line, 0, place], -1), views.enjoyment[line, 0, 0, place]


def collected(steps: Sequence[Step]) -> Step:
    """The steps as one, in order of (member, time)."""
    visits, homepages = _stacked([v for v, _, _ in steps]), _stacked([h for _, h, _ in steps])
    first = np.cumsum([0, *(len(v) for v, _, _ in steps)])
    plays = _stacked([replace(p, visit=p.visit + begin) for begin, (_, _, p) in zip(first, steps, strict=False)])
    order = np.lexsort((visits.time, visits.member))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    plays = replace(plays, visit=place[plays.visit])
    return _taken(visits, order), _taken(homepages, order), _taken(plays, np.argsort(plays.visit))


def _stacked(parts: Sequence[Columns]) -> Columns:
    """Dataclasses of arrays as one."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(kind)))


def _taken(columns: Columns, index: np.ndarray) -> Columns:
    return type(columns)(*(getattr(columns, f.name)[index] for f in fields(columns)))


def drawn(chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [V]: a place of each line [V, X], by its chance; −1 with what is missing to 1."""
    upto = np.cumsum(chance, 1, dtype=np.float64)
    draw = rng.random(len(chance))
    place = (upto <= draw[:, None]).sum(1)
    return np.where(place < chance.shape[1], place, -1)


def events_of(plays: Plays, members: Members, rng: np.random.Generator) -> Events:
    """What a service would have logged of the plays: searches, every episode begun, pauses and skips on the way, how it
    ended, likes."""
    seconds = plays.minutes * 60.0
    each = np.arange(len(plays))
    at_end = plays.time + np.ceil(seconds).astype(np.int64)

    def within(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        play = np.repeat(each, count)
        return play, plays.time[play] + (rng.random(len(play)) * seconds[play]).astype(np.int64)

    episode = np.repeat(each, plays.episodes)
    length = (seconds / plays.episodes)[episode]
    number = np.arange(len(episode)) - np.repeat(np.cumsum(plays.episodes) - plays.episodes, plays.episodes)
    searched, dropped = np.flatnonzero(plays.row < 0), np.flatnonzero(~plays.enjoyed)
    finished = np.flatnonzero(plays.enjoyed & (plays.progress == 1))
    liked = np.flatnonzero(plays.enjoyed & (rng.random(len(plays)) < members.expressive[plays.member]))
    parts = {
        _SEARCH: (searched, plays.time[searched] - 10),
        _PLAY: (episode, plays.time[episode] + (number * length).astype(np.int64)),
        _PAUSE: within(np.minimum(rng.poisson(seconds / 4800), 3)),
        _REWIND: within(np.minimum(rng.poisson(seconds / 9600), 3)),
        _SKIP: within(np.minimum(rng.poisson(np.where(plays.enjoyed, 0.2, 0.7)), 3)),
        _ABANDON: (dropped, at_end[dropped]),
        _COMPLETE: (finished, at_end[finished]),
        _LIKE: (liked, at_end[liked] + 4),
    }
    play = np.concatenate([p for p, _ in parts.values()])
    time = np.concatenate([t for _, t in parts.values()])
    action = np.repeat(np.array(list(parts), np.int8), [len(p) for p, _ in parts.values()])
    watched = np.full(len(play), np.nan, np.float32)
    watched[action == _PLAY] = length
    order = np.lexsort((time, play))  # plays are in order of (member, time) and do not overlap
    return Events(play[order], time[order], action[order], watched[order])
