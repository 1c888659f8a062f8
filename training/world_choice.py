"""How members of the simulated world choose and what they enjoy: a nested choice on a page that is scanned, not a dot
product. FROZEN: it was set before any model was tuned on it; a test holds its numbers.

Who comes. A visit has a hidden mood z (settled, comfort, explore), drawn from softmax(member's bias + hour + device).

How much a title appeals, in mood z:
    u = a_z · log(0.03 + Σ_k π_zk · exp(−|p_k − q|² / 2h_z²))   nearness of the title's place q to the member's three
                                                                interests p_k at that time, each a bump: no line through
                                                                the origin separates what they like
      + 0.8 · appeal                                            artwork; not what makes a title good
      − 0.5 · log(1 + s)                                        satiation: hours of its genres lately
      − 0.6 · min(|log(minutes left / ideal)|, 1.5)             device × hour: short on a phone, films on evening TV
      − 1.2 · (1 − openness)                                    where it speaks another language than the locale
      + f_z · exp(−days since release / 21)
      + c_z if it was begun, + r_z if it was finished, − 2 if it was dropped
      − 0.4 · log(1 + n)                                        n: titles of its main genre in view in rows above

How a page is read. Rows from the top. In a row title j is looked at if the one before was, with probability 0.95 inside
the screen's width and 0.7 beyond; so j = 1..D is seen, D random. Of those the row's inclusive value is
I = log Σ_{j≤D} exp(u_j / 0.6); it is taken with probability e^{0.6 I} / (e^{θ_z} + e^{0.6 I}), and in it title j with
exp(u_j / 0.6) / e^I. If not, the member goes on to the next row with a device's probability, higher on the first rows,
and else leaves. A row without titles is as if it were not there; a title that stood on the page before, is not out yet
or not available in the locale keeps its place but cannot be chosen.

What comes of it. A play is enjoyed with probability σ(0.3 + 1.1 · quality + 0.5 · (2 + nearness) − 0.3 · length misfit
− 0.2 · log(1 + s)): quality is hidden from the page. An enjoyed film is watched to 0.87 of what is left on average, of
an enjoyed show 1 to 4 episodes (0.45, 0.3, 0.15, 0.1) as far as they are there and fit into 150 minutes.
Everything a page is worth is therefore a finite sum, without sampling.
Shape letters: V visits, Z moods, R rows, C titles per row.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from .world_population import DAY, DROPPED, GENRES, LANGUAGE_OF, MOODS, START, Members, Memory, Titles, Visits, pick

FROZEN_SINCE = "2026-11-21"

# By mood: settled, comfort, explore.
_NEARNESS = np.array([1.3, 1.3, 0.8], np.float32)
_WIDTH = np.array([1.0, 0.9, 1.4], np.float32)
_FRESH = np.array([0.7, 0.3, 1.4], np.float32)
_BEGUN = np.array([1.8, 2.0, 0.6], np.float32)
_FINISHED = np.array([-2.5, -0.8, -3.0], np.float32)
_OUTSIDE = np.array([1.3, 1.1, 1.5], np.float32)
_CURIOSITY, _APPEAL, _SATIATION, _MISFIT, _FOREIGN, _REPEAT = 0.03, 0.8, 0.5, 0.6, 1.2, 0.4
_NEST = 0.6
# By device: TV, phone, tablet, computer.
_COLUMNS_IN_VIEW = np.array([5, 3, 4, 6])
_ROWS_IN_VIEW = np.array([2, 3, 3, 3])
_NEXT_ROW_IN_VIEW = np.array([0.95, 0.96, 0.95, 0.94])
_NEXT_ROW_BEYOND = np.array([0.80, 0.88, 0.85, 0.82])
_IDEAL_MINUTES = np.array(  # by slot of four hours from midnight
    [[80, 30, 45, 60, 105, 100], [30, 18, 20, 22, 25, 30], [50, 25, 30, 40, 50, 50], [50, 30, 40, 45, 60, 60]],
    np.float32,
)
_MOOD_BY_SLOT = np.array(
    [[0.0, 0.6, -0.3], [0.0, 0.5, -0.5], [0.2, 0.2, 0.0], [0.2, 0.0, 0.2], [0.6, 0.0, 0.3], [0.3, 0.5, 0.0]]
)
_MOOD_BY_DEVICE = np.array([[0.3, 0.0, 0.1], [0.0, 0.4, -0.1], [0.0, 0.2, 0.0], [0.0, -0.2, 0.4]])
EPISODES = np.array([0.45, 0.30, 0.15, 0.10])  # chance of 1, 2, 3, 4 in one sitting
SITTING_MINUTES = 150
FILM_SHARE = (8.7, 1.3)  # Beta: mean 0.87


@dataclass(frozen=True)
class Outcomes:
    """What a page leads to in one visit, float64 [V]: the probability of a play from it and of an enjoyed one, and the
    expected minutes of enjoyed watching."""

    played: np.ndarray
    enjoyed: np.ndarray
    minutes: np.ndarray


@dataclass(frozen=True)
class Views:
    """Titles [V, R, C] as seen in Z moods: utility and enjoyment (a probability) float32 [V, Z, R, C]; possible bool
    [V, R, C], which could be played; shown bool [V, R, C], which are no padding."""

    utility: np.ndarray
    enjoyment: np.ndarray
    possible: np.ndarray
    shown: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """exp(u / 0.6), 0 where a title cannot be played."""
        return np.exp(self.utility / _NEST) * self.possible[:, None]


def by_visit(pages: np.ndarray) -> np.ndarray:
    """Values [V, …] as [V, X], no visits included."""
    return pages.reshape(len(pages), math.prod(pages.shape[1:]))


def mood_chances(members: Members, visits: Visits) -> np.ndarray:
    """float64 [V, Z]."""
    chance = np.exp(members.mood[visits.member] + _MOOD_BY_SLOT[visits.slot] + _MOOD_BY_DEVICE[visits.device])
    return chance / chance.sum(1, keepdims=True)


def every_mood(count: int) -> np.ndarray:
    """int64 [V, Z]."""
    return np.broadcast_to(np.arange(len(MOODS)), (count, len(MOODS)))


def unwatched(progress: np.ndarray) -> np.ndarray:
    """The share float32 [...] of a title that is left; finished and dropped ones start again."""
    return np.where((progress > 0) & (progress < 1), 1 - progress, 1).astype(np.float32)


def most_episodes(titles: Titles, title: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """int64 [...]: how many are left, fit into one sitting and are ever watched in one."""
    left = np.rint(unwatched(progress) * titles.episodes[title])
    return np.minimum(left, SITTING_MINUTES // titles.minutes[title]).astype(np.int64).clip(1, len(EPISODES))


def minutes_ahead(titles: Titles, title: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """float32 [...]: of what is left of a film, of one episode of a show."""
    minutes = titles.minutes[title].astype(np.float32)
    return np.where(titles.episodes[title] == 1, minutes * unwatched(progress), minutes)


def look(
    titles: Titles,
    members: Members,
    memory: Memory,
    at: np.ndarray,
    visits: Visits,
    moods: np.ndarray,
    page: np.ndarray,
) -> Views:
    """The titles [V, R, C] (−1: none) in moods int [V, Z]; `at` [V] are the visits' lines in the memory."""
    count, z = moods.shape
    flat = by_visit(page)
    shown = flat >= 0
    title = np.where(shown, flat, 0)
    member, wide = visits.member, (count, z, 1)
    tastes = members.tastes(member, visits.time)
    square = np.square(tastes).sum(-1, keepdims=True)
    lifted = np.concatenate([-2 * tastes, np.ones_like(square), square], -1)  # see Titles.lifted
    distance = np.take(titles.lifted, title, axis=0) @ lifted.swapaxes(1, 2)  # [V, R·C, K]
    share = members.interest_weight[member[:, None], moods]
    narrow = (-0.5 / np.square(_WIDTH))[moods]
    bumps = np.exp(distance[:, None] * narrow[..., None, None])  # [V, Z, R·C, K]
    near = np.log(_CURIOSITY + (bumps @ share[..., None])[..., 0])

    satiation, line = memory.faded(at, visits.time), np.arange(count)[:, None]
    main, second = titles.genres[:, 0][title], titles.genres[:, 1][title]
    hours = pick(satiation, line, main) + np.where(second >= 0, pick(satiation, line, second), 0) / 2
    tired = np.log1p(hours)
    progress = pick(memory.progress, at[:, None], title).astype(np.float32)
    minutes = minutes_ahead(titles, title, progress)
    misfit = np.minimum(np.abs(np.log(minutes / _IDEAL_MINUTES[visits.device, visits.slot][:, None])), 1.5)
    foreign = titles.language[title] != LANGUAGE_OF[visits.locale][:, None]
    age = ((visits.time - START).astype(np.int32)[:, None] - titles.out[title]).astype(np.float32) / DAY
    fresh = np.exp(-np.maximum(age, 0) / 21)

    same = _APPEAL * titles.appeal[title] - _SATIATION * tired - _MISFIT * misfit
    same -= _FOREIGN * (1 - members.openness[member])[:, None] * foreign
    same -= 2.0 * (progress == DROPPED)
    utility = near * _NEARNESS[moods].reshape(wide) + same[:, None]
    utility += fresh[:, None] * _FRESH[moods].reshape(wide)
    begun, finished = (progress > 0) & (progress < 1), progress == 1
    utility += np.where(begun[:, None], _BEGUN[moods].reshape(wide), 0)
    utility += np.where(finished[:, None], _FINISHED[moods].reshape(wide), 0)
    liking = 0.3 + 1.1 * titles.quality[title] - 0.3 * misfit - 0.2 * tired
    enjoyment = 1 / (1 + np.exp(-(liking[:, None] + 0.5 * (2 + near))))
    possible = shown & pick(titles.available, visits.locale[:, None].astype(np.int64), title) & (age >= 0)
    whole = (count, z, *page.shape[1:])
    return Views(
        utility.reshape(whole), enjoyment.reshape(whole), possible.reshape(page.shape), shown.reshape(page.shape)
    )


def fading(titles: Titles, device: np.ndarray, page: np.ndarray, above: np.ndarray | None = None) -> np.ndarray:
    """What the weights of a page's titles are multiplied by for others of their main genre in view above them: float32
    [V, R, C]. above: int [V, G], how many of each genre stand in rows above the page's first."""
    genre = np.where(page >= 0, titles.genres[page, 0], len(GENRES)).astype(np.int64)
    seen = in_view(genre, device)
    before = np.cumsum(seen, 1) - seen
    if above is not None:
        before += above[:, None]
    count, rows, _ = page.shape
    fewer = before[np.arange(count)[:, None, None], np.arange(rows)[:, None], np.minimum(genre, len(GENRES) - 1)]
    return ((1.0 + fewer) ** (-_REPEAT / _NEST)).astype(np.float32)


def in_view(genre: np.ndarray, device: np.ndarray) -> np.ndarray:
    """How many titles of each main genre [V, R, C] (len(GENRES): none) stand inside the screen: int64 [V, R, G]."""
    count, rows, columns = genre.shape
    bins = len(GENRES) + 1
    inside = np.arange(columns) < _COLUMNS_IN_VIEW[device][:, None, None]
    key = (np.arange(count * rows).reshape(count, rows, 1) * bins + np.where(inside, genre, bins - 1)).ravel()
    return np.bincount(key, minlength=count * rows * bins).reshape(count, rows, bins)[..., :-1]


def first_places(page: np.ndarray) -> np.ndarray:
    """bool [V, R, C]: no padding, and the first time, in reading order, that the title stands on its page."""
    flat = by_visit(page)
    order = np.argsort(flat, axis=1, kind="stable")
    ranked = np.take_along_axis(flat, order, 1)
    new = ranked >= 0
    new[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, 1)
    return first.reshape(page.shape)


@functools.cache
def _triangle(size: int) -> np.ndarray:
    return np.tri(size, dtype=np.float32)


def running(values: np.ndarray) -> np.ndarray:
    """Running sums float32 along the last, short axis: as a product, which is faster than cumsum there."""
    return values @ _triangle(values.shape[-1]).T


def row_choices(weight: np.ndarray, device: np.ndarray, moods: np.ndarray) -> np.ndarray:
    """The chance that a row, once read, leads to each of its titles: float32 [V, Z, R, C], as its weights."""
    columns = weight.shape[-1]
    onward = np.where(np.arange(1, columns) < _COLUMNS_IN_VIEW[device][:, None], 0.95, 0.7)
    look_at = np.concatenate([np.ones((len(device), 1)), np.cumprod(onward, 1), np.zeros((len(device), 1))], 1)
    depth = (look_at[:, :-1] - look_at[:, 1:]).astype(np.float32)[:, None, None]  # chance that D is 1 .. C
    total = running(weight)
    strength = total**_NEST
    outside = np.exp(_OUTSIDE)[moods][..., None, None]
    taken = depth * strength / (outside + strength) / np.maximum(total, 1e-30)
    return weight * (taken @ _triangle(columns))  # sums from the end


def next_row(device: np.ndarray, rows: int) -> np.ndarray:
    """The chance float64 [V, R] of going on to row r from the one above; 1 for the first."""
    row = np.arange(rows)
    onward = np.where(
        row < _ROWS_IN_VIEW[device][:, None], _NEXT_ROW_IN_VIEW[device][:, None], _NEXT_ROW_BEYOND[device][:, None]
    )
    return np.where(row == 0, 1.0, onward)


def page_choices(titles: Titles, visits: Visits, moods: np.ndarray, views: Views, page: np.ndarray) -> np.ndarray:
    """The chance of each place of a page [V, R, C] to be played: float32 [V, Z, R, C]; the rest is no play."""
    weight = views.weight * fading(titles, visits.device, page)[:, None]
    chosen = row_choices(weight, visits.device, moods)
    there = views.shown.any(-1)
    # The chance of going on depends on how many rows there are above, and empty ones do not count.
    number = np.maximum(np.cumsum(there, 1) - 1, 0)
    onward = np.where(there, np.take_along_axis(next_row(visits.device, chosen.shape[2]), number, 1), 1.0)
    passed = np.cumprod(1 - chosen.sum(-1), -1)
    reach = np.cumprod(onward, 1)[:, None] * np.concatenate([np.ones_like(passed[..., :1]), passed[..., :-1]], -1)
    return chosen * reach[..., None].astype(np.float32)


def expected_minutes(titles: Titles, memory: Memory, at: np.ndarray, page: np.ndarray) -> np.ndarray:
    """Expected minutes float32 [V, R, C] of an enjoyed play of each title."""
    title = np.maximum(page, 0)
    progress = memory.progress[at[:, None, None], title].astype(np.float32)
    episodes = np.array([(np.minimum(np.arange(1, 5), m) * EPISODES).sum() for m in range(5)])
    film = titles.episodes[title] == 1
    share = np.where(film, FILM_SHARE[0] / sum(FILM_SHARE), episodes[most_episodes(titles, title, progress)])
    return minutes_ahead(titles, title, progress) * share


def page_outcomes(titles: Titles, members: Members, memory: Memory, visits: Visits, page: np.ndarray) -> Outcomes:
    """The truth about pages [V, R, C] at visits [V]; line v of the memory is that of visit v."""
    at, moods = np.arange(len(visits)), every_mood(len(visits))
    views = look(titles, members, memory, at, visits, moods, page)
    views = replace(views, possible=views.possible & first_places(page))
    chance = page_choices(titles, visits, moods, views, page) * mood_chances(members, visits)[:, :, None, None]
    enjoyed = chance * views.enjoyment
    minutes = (enjoyed * expected_minutes(titles, memory, at, page)[:, None]).sum((1, 2, 3))
    return Outcomes(chance.sum((1, 2, 3)), enjoyed.sum((1, 2, 3)), minutes)
