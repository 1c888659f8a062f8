"""Rows of the simulated world, and three ways to fill a homepage with them: as its logs were made, at random, and by an
oracle that knows the truth.

Rows by id: 1 popular, 2 new, 4 continue watching, 5 short, 6 long films, 10 and 11 because you watched, 100 + i the
i-th genre. Rows that the exporter's `default_rows` has too have the same ids.
Shape letters: V visits, Q rows to choose from, N titles, R rows of a page, C titles per row, L locales, W window.
"""

from __future__ import annotations

import numpy as np

from .world_choice import every_mood, fading, in_view, look, mood_chances, next_row, row_choices, running
from .world_population import GENRES, LANGUAGE_OF, LOCALES, START, Members, Memory, Titles, Visits, pick

_STATIC = {1: "Popular now", 5: "Short watches", 6: "Long films"} | {100 + i: g for i, g in enumerate(GENRES)}
_DYNAMIC = {2: "New releases", 4: "Continue watching", 10: "Because you watched", 11: "Because you watched"}
ROWS = _STATIC | _DYNAMIC
ROW_IDS = np.array(list(ROWS), np.int64)
_NEW, _CONTINUE, _BECAUSE = (ROW_IDS.tolist().index(i) for i in (2, 4, 10))

WINDOW = 20  # the logging policy takes a row's titles from so many
_EXPLORED = 0.15  # of its rows have their window anywhere in their list, not at its top
_SKIPPED = 0.3  # of a window's titles are left out
_NOISE = 0.7  # of its row scores
_PRICES = (0.2, 0.35, 0.5)  # of a play, in enjoyed plays, that the oracle tries


class Shelves:
    """What may stand in which row. popularity float32 [L, N]: what counters of plays would show, with noise."""

    def __init__(self, titles: Titles, members: Members, rng: np.random.Generator) -> None:
        self.titles = titles
        self.popularity = _popularity(titles, members, rng)
        best = np.sort(np.where(titles.available, self.popularity, -np.inf), 1)[:, -max(1, len(titles) // 10)]
        film = titles.episodes == 1
        kinds = [self.popularity >= best[:, None], titles.minutes <= 30, film & (titles.minutes >= 100)]
        kinds += [(titles.genres == g).any(1) for g in range(len(GENRES))]
        self.static = np.stack([kind & titles.available for kind in kinds], 1)  # bool [L, Q static, N]
        self.lists, self.sizes = _lists(self.static, np.argsort(-self.popularity, axis=1, kind="stable"))
        newest = np.argsort(-titles.release, kind="stable")
        self.newest = _lists(titles.available[:, None], np.broadcast_to(newest, (len(LOCALES), len(titles))))[0][:, 0]
        self.similar = _similar(titles)

    def dynamic(self, visits: Visits, memory: Memory, at: np.ndarray) -> np.ndarray:
        """Titles int32 [V, 4, W] (−1: none) of the rows that depend on time and member, in the order of _DYNAMIC; `at`
        [V] are the visits' lines in the memory."""
        line = np.arange(len(visits))
        found = np.full((len(visits), len(_DYNAMIC), WINDOW), -1, np.int32)
        future = np.zeros(len(visits), np.int64)
        for locale, newest in enumerate(self.newest):
            here = visits.locale == locale
            later = -self.titles.release[newest[newest >= 0]]
            future[here] = np.searchsorted(later, -visits.time[here])  # so many are not out yet
        found[:, 0] = self.newest[visits.locale[:, None], future[:, None] + np.arange(WINDOW)]
        recent = memory.recent[at]
        progress = np.where(recent >= 0, memory.progress[at[:, None], recent], 0)
        found[:, 1, : recent.shape[1]] = np.where((progress > 0) & (progress < 1), recent, -1)
        kept = progress > 0
        for i in range(2):
            nth = kept & (np.cumsum(kept, 1) == i + 1)
            seed = recent[line, nth.argmax(1)]
            found[:, 2 + i] = np.where(nth.any(1)[:, None], self.similar[seed], -1)
        there = (found >= 0) & (self.titles.out[found] <= visits.time[:, None, None] - START)
        there &= pick(self.titles.available, visits.locale[:, None, None].astype(np.int64), found)
        return np.where(there, found, -1)

    def eligible(self, visits: Visits, memory: Memory) -> np.ndarray:
        """bool [V, Q, N]: which title may stand in which row of ROW_IDS; line v of the memory is that of visit v."""
        mask = np.zeros((len(visits), len(ROW_IDS), len(self.titles)), bool)
        mask[:, :_NEW] = self.static[visits.locale] & (self.titles.release <= visits.time[:, None])[:, None]
        found = self.dynamic(visits, memory, np.arange(len(visits)))
        v, q, w = np.nonzero(found >= 0)
        mask[v, _NEW + q, found[v, q, w]] = True
        return mask

    def logging_page(
        self, visits: Visits, memory: Memory, at: np.ndarray, rows: int, columns: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The policy behind the logs: rows by popularity and the hours watched of a genre, with Gumbel noise, so that
        every order happens; titles by popularity, some left out at random, in some rows from anywhere in the list.

        Returns titles int32 [V, R, C] (−1 past the end), rows int64 [V, R] as places in ROW_IDS, −1 for none, and which
        rows explored, bool [V, R]."""
        found = self.dynamic(visits, memory, at)
        score = self._row_scores(visits, memory, at, found) + rng.gumbel(scale=_NOISE, size=(len(at), len(ROW_IDS)))
        chosen = np.argsort(-score, axis=1)[:, :rows]
        line = np.arange(len(visits))[:, None]
        fixed = np.minimum(chosen, _NEW - 1)
        explored = (rng.random(chosen.shape) < _EXPLORED) & (chosen < _NEW)
        spare = np.maximum(self.sizes[visits.locale[:, None], fixed] - WINDOW, 0)
        start = (explored * rng.random(chosen.shape) * (spare + 1)).astype(np.int64)
        begin = ((visits.locale[:, None] * _NEW + fixed) * self.lists.shape[2] + start)[..., None]
        window = np.take(self.lists, begin + np.arange(WINDOW))
        v, r = np.nonzero(chosen >= _NEW)
        window[v, r] = found[v, chosen[v, r] - _NEW]
        window[score[line, chosen] == -np.inf] = -1
        byte = np.frombuffer(rng.bytes(window.size), np.uint8).reshape(window.shape)
        now = (visits.time - START).astype(np.int32)[:, None, None]
        kept = (window >= 0) & (np.take(self.titles.out, window, mode="wrap") <= now) & (byte >= _SKIPPED * 256)
        page = np.full((len(visits), rows, columns), -1, np.int32)
        taken = np.zeros((len(visits), len(self.titles)), bool)
        key = line[..., None] * len(self.titles) + window
        for r in range(chosen.shape[1]):
            fits = kept[:, r] > np.take(taken, key[:, r], mode="wrap")
            place = running(fits.astype(np.float32))
            v, w = np.nonzero(fits & (place <= columns))
            page[v, r, place[v, w].astype(np.int64) - 1] = window[v, r, w]
            taken.ravel()[key[v, r, w]] = True
        full = np.full((len(visits), rows), -1, np.int64)
        full[:, : chosen.shape[1]] = chosen
        full[page[..., 0] < 0] = -1
        # Rows that found no title leave no gap.
        order = np.argsort(full < 0, axis=1, kind="stable")
        missing = rows - chosen.shape[1]
        explored = np.pad(explored, ((0, 0), (0, missing)))
        return page[line, order], full[line, order], explored[line, order]

    def _row_scores(self, visits: Visits, memory: Memory, at: np.ndarray, found: np.ndarray) -> np.ndarray:
        """float64 [V, Q]; −inf for rows without titles. Of what a log shows, nothing hidden."""
        score = np.empty((len(visits), len(ROW_IDS)))
        phone, evening_tv = visits.device == 1, (visits.device == 0) & (visits.slot >= 4)
        score[:, 0], score[:, 1], score[:, 2] = 1.2, 0.9 * phone, 0.9 * evening_tv
        score[:, 3:_NEW] = 0.8 * np.log1p(memory.hours[at])
        score[:, _NEW:] = (0.9, 1.5, 1.1, 0.8)
        score[:, :_NEW][self.sizes[visits.locale] == 0] = -np.inf
        score[:, _NEW:][(found < 0).all(2)] = -np.inf
        return score


def _popularity(titles: Titles, members: Members, rng: np.random.Generator) -> np.ndarray:
    """float32 [L, N]: mean nearness to a sample of members, appeal, a little quality, the language, noise."""
    some = members.interests[rng.choice(len(members), min(64, len(members)), replace=False), 0].reshape(-1, 1, 6)
    near = np.zeros(len(titles), np.float32)
    for point in some:
        near += np.exp(-0.5 * np.square(titles.place - point).sum(-1)) / len(some)
    score = np.log(0.03 + near) + 0.8 * titles.appeal + 0.3 * titles.quality + 0.4 * rng.normal(size=len(titles))
    foreign = titles.language != LANGUAGE_OF[:, None]
    return (score - 0.7 * foreign).astype(np.float32)


def _lists(mask: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Titles int32 [L, Q, N+W] of a mask [L, Q, N] in the order [L, N], −1 past the end, and how many [L, Q]."""
    lists = np.full((*mask.shape[:2], mask.shape[2] + WINDOW), -1, np.int32)
    sizes = mask.sum(-1)
    for locale in range(len(mask)):
        for q, size in enumerate(sizes[locale]):
            lists[locale, q, :size] = order[locale][mask[locale, q, order[locale]]]
    return lists, sizes


def _similar(titles: Titles) -> np.ndarray:
    """The W titles int32 [N, W] nearest to each, −1 past the end: what item-item lists would know."""
    count, found = min(WINDOW, len(titles) - 1), np.full((len(titles), WINDOW), -1, np.int32)
    square = np.square(titles.place).sum(1)
    for begin in range(0, len(titles), 512):
        chunk = slice(begin, begin + 512)
        distance = square - 2 * titles.place[chunk] @ titles.place.T
        own = np.arange(len(distance))
        distance[own, begin + own] = np.inf
        near = np.argpartition(distance, count - 1, axis=1)[:, :count]
        ranked = np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable")
        found[chunk, :count] = np.take_along_axis(near, ranked, 1)
    return found


def random_page(eligible: np.ndarray, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Titles int32 [V, R, C] (−1 past the end): rows at random, in each eligible titles [V, Q, N] at random, each title
    once per page."""
    count, _, titles = eligible.shape
    page = np.full((count, rows, columns), -1, np.int32)
    order = np.argsort(rng.random(eligible.shape[:2]) + ~eligible.any(-1), axis=1)
    free, line = np.ones((count, titles), bool), np.arange(count)
    for r in range(min(rows, order.shape[1])):
        key = np.where(eligible[line, order[:, r]] & free, rng.random((count, titles), np.float32), np.inf)
        some = min(columns, titles)
        best = np.argpartition(key, some - 1, axis=1)[:, :some]
        best = np.take_along_axis(best, np.argsort(np.take_along_axis(key, best, 1), 1), 1)
        there = key[line[:, None], best] < np.inf
        page[:, r, :some] = np.where(there, best, -1)
        v, c = np.nonzero(there)
        free[v, best[v, c]] = False
    return page


def oracle_page(
    titles: Titles, members: Members, memory: Memory, visits: Visits, eligible: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """Titles int32 [V, R, C] (−1 past the end) by the truth, greedily, for each of several prices of a play (who plays
    reads no further, so a poor play has a price); of those pages the best is kept. It is not the best page there is: a
    test bounds the difference on pages that can be enumerated.

    eligible: bool [V, Q, N]; line v of the memory is that of visit v.
    """
    count, at, moods = len(visits), np.arange(len(visits)), every_mood(len(visits))
    catalogue = np.broadcast_to(np.arange(len(titles)), (count, 1, len(titles)))
    views = look(titles, members, memory, at, visits, moods, catalogue)
    weight, enjoyment = views.weight[:, :, 0], views.enjoyment[:, :, 0]  # [V, Z, N]
    mood, allowed = mood_chances(members, visits), eligible & views.possible
    best, page = np.full(count, -1.0), np.full((count, rows, columns), -1, np.int32)
    for price in _PRICES:
        score = (mood[:, :, None] * weight * (enjoyment - price)).sum(1)
        lists = _shortlists(score, allowed, min(rows * columns, len(titles)))
        made, value = _greedy(titles, visits, mood, weight, enjoyment, lists, price, (rows, columns))
        better = value > best
        best, page = np.where(better, value, best), np.where(better[:, None, None], made, page)
    return page


def _greedy(
    titles: Titles, visits: Visits, mood: np.ndarray, weight: np.ndarray, enjoyment: np.ndarray, lists: np.ndarray,
    price: float, shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Pages int32 [V, R, C] and their values float64 [V]. From the top down each row is the one, of those left, that
    adds most enjoyed plays given the rows above, less the price of its plays; lists [V, Q, X]: its titles in order."""
    (rows, columns), (count, options, _) = shape, lists.shape
    at, moods, device = np.arange(count), every_mood(count), visits.device
    onward = next_row(device, rows + 1)
    page, value = np.full((count, *shape), -1, np.int32), np.zeros(count)
    reach = mood  # [V, Z]: the mood, and that the next row is read
    left = np.ones((count, options), bool)
    free = np.ones((count, len(titles) + 1), bool)
    free[:, -1] = False  # where a list ends
    above = np.zeros((count, len(GENRES)), np.int64)
    for r in range(rows):
        row = _first_free(lists, free, columns)  # [V, Q, C]
        # Each is a page of one row below what is there already.
        alone = row.reshape(-1, 1, columns)
        faded = fading(titles, np.repeat(device, options), alone, np.repeat(above, options, 0)).reshape(row.shape)
        seen = np.take_along_axis(weight[:, :, None], row[:, None], 3) * (faded * (row >= 0))[:, None]
        chosen = row_choices(seen, device, moods)
        enjoyed = (chosen * np.take_along_axis(enjoyment[:, :, None], row[:, None], 3)).sum(-1)  # [V, Z, Q]
        gain = (reach[:, :, None] * (enjoyed - price * chosen.sum(-1))).sum(1)
        taken = np.where(left & (row[..., 0] >= 0), gain, -np.inf).argmax(1)
        there = left[at, taken] & (row[at, taken, 0] >= 0)  # else nothing is left
        page[:, r] = np.where(there[:, None], row[at, taken], -1)
        value += np.where(there, (reach * enjoyed[at, :, taken]).sum(1), 0)
        passed = (1 - chosen[at, :, taken].sum(-1)) * onward[:, r + 1, None]
        reach = np.where(there[:, None], reach * passed, reach)
        left[at, taken] = False
        genre = np.where(page[:, r] >= 0, titles.genres[page[:, r], 0], len(GENRES)).astype(np.int64)
        above += in_view(genre[:, None], device)[:, 0]
        v, c = np.nonzero(page[:, r] >= 0)
        free[v, page[v, r, c]] = False
    return page, value


def _shortlists(score: np.ndarray, eligible: np.ndarray, length: int) -> np.ndarray:
    """The first titles int32 [V, Q, length] (N past the end) of each row [V, Q, N], by scores [V, N]."""
    count, rows, titles = eligible.shape
    lists = np.full((count, rows, length), titles, np.int32)
    order = np.argsort(-score, axis=1, kind="stable")
    v, q, n = np.nonzero(np.take_along_axis(eligible, order[:, None], 2))
    sizes = np.bincount(v * rows + q, minlength=count * rows)
    place = np.arange(len(v)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    near = place < length
    lists[v[near], q[near], place[near]] = order[v[near], n[near]]
    return lists


def _first_free(lists: np.ndarray, free: np.ndarray, columns: int) -> np.ndarray:
    """The first titles int32 [V, Q, C] (−1 past the end) of each shortlist that are still free [V, N+1]."""
    fits = free[np.arange(len(lists))[:, None, None], lists]
    place = np.cumsum(fits, 2, dtype=np.int32)
    v, q, n = np.nonzero(fits & (place <= columns))
    first = np.full((*lists.shape[:2], columns), -1, np.int32)
    first[v, q, place[v, q, n] - 1] = lists[v, q, n]
    return first
