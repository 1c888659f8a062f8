"""The simulated world: the seed decides everything, the log has the public shape, and what is in it; wrong input."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from frontrow.foundation.schema import FIRST, default_schema
from frontrow.training import world as world_module
from frontrow.training.data import load_dataset
from frontrow.training.world import ROW_IDS, World, WorldConfig, main, simulate
from frontrow.training.world_choice import every_mood, look, page_choices
from frontrow.training.world_population import DAY, START
from small_world import SMALL, some

# The log


def test_the_seed_decides_everything(world: World) -> None:
    again, other = simulate(SMALL), simulate(WorldConfig(seed=6, members=300, titles=400, days=40))
    assert again._event_table().equals(world._event_table())
    everything = slice(0, len(world.visits))
    assert again._impressions(everything).equals(world._impressions(everything))
    assert again._title_table().equals(world._title_table())
    assert not np.array_equal(other.titles.appeal, world.titles.appeal)
    assert len(other.events) != len(world.events)


def test_members_in_groups_live_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorldConfig(seed=1, members=50, titles=100, days=20)
    whole = simulate(config)
    monkeypatch.setattr(world_module, "_CELLS", 1000)  # ten members at once
    parts = simulate(config)
    assert parts.visits.member.tolist() == sorted(parts.visits.member.tolist())
    assert len(parts.visits) == pytest.approx(len(whole.visits), rel=0.2)
    assert (np.diff(parts.plays.visit) > 0).all()


def test_a_data_set_that_training_reads(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    data = load_dataset(tmp_path, default_schema())
    assert data.counts == {
        "events": len(world.events), "members": len(np.unique(world.plays.member)), "titles": 400,
        "events_without_title": 0,
    }  # fmt: skip
    values = {name: set(v.values) for name, v in data.vocabularies.items()}
    assert values["device"] == {"TV", "phone", "tablet", "computer"}
    assert values["canvas"] == {"search", *(f"home_page_row_{r}" for r in range(8))}
    assert values["action_type"] == {"search", "play", "pause", "rewind", "skip", "abandon", "complete", "like"}
    assert values["entity_type"] == {"movie", "show"}
    assert "en-US" in values["locale"]
    duration = data.events.ids[:, data.schema.spans["duration"][0]]
    action = data.events.ids[:, data.schema.spans["action_type"][0]] - FIRST
    is_play = action == data.vocabularies["action_type"].values.index("play")
    assert ((duration > 0) == is_play).all()
    about = json.loads((tmp_path / "world.json").read_text("utf-8"))
    assert about["simulated"] is True
    assert WorldConfig(**about["config"]) == SMALL


def test_the_impressions_say_what_was_shown_and_played(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    table = pq.read_table(tmp_path / "impressions.parquet")
    assert len(table) == (world.homepages.titles >= 0).sum()
    columns = {name: table[name].to_numpy() for name in ("page_id", "row_position", "title_position", "title_id")}
    place = (columns["page_id"] * 8 + columns["row_position"]) * 8 + columns["title_position"]
    assert (np.diff(place) > 0).all()
    shown = set(zip(columns["page_id"].tolist(), columns["title_id"].tolist(), strict=True))
    assert len(shown) == len(table)  # no title twice on a page
    events = pq.read_table(tmp_path / "events.parquet")
    canvas = [where["canvas"] for where in events["where"].to_pylist()]
    assert sum(table["played"].to_pylist()) == (world.plays.row >= 0).sum() > 0
    assert {"search", "home_page_row_0"} < set(canvas)
    played = table.filter(table["played"])
    first = dict(zip(played["page_id"].to_pylist(), played["row_position"].to_pylist(), strict=True))
    on_page = world.plays.row >= 0
    assert [first[v] for v in world.plays.visit[on_page].tolist()] == world.plays.row[on_page].tolist()
    assert set(played["row_id"].to_pylist()) <= set(ROW_IDS.tolist())


def test_events_of_a_member_are_in_order_and_visits_do_not_overlap(world: World) -> None:
    member = world.plays.member[world.events.play]
    assert (np.lexsort((world.events.time, member)) == np.arange(len(member))).all()
    same = np.diff(world.plays.member) == 0
    ends = world.plays.time[:-1] + world.plays.minutes[:-1] * 60
    assert (world.visits.time[world.plays.visit[1:]] >= ends)[same].all()


def test_many_events_a_second() -> None:
    simulate(WorldConfig(seed=0, members=10, titles=200, days=5))
    begin = time.process_time()
    found = simulate(WorldConfig(seed=0, members=1500, titles=1000, days=40))
    rate = len(found.events) / (time.process_time() - begin)
    assert rate >= 30_000  # a wide margin: other work shares the core; impressions are not counted


def test_position_matters_on_both_axes(world: World) -> None:
    """On random pages the same titles stand everywhere, so that only the place can make the difference."""
    visits = some(world, 250)
    page = world.random_page(visits, np.random.default_rng(0))
    full = (page >= 0).all((1, 2))
    visits, page = visits.take(full), page[full]
    assert len(page) > 100
    moods = every_mood(len(page))
    views = look(world.titles, world.members, world.memory(visits), np.arange(len(page)), visits, moods, page)
    chance = page_choices(world.titles, visits, moods, views, page).mean((0, 1))
    assert (chance.sum(1)[:-3] > 1.1 * chance.sum(1)[3:]).all()
    assert (chance.sum(0)[:-3] > 1.1 * chance.sum(0)[3:]).all()
    homepages, shown = world.homepages, world.homepages.titles >= 0
    played = homepages.played[homepages.played >= 0]
    by_row = np.bincount(played // 8, minlength=8) / shown.any(2).sum(0)
    assert (by_row[:-2] > by_row[2:]).all()
    assert by_row[0] > 4 * by_row[7]


def test_tastes_drift_and_behaviour_follows(world: World) -> None:
    members = np.arange(300)
    first = world.members.tastes(members, np.full(300, START))
    moved = [np.linalg.norm(world.members.tastes(members, np.full(300, START + d * DAY)) - first, axis=-1).mean()
             for d in (0, 5, 15, 39)]  # fmt: skip
    assert moved[0] == 0
    assert moved[1] < moved[2] < moved[3]
    late = np.flatnonzero(world.plays.time > START + 30 * DAY)
    plays = world.plays.take(late)

    def distance(at: np.ndarray) -> float:
        away = world.members.tastes(plays.member, at) - world.titles.place[plays.title][:, None]
        return float(np.linalg.norm(away, axis=-1).min(1).mean())

    assert distance(plays.time) < distance(np.full(len(plays), START)) - 0.05


def test_clickbait_exists(world: World) -> None:
    titles = world.titles
    bait = (titles.appeal > 1) & (titles.quality < -0.5)
    honest = (titles.appeal > 1) & (titles.quality > 0.5)
    assert bait.sum() > 3
    enjoyed = [world.plays.enjoyed[kind[world.plays.title]].mean() for kind in (bait, honest)]
    assert enjoyed[0] < enjoyed[1] - 0.2


def test_phones_are_for_short_titles_and_tv_evenings_for_films(world: World) -> None:
    visits = world.visits.take(world.plays.visit)
    film = world.titles.episodes[world.plays.title] == 1
    phone, evening = visits.device == 1, (visits.device == 0) & (visits.slot >= 4)
    assert film[phone].mean() < film[evening].mean() - 0.15


# What it refuses


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"members": 0}, "members is 0; give a whole number from 1"),
        ({"titles": 5}, "titles is 5; give a whole number from 20"),
        ({"days": 1000}, "days is 1000; give a whole number from 1 to 365"),
        ({"seed": -1}, "seed is -1"),
        ({"rows": 2.5}, "rows is 2.5"),
        ({"columns": True}, "columns is True"),
    ],
)
def test_a_config_that_makes_no_world(config: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WorldConfig(**config)


def test_a_world_where_nothing_happens() -> None:
    with pytest.raises(ValueError, match="nobody visited: 1 members in 1 days; give more of either"):
        simulate(WorldConfig(seed=2, members=1, titles=20, days=1))


def test_visits_and_pages_that_cannot_be(world: World) -> None:
    visits = world.visit([1, 2], world.end, "TV", "en-US")
    assert len(visits) == 2
    for wrong, words in (
        ((300, world.end, "TV", "en-US"), "member 300; in this world it goes from 0 to 299"),
        ((1, 5, "TV", "en-US"), "time 5"),
        ((1, world.end, "toaster", "en-US"), "device is 'toaster'; give one of TV, phone"),
        ((1, world.end, "TV", "xx"), "locale is 'xx'; give one of en-US"),
    ):
        with pytest.raises(ValueError, match=words):
            world.visit(*wrong)
    for page, words in (
        (np.zeros((1, 2, 3), int), r"pages have shape \(1, 2, 3\)"),
        (np.zeros((2, 2, 3)), "type float64; give integers"),
        (np.full((2, 2, 3), 400), "title 400; ids go from 0 to 399"),
        (np.full((2, 2, 3), -2), "title -2"),
    ):
        with pytest.raises(ValueError, match=words):
            world.page_value(visits, page)
    with pytest.raises(ValueError, match=r"eligible has shape \(1, 2, 3\)"):
        world.oracle_page(visits, eligible=np.zeros((1, 2, 3), bool))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "w"), "--members", "20", "--titles", "60", "--days", "5", "--seed", "3"]) == 0
    assert "simulated" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [
        "events.parquet", "impressions.parquet", "titles.parquet", "world.json",
    ]  # fmt: skip
    assert main([str(tmp_path / "w"), "--members", "0"]) == 2
    assert "members is 0" in capsys.readouterr().err
