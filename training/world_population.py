"""Who lives in the simulated world: titles, members whose tastes drift, and what members remember of what they watched.

Titles and the interests of members are points of one space of 6 dimensions in which each genre has a centre. A title
lies near its main genre, pulled towards a second one. A member has three interests; each has a home near a genre's
centre, moves to another home now and then, and wanders towards it (an autoregression, known every 10 days, linear in
between), so that tastes are an exact function of time. Nothing here is shown to a model but what `World.write` writes.
Shape letters: B members, N titles, V visits, G genres, L locales, K interests, J knots in time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

DAY = 86_400
START = 1_704_067_200  # 2024-01-01, a Monday; the world's clock is every member's local time
GENRES = (
    "Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy", "History",
    "Horror", "Music", "Mystery", "Romance", "Sci-Fi", "Thriller",
)  # fmt: skip
LOCALES = ("en-US", "en-GB", "de-DE", "es-ES", "fr-FR", "ja-JP")
LANGUAGE_OF = np.array([0, 0, 1, 2, 3, 4], np.int8)  # of each locale
LANGUAGES = ("en", "de", "es", "fr", "ja")
DEVICES = ("TV", "phone", "tablet", "computer")
MOODS = ("settled", "comfort", "explore")

_DIMENSIONS, _INTERESTS, _KNOT_DAYS = 6, 3, 10
_MOST_EPISODES = 60
_RECENT = 8  # titles a member is known to have watched last, each once
_SATIATION_DAYS = 3.0
DROPPED = -1.0  # progress of a title that was abandoned


@dataclass(frozen=True)
class Titles:
    """N titles; a title's id is its index. place float32 [N, 6]; genres int8 [N, 2], the main one first, −1 for none;
    minutes int16 [N], of a film or of one episode; episodes int16 [N], 1 for a film; language int8 [N]; release int64
    [N] seconds; available bool [L, N]. appeal float32 [N] makes members choose it, quality float32 [N] makes them
    enjoy it: they are correlated by 0.3 only, so clickbait exists."""

    place: np.ndarray
    genres: np.ndarray
    minutes: np.ndarray
    episodes: np.ndarray
    language: np.ndarray
    release: np.ndarray
    available: np.ndarray
    appeal: np.ndarray
    quality: np.ndarray

    def __len__(self) -> int:
        return len(self.minutes)

    @cached_property
    def lifted(self) -> np.ndarray:
        """float32 [N, 8]: (q, |q|², 1), so that its product with (−2p, 1, |p|²) is the squared distance |p − q|²."""
        square = np.square(self.place).sum(1, keepdims=True)
        return np.concatenate([self.place, square, np.ones_like(square)], 1)

    @cached_property
    def out(self) -> np.ndarray:
        """int32 [N]: seconds from START to the release."""
        return (self.release - START).astype(np.int32)


@dataclass(frozen=True)
class Members:
    """B members. interests float32 [B, J, K, 6]; interest_weight [B, moods, K], adding up to 1; mood [B, moods] and
    device [B, devices], log weights; home int8 [B], a locale; openness [B], 0 to 1, to other languages; activity [B],
    visits a day; expressive [B], the chance of a like after an enjoyed play."""

    interests: np.ndarray
    interest_weight: np.ndarray
    mood: np.ndarray
    device: np.ndarray
    home: np.ndarray
    openness: np.ndarray
    activity: np.ndarray
    expressive: np.ndarray

    def __len__(self) -> int:
        return len(self.home)

    def tastes(self, member: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Interests float32 [V, K, 6] of the members [V] at times [V], linear between knots."""
        knots = np.clip((time - START) / (_KNOT_DAYS * DAY), 0, self.interests.shape[1] - 1.001)
        before = knots.astype(np.int64)
        share = (knots - before).astype(np.float32)[:, None, None]
        return self.interests[member, before] * (1 - share) + self.interests[member, before + 1] * share


@dataclass(frozen=True)
class Visits:
    """V times that somebody opens the homepage: member int64, time int64 seconds, device and locale int8, indices into
    DEVICES and LOCALES, each [V]. What a page may be made for; the mood stays hidden."""

    member: np.ndarray
    time: np.ndarray
    device: np.ndarray
    locale: np.ndarray

    def __len__(self) -> int:
        return len(self.member)

    def take(self, index: np.ndarray | slice) -> Visits:
        return Visits(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def slot(self) -> np.ndarray:
        """int64 [V]: night, early, morning, afternoon, evening, late: four hours each from midnight on."""
        return self.time % DAY // (4 * 3600)


@dataclass(frozen=True)
class Plays:
    """T plays in order of (member, time): visit int64 [T] (index into the log's visits), time int64 [T] seconds, title
    int32 [T], row int16 [T] of the page (−1: by search), enjoyed bool [T], minutes float32 [T], episodes int8 [T]
    begun, progress float16 [T] of the title afterwards."""

    member: np.ndarray
    visit: np.ndarray
    time: np.ndarray
    title: np.ndarray
    row: np.ndarray
    enjoyed: np.ndarray
    minutes: np.ndarray
    episodes: np.ndarray
    progress: np.ndarray

    def __len__(self) -> int:
        return len(self.title)

    def take(self, index: np.ndarray) -> Plays:
        return Plays(*(getattr(self, f.name)[index] for f in fields(self)))


class Memory:
    """What `count` members have done so far. hours float32 [B, G] watched; satiation float32 [B, G], hours that fade by
    e in 3 days, as of `since` int64 [B]; progress float16 [B, N]: 0 new, 1 finished, DROPPED abandoned; recent int32
    [B, 8], titles watched last, newest first, −1 for none."""

    def __init__(self, count: int, titles: Titles) -> None:
        self.titles = titles
        self.hours = np.zeros((count, len(GENRES)), np.float32)
        self.satiation = np.zeros((count, len(GENRES)), np.float32)
        self.since = np.zeros(count, np.int64)
        self.progress = np.zeros((count, len(titles)), np.float16)
        self.recent = np.full((count, _RECENT), -1, np.int32)

    @classmethod
    def of(cls, plays: Plays, visits: Visits, titles: Titles) -> Memory:
        """As of V visits: line v is what the member of visit v did before it."""
        memory = cls(len(visits), titles)
        first = np.searchsorted(plays.member, visits.member)
        # One sorted key of (member, time) finds where each visit's past ends.
        span = np.int64(1) << 34
        stop = np.searchsorted(plays.member * span + plays.time, visits.member * span + visits.time)
        for k in range(int((stop - first).max(initial=0))):
            at = np.flatnonzero(first + k < stop)
            play = first[at] + k
            memory.record(at, plays.time[play], plays.title[play], plays.minutes[play], plays.progress[play])
        return memory

    def faded(self, at: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Satiation float32 [V, G] of the lines `at` at times [V]."""
        days = (time - self.since[at]) / DAY
        return self.satiation[at] * np.exp(-days / _SATIATION_DAYS).astype(np.float32)[:, None]

    def record(
        self, at: np.ndarray, time: np.ndarray, title: np.ndarray, minutes: np.ndarray, progress: np.ndarray
    ) -> None:
        """One more play in each of the lines `at`."""
        self.satiation[at], self.since[at] = self.faded(at, time), time
        hours, genres = minutes / 60, self.titles.genres[title]
        for g, share in ((genres[:, 0], hours), (genres[:, 1], hours * (genres[:, 1] >= 0) / 2)):
            self.satiation[at, g] += share
            self.hours[at, g] += share
        self.progress[at, title] = progress
        recent = self.recent[at]
        again = recent == title[:, None]
        place = np.where(again.any(1), again.argmax(1), _RECENT - 1)[:, None]
        # What stood before the title's old place moves down by one; what stood behind it stays.
        moved = np.where(np.arange(_RECENT) <= place, np.roll(recent, 1, axis=1), recent)
        moved[:, 0] = title
        self.recent[at] = moved


def pick(table: np.ndarray, line: np.ndarray, column: np.ndarray) -> np.ndarray:
    """table[line, column] of a contiguous table [X, Y]; one index is faster than two."""
    return np.take(table, line * table.shape[1] + column)


def populate(members: int, titles: int, days: int, rng: np.random.Generator) -> tuple[Titles, Members]:
    """The world's titles and members, as they are before anything happens."""
    centres = (rng.normal(size=(len(GENRES), _DIMENSIONS))).astype(np.float32)
    liking = rng.dirichlet(np.full(len(GENRES), 4.0))
    return _titles(titles, days, centres, liking, rng), _members(members, days, centres, liking, rng)


def _titles(count: int, days: int, centres: np.ndarray, liking: np.ndarray, rng: np.random.Generator) -> Titles:
    main = rng.choice(len(GENRES), count, p=liking)
    second = (main + rng.integers(1, len(GENRES), count)) % len(GENRES)
    alone = rng.random(count) < 0.4
    pull = np.where(alone, 0.0, 0.3)[:, None]
    place = (1 - pull) * centres[main] + pull * centres[second] + rng.normal(scale=0.4, size=(count, _DIMENSIONS))
    show = rng.random(count) < 0.45
    film_minutes = np.clip(rng.normal(105, 20, count), 60, 165)
    episode_minutes = np.where(rng.random(count) < 0.4, rng.normal(24, 4, count), rng.normal(48, 7, count))
    # A quarter of the titles appears during the simulated days; the others are up to 30 years old.
    age = np.where(rng.random(count) < 0.25, -rng.uniform(0, days, count), rng.exponential(2000, count).clip(0, 10_950))
    language = rng.choice(len(LANGUAGES), count, p=[0.5, 0.1, 0.15, 0.1, 0.15]).astype(np.int8)
    available = rng.random((len(LOCALES), count)) < 0.8
    available |= language == LANGUAGE_OF[:, None]
    quality = rng.normal(size=count)
    return Titles(
        place=place.astype(np.float32),
        genres=np.stack([main, np.where(alone, -1, second)], 1).astype(np.int8),
        minutes=np.where(show, np.clip(episode_minutes, 12, 70), film_minutes).astype(np.int16),
        episodes=np.where(show, rng.integers(6, _MOST_EPISODES + 1, count), 1).astype(np.int16),
        language=language,
        release=(START - age * DAY).astype(np.int64),
        available=available,
        appeal=(0.3 * quality + np.sqrt(1 - 0.3**2) * rng.normal(size=count)).astype(np.float32),
        quality=quality.astype(np.float32),
    )


def _members(count: int, days: int, centres: np.ndarray, liking: np.ndarray, rng: np.random.Generator) -> Members:
    knots = days // _KNOT_DAYS + 3
    shape = (count, _INTERESTS)

    def homes() -> np.ndarray:
        genre = rng.choice(len(GENRES), shape, p=liking)
        return (centres[genre] + rng.normal(scale=0.4, size=(*shape, _DIMENSIONS))).astype(np.float32)

    interests = np.empty((count, knots, _INTERESTS, _DIMENSIONS), np.float32)
    home = homes()
    interests[:, 0] = home
    for j in range(1, knots):
        home = np.where((rng.random(shape) < 0.08)[..., None], homes(), home)
        wander = rng.normal(scale=0.2, size=home.shape)
        interests[:, j] = interests[:, j - 1] + 0.4 * (home - interests[:, j - 1]) + wander
    weight = np.exp(rng.normal(scale=0.9, size=(count, len(MOODS), _INTERESTS)))
    return Members(
        interests=interests,
        interest_weight=(weight / weight.sum(-1, keepdims=True)).astype(np.float32),
        mood=rng.normal(scale=0.6, size=(count, len(MOODS))).astype(np.float32),
        device=rng.normal(scale=1.0, size=(count, len(DEVICES))).astype(np.float32),
        home=rng.choice(len(LOCALES), count, p=[0.35, 0.15, 0.15, 0.1, 0.1, 0.15]).astype(np.int8),
        openness=rng.beta(2, 2, count).astype(np.float32),
        activity=np.clip(0.7 * np.exp(rng.normal(scale=0.5, size=count)), 0.2, 2.0).astype(np.float32),
        expressive=rng.beta(1, 4, count).astype(np.float32),
    )
