"""The truth of the simulated world: its formulas once more, step by step, against the sums that value pages."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from frontrow.training import world_choice
from frontrow.training.world import World
from frontrow.training.world_choice import mood_chances, page_outcomes
from frontrow.training.world_population import DAY, LANGUAGE_OF, START, Members, Memory, Plays, Titles, Visits
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import some

FROZEN = {"played": [0.1357671, 0.111424], "enjoyed": [0.095215, 0.069301], "minutes": [4.9860507, 3.3514662]}


def by_hand() -> tuple[Titles, Members, Memory, Visits, np.ndarray]:
    """A world of twelve titles and two members, without a random number, and a page for each member."""
    n = np.arange(12)
    titles = Titles(
        place=np.sin(np.outer(n + 1, np.arange(1, 7))).astype(np.float32),
        genres=np.stack([n % 4, np.where(n % 3 == 0, -1, (n + 1) % 4)], 1).astype(np.int8),
        minutes=np.where(n % 2 == 0, 60 + 8 * n, 20 + 2 * n).astype(np.int16),
        episodes=np.where(n % 2 == 0, 1, 3 + n).astype(np.int16),
        language=(n % 5).astype(np.int8),
        release=START - (n - 2) * 5 * DAY,
        available=np.ones((6, 12), bool),
        appeal=np.cos(n).astype(np.float32),
        quality=np.sin(3.0 * n).astype(np.float32),
    )
    weight = np.array([[[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]] * 2, np.float32)
    members = Members(
        interests=(titles.place[(np.arange(30) * 5 % 12).reshape(2, 5, 3)] * np.float32(0.8)),
        interest_weight=weight,
        mood=np.array([[0.1, 0.0, -0.1], [0.0, 0.3, 0.2]], np.float32),
        device=np.zeros((2, 4), np.float32),
        home=np.array([0, 2], np.int8),
        openness=np.array([0.3, 0.7], np.float32),
        activity=np.ones(2, np.float32),
        expressive=np.full(2, 0.2, np.float32),
    )
    visits = Visits(
        np.array([0, 1]), START + np.array([9 * DAY + 20 * 3600, 12 * DAY + 7 * 3600]),
        np.array([0, 1], np.int8), np.array([0, 2], np.int8),
    )  # fmt: skip
    memory = Memory(2, titles)
    for title, minutes, progress in ((3, 40.0, 0.4), (4, 80.0, 1.0), (6, 9.0, -1.0)):
        both, minutes, progress = np.arange(2), np.full(2, minutes, np.float32), np.full(2, progress, np.float16)
        memory.record(both, visits.time - 2 * DAY, np.full(2, title), minutes, progress)
    page = np.array([[[3, 7, 2, 11], [1, 3, -1, 5], [6, 4, 0, -1]], [[0, 1, 2, 3], [-1] * 4, [9, 8, 3, 4]]])
    return titles, members, memory, visits, page


def test_the_choice_model_is_frozen() -> None:
    """Results are only comparable in the same world: whoever changes these numbers changes FROZEN_SINCE too."""
    titles, members, memory, visits, page = by_hand()
    found = page_outcomes(titles, members, memory, visits, page)
    assert world_choice.FROZEN_SINCE == "2026-11-21"
    assert found.played == pytest.approx(FROZEN["played"], rel=1e-4)
    assert found.enjoyed == pytest.approx(FROZEN["enjoyed"], rel=1e-4)
    assert found.minutes == pytest.approx(FROZEN["minutes"], rel=1e-4)


class Walk:
    """The docstring of world_choice.py once more, title by title and step by step, for one visit."""

    def __init__(
        self, titles: Titles, members: Members, memory: Memory, at: int, visit: Visits, rng: np.random.Generator
    ) -> None:
        self.titles, self.members, self.memory, self.at, self.rng = titles, members, memory, at, rng
        self.member, self.device = int(visit.member[0]), int(visit.device[0])
        self.time, self.locale = int(visit.time[0]), int(visit.locale[0])
        self.slot = self.time % DAY // 14_400
        self.tastes = members.tastes(visit.member, visit.time)[0]
        self.satiation = memory.satiation[at] * math.exp(-(self.time - memory.since[at]) / (3 * DAY))
        self.moods = mood_chances(members, visit)[0]

    def facts(self, title: int, mood: int) -> tuple[float, float, float]:
        """(utility, chance to enjoy, minutes left) of a title."""
        t = self.titles
        width, share = (1.0, 0.9, 1.4)[mood], self.members.interest_weight[self.member, mood]
        bumps = [math.exp(-((p - t.place[title]) ** 2).sum() / (2 * width**2)) for p in self.tastes]
        near = math.log(0.03 + sum(s * b for s, b in zip(share, bumps, strict=True)))
        main, second = t.genres[title].tolist()
        tired = math.log1p(self.satiation[main] + (self.satiation[second] / 2 if second >= 0 else 0))
        progress = float(self.memory.progress[self.at, title])
        left = 1 - progress if 0 < progress < 1 else 1.0
        minutes = float(t.minutes[title]) * (left if t.episodes[title] == 1 else 1)
        misfit = min(abs(math.log(minutes / world_choice._IDEAL_MINUTES[self.device, self.slot])), 1.5)
        utility = (1.3, 1.3, 0.8)[mood] * near + 0.8 * t.appeal[title] - 0.5 * tired - 0.6 * misfit
        if t.language[title] != LANGUAGE_OF[self.locale]:
            utility -= 1.2 * (1 - self.members.openness[self.member])
        utility += (0.7, 0.3, 1.4)[mood] * math.exp(-(self.time - t.release[title]) / DAY / 21)
        utility += (1.8, 2.0, 0.6)[mood] if 0 < progress < 1 else 0
        utility += (-2.5, -0.8, -3.0)[mood] if progress == 1 else 0
        utility -= 2.0 if progress == -1 else 0
        liking = 0.3 + 1.1 * t.quality[title] + 0.5 * (2 + near) - 0.3 * misfit - 0.2 * tired
        return utility, 1 / (1 + math.exp(-liking)), minutes

    def prepare(self, page: np.ndarray) -> None:
        """What every walk over the page shares: facts, and which titles count."""
        self.page = [[t for t in row if t >= 0] for row in page.tolist()]
        self.rows, seen = [], set()
        counts: dict[int, int] = {}
        for row in page.tolist():
            tiles = []
            for title in row:
                fine = title >= 0 and title not in seen and self.titles.release[title] <= self.time
                fine = fine and bool(self.titles.available[self.locale, title])
                above = counts.get(int(self.titles.genres[title, 0]), 0)
                tiles.append(
                    (title, [self.facts(title, z) for z in range(3)] if fine else None, 0.4 * math.log1p(above))
                )
                seen.add(title)
            for title in row[: (5, 3, 4, 6)[self.device]]:
                if title >= 0:
                    genre = int(self.titles.genres[title, 0])
                    counts[genre] = counts.get(genre, 0) + 1
            if max(row) >= 0:
                self.rows.append(tiles)

    def once(self) -> tuple[bool, bool, float]:
        """(played, enjoyed, minutes of enjoyed watching) of one visit."""
        random = self.rng.random
        mood = int(np.searchsorted(np.cumsum(self.moods), random()))
        for r, tiles in enumerate(self.rows):
            inside = r < (2, 3, 3, 3)[self.device]
            onward = ((0.95, 0.96, 0.95, 0.94) if inside else (0.80, 0.88, 0.85, 0.82))[self.device]
            if r and random() >= onward:
                return False, False, 0.0
            depth = 1
            while depth < len(tiles) and random() < (0.95 if depth < (5, 3, 4, 6)[self.device] else 0.7):
                depth += 1
            looked = [(t, facts[mood], fade) for t, facts, fade in tiles[:depth] if facts is not None]
            weights = [math.exp((facts[0] - fade) / 0.6) for _, facts, fade in looked]
            strength = sum(weights) ** 0.6
            if random() >= strength / (math.exp((1.3, 1.1, 1.5)[mood]) + strength):
                continue
            draw, chosen = random() * sum(weights), 0
            while draw > weights[chosen]:
                draw, chosen = draw - weights[chosen], chosen + 1
            title, (_, likely, minutes), _ = looked[chosen]
            if random() >= likely:
                return True, False, 0.0
            return True, True, self.watch(title, minutes)
        return False, False, 0.0

    def watch(self, title: int, minutes: float) -> float:
        episodes = int(self.titles.episodes[title])
        if episodes == 1:
            return minutes * self.rng.beta(8.7, 1.3)
        progress = float(self.memory.progress[self.at, title])
        left = round((1 - progress if 0 < progress < 1 else 1) * episodes)
        wanted = 1 + int(np.searchsorted(np.cumsum([0.45, 0.3, 0.15, 0.1]), self.rng.random()))
        return minutes * max(1, min(wanted, left, int(150 // minutes)))


def walked(walk: Walk, page: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error [3] of played, enjoyed, minutes over many walks."""
    walk.prepare(page)
    found = np.array([walk.once() for _ in range(times)], float)
    return found.mean(0), found.std(0) / math.sqrt(times) + 1e-9


def test_the_truth_is_what_many_members_would_do() -> None:
    titles, members, memory, visits, page = by_hand()
    truth = page_outcomes(titles, members, memory, visits, page)
    for v in range(2):
        walk = Walk(titles, members, memory, v, visits.take(slice(v, v + 1)), np.random.default_rng(v))
        mean, error = walked(walk, page[v], 8000)
        assert np.abs(mean - [truth.played[v], truth.enjoyed[v], truth.minutes[v]]).max() > 0
        assert (np.abs(mean - [truth.played[v], truth.enjoyed[v], truth.minutes[v]]) < 4 * error).all()


def test_the_truth_about_pages_of_the_log(world: World) -> None:
    visits = some(world, 3)
    memory, page = world.memory(visits), world.logging_page(visits, np.random.default_rng(1))
    truth = world.outcomes(visits, page)
    for v in range(3):
        walk = Walk(world.titles, world.members, memory, v, visits.take(slice(v, v + 1)), np.random.default_rng(v))
        mean, error = walked(walk, page[v], 4000)
        assert (np.abs(mean - [truth.played[v], truth.enjoyed[v], truth.minutes[v]]) < 4 * error).all()


def test_the_log_happened_as_often_as_the_truth_says(world: World) -> None:
    truth = world.outcomes(world.visits, world.homepages.titles)
    happened = world.homepages.played >= 0
    enjoyed = np.zeros(len(happened), bool)
    enjoyed[world.plays.visit] = world.plays.enjoyed & (world.plays.row >= 0)
    for chance, real in ((truth.played, happened), (truth.enjoyed, enjoyed)):
        for part in np.array_split(np.argsort(chance), 5):
            error = math.sqrt((chance[part] * (1 - chance[part])).sum()) / len(part)
            assert abs(real[part].mean() - chance[part].mean()) < 4 * error


def test_memory_is_the_plays_before(world: World) -> None:
    visits = some(world, 40)
    memory = world.memory(visits)
    plays: Plays = world.plays
    for v in range(len(visits)):
        before = np.flatnonzero((plays.member == visits.member[v]) & (plays.time < visits.time[v]))
        progress, satiation, order = np.zeros(400), np.zeros(16), []
        for p in before.tolist():
            title, hours = int(plays.title[p]), plays.minutes[p] / 60
            main, second = world.titles.genres[title].tolist()
            fade = math.exp(-(visits.time[v] - plays.time[p]) / (3 * DAY))
            satiation[main] += hours * fade
            if second >= 0:
                satiation[second] += hours * fade / 2
            progress[title] = plays.progress[p]
            order = [title, *(t for t in order if t != title)][:8]
        assert memory.progress[v].tolist() == progress.tolist()
        assert memory.recent[v][: len(order)].tolist() == order
        assert memory.faded(np.array([v]), visits.time[v : v + 1])[0] == pytest.approx(satiation, rel=1e-4, abs=1e-6)


def test_the_oracle_beats_the_logs_which_beat_chance(world: World) -> None:
    visits, rng = some(world, 200), np.random.default_rng(0)
    eligible = world.eligible(visits)
    oracle, logged, random = world.oracle_page(visits), world.logging_page(visits, rng), world.random_page(visits, rng)
    value = [world.page_value(visits, page) for page in (oracle, logged, random)]
    assert value[0].mean() > value[1].mean() + 0.1
    assert value[1].mean() > value[2].mean() + 0.1
    assert (value[0] >= value[1]).mean() > 0.97
    for page in (oracle, random):
        for v, one in enumerate(page):
            shown = one[one >= 0].tolist()
            assert len(shown) == len(set(shown))
            for row in one:
                assert not (row >= 0).any() or eligible[v][:, row[row >= 0]].all(1).any()


def test_the_greedy_oracle_is_near_the_best_page(world: World) -> None:
    """Every page of two rows of two titles, from three rows of four titles."""
    visits = some(world, 12, seed=3)
    eligible = np.zeros((len(visits), 3, 400), bool)
    for v, rows in enumerate(world.eligible(visits)):
        for q, row in enumerate(np.flatnonzero(rows.sum(1) >= 6)[:3]):
            eligible[v, q, np.flatnonzero(rows[row])[q : q + 4]] = True
    value = world.page_value(visits, world.oracle_page(visits, 2, 2, eligible))
    shares = []
    for v in range(len(visits)):
        pairs = [list(itertools.permutations(np.flatnonzero(row).tolist(), 2)) for row in eligible[v]]
        pages = [p for a, b in itertools.permutations(range(3), 2) for p in itertools.product(pairs[a], pairs[b])]
        every = world.page_value(visits.take(np.full(len(pages), v)), np.array(pages))
        assert value[v] <= every.max() + 1e-6
        shares.append(value[v] / every.max())
    assert min(shares) > 0.9
    assert np.mean(shares) > 0.97


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pages_of_every_shape(world: World, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 6))
    titles = st.integers(-1, 30)
    page = np.array(data.draw(st.lists(titles, min_size=rows * columns, max_size=rows * columns)), np.int64)
    page = page.reshape(1, rows, columns)
    visits = some(world, 1, seed=data.draw(st.integers(0, 20)))
    truth = world.outcomes(visits, page)
    assert 0 <= truth.enjoyed[0] <= truth.played[0] <= 1
    assert truth.minutes[0] >= 0
    wider = np.pad(page, ((0, 0), (0, 2), (0, 3)), constant_values=-1)
    spread = np.insert(page, data.draw(st.integers(0, rows)), -1, axis=1)
    for same in (wider, spread):
        assert world.page_value(visits, same) == pytest.approx(truth.enjoyed, rel=1e-4, abs=1e-7)


def test_a_title_counts_once_and_only_where_it_can_be_played(world: World) -> None:
    visits = some(world, 20)
    best = world.oracle_page(visits)[:, :1, :1]
    once = world.page_value(visits, best)
    assert (once > 0).all()
    assert world.page_value(visits, np.repeat(np.repeat(best, 3, 1), 4, 2)) == pytest.approx(once, rel=1e-5)
    future = int(world.titles.release.argmax())
    early = world.visit([3], START + DAY, "TV", "en-US")
    assert world.page_value(early, np.array([[[future]]])) == 0
    elsewhere = int(np.flatnonzero(~world.titles.available[0] & (world.titles.release < START))[0])
    assert world.page_value(early, np.array([[[elsewhere]]])) == 0
    assert world.page_value(early, np.full((1, 3, 4), -1)) == 0
    assert world.page_value(early.take(slice(0, 0)), np.zeros((0, 3, 4), int)).shape == (0,)


def test_rows_after_a_genre_lose_appeal(world: World) -> None:
    """Another row of the genre that was just passed over is worth less than one of a different genre."""
    visits = some(world, 50)
    page = world.random_page(visits, np.random.default_rng(2), 2, 8)
    faded = world_choice.fading(world.titles, visits.device, page)
    assert (faded[:, 0] == 1).all()
    assert (faded[:, 1] <= 1).all()
    assert faded[:, 1].min() < 0.5


def test_thousands_of_pages_in_seconds(world: World) -> None:
    visits = some(world, 2000)
    pages = world.logging_page(visits, np.random.default_rng(0))
    begin = time.process_time()
    world.page_value(visits, pages)
    assert time.process_time() - begin < 3
