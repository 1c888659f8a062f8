"""Orders of rows over the same titles, the best small page, visits to the world; and the text made of a result."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from frontrow.benchmarks import rows as bench
from frontrow.benchmarks.page_optimum import best_value, greedy_value, random_case, shortfalls
from frontrow.benchmarks.row_orders import ORDERS, RULES, TRUTH, UNBOUND, pages_of, worths
from frontrow.benchmarks.world_visits import chosen_freely, visits_after, world_rows
from frontrow.serving.homepage import HomepageEngine, Ranked
from frontrow.serving.requests import PageRequest, Prepared
from frontrow.serving.store import Store
from frontrow.training.page_metrics import discounts, relevance_of
from frontrow.training.world import World, WorldConfig, simulate
from frontrow.training.world_population import GENRES


@pytest.fixture(scope="module")
def ranked(store: Store) -> list[Ranked]:
    engine = HomepageEngine(store)
    requests = [PageRequest(int(m)) for m in store.bundle.member_ids[:6]]
    prepared = [p for p in engine.prepare(requests, 1.8e9) if isinstance(p, Prepared)]
    return engine.rank(requests, prepared, *engine.encode(prepared))


def test_the_row_ranker_among_the_orders_is_the_page_that_is_served(store: Store, ranked: list[Ranked]) -> None:
    pages, scores = pages_of(store, ranked, np.zeros((len(ranked), len(store.bundle.titles))), 10, 8)
    engine = HomepageEngine(store)
    for p, one in enumerate(engine.pages([PageRequest(int(m)) for m in store.bundle.member_ids[:6]], 1.8e9)):
        assert not isinstance(one, ValueError)
        filled = pages["row ranker"][p] >= 0
        shown = np.where(filled, store.bundle.titles.ids[pages["row ranker"][p]], -1)
        np.testing.assert_array_equal(shown[: len(one.title_ids)], one.title_ids)
        assert np.isfinite(scores[p][filled]).all()
        np.testing.assert_allclose(np.diff(scores[p][0]), np.diff(one.title_scores[0]), atol=1e-4)
    assert set(pages) == {*ORDERS, TRUTH, UNBOUND}


def test_rules_say_of_a_row_what_their_names_say(store: Store, ranked: list[Ranked]) -> None:
    one = ranked[0]
    found = worths(store, one, np.zeros(len(store.bundle.titles)))
    for r, places in enumerate(map(np.flatnonzero, one.eligible)):
        if not len(places):
            assert all(found[rule].base[r] <= 0 for rule in RULES)
            continue
        assert found["size"].base[r] == len(places)
        assert found["popularity"].base[r] == pytest.approx(store.popularity[one.titles[places]].mean())
        assert found["mean title score"].base[r] == pytest.approx(one.scores[places].mean(), rel=1e-4)
        assert found["best title score"].base[r] == pytest.approx(one.scores[places].max(), rel=1e-4)
        assert found["mean score of its first titles"].base[r] == pytest.approx(one.scores[places[:8]].mean(), rel=1e-4)


def brute_force(eligible: np.ndarray, chance: np.ndarray, rows: int, columns: int) -> float:
    """The best page of all: every order of rows, every title or none in every cell."""
    worth, best = discounts(rows, columns), 0.0
    titles = range(-1, len(chance))
    for line in permutations(range(len(eligible)), rows):
        for cells in product(titles, repeat=rows * columns):
            real = [t for t in cells if t >= 0]
            if len(real) == len(set(real)) and all(
                t < 0 or eligible[line[c // columns], t] for c, t in enumerate(cells)
            ):
                best = max(best, sum(chance[t] * worth.ravel()[c] for c, t in enumerate(cells) if t >= 0))
    return best


def test_the_best_page_is_that_of_brute_force_and_no_assembled_page_is_better() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        chance = np.sort(rng.dirichlet(np.ones(4)))[::-1]
        eligible = rng.random((3, 4)) < 0.6
        best = best_value(eligible, chance, 2, 2)
        assert best == pytest.approx(brute_force(eligible, chance, 2, 2))
        assert greedy_value(eligible, chance, 2, 2) <= best + 1e-12
    below = shortfalls(30)
    assert (below >= -1e-12).all()
    assert 0 < below.max() < 0.5
    eligible, chance = random_case(rng)
    assert eligible.shape == (5, 9)
    assert (np.diff(chance) <= 0).all()


@pytest.fixture(scope="module")
def world() -> World:
    return simulate(WorldConfig(seed=3, members=60, titles=120, days=12))


def test_visits_come_when_all_that_the_model_knows_is_past(world: World) -> None:
    visits = visits_after(world, np.arange(30))
    assert len(visits)
    assert (visits.member < 30).all()
    assert (visits.time >= world.end).all()
    chance = chosen_freely(world, visits)
    assert chance.shape == (len(visits), 120)
    assert chance.sum(1) == pytest.approx(np.ones(len(visits)))
    away = ~world.titles.available[visits.locale] | (world.titles.release > visits.time[:, None])
    assert (chance[away] == 0).all()


def test_the_worlds_rows_have_the_worlds_ids() -> None:
    specs = world_rows(GENRES)
    assert {s.row_id for s in specs} == {1, 2, 4, 5, 6, 10, 11, *range(100, 100 + len(GENRES))}


def test_worlds_have_members_of_their_own_and_runs_share_them() -> None:
    pieces: list[bench.Piece] = [
        {
            "row ranker/ndcg2d": np.array([1.0, 1.0, 0.0, 0.0]) + i,
            "size/ndcg2d": np.full(4, 0.5),
            "member": np.arange(4),
        }
        for i in range(2)
    ]
    found = {worlds: bench.ahead(pieces, "size", "ndcg2d", worlds) for worlds in (False, True)}
    for of in found.values():
        assert of["mean"] == pytest.approx(0.5)
        assert of["share"] == pytest.approx(1.0)
        assert of["by_seed"] == pytest.approx([0.0, 2.0])
    assert found[True]["to"] > 0.5 + 12.7 * 0.3, "two worlds that differ by one say little of others"


def test_the_text_is_made_of_the_result_alone(store: Store, ranked: list[Ranked], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chance = rng.dirichlet(np.full(len(store.bundle.titles), 0.1), len(ranked))
    piece = bench.measured(store, ranked, chance, (4, 5))
    wanted = relevance_of(piece["row ranker/page"], chance)
    assert piece["row ranker/recall"] == pytest.approx(wanted[:, :3, :4].sum((1, 2)))
    assert piece["row ranker/sweep"][2] == pytest.approx(piece["row ranker/recall"].mean())
    assert piece["knowing the truth/recall"].mean() > max(piece[f"{name}/recall"].mean() for name in ORDERS)
    kept = {"member": np.arange(len(ranked))} | bench._of_layer(piece, 1, True) | bench._of_layer(piece, 0, False)
    world = dict(kept)
    for name in (*ORDERS, TRUTH, UNBOUND, "oracle"):
        world[f"{name}/value"] = rng.random(len(ranked))
    for name in ("ndcg2d", "recall"):
        world[f"oracle/{name}"] = rng.random(len(ranked))
    world["layer 1/row ranker/value"] = world["layer 0/row ranker/value"] = np.array(0.25)
    found = {
        "movielens": bench.summary("movielens", {"a": kept, "b": kept}),
        "world": bench.summary("world", {"101": world}),
        "assembly": bench.assembly(20),
    }
    assert found["movielens"]["pages"] == 2 * len(ranked)
    text = bench.markdown(found)
    assert "Simulated world" in text
    assert f"{found['movielens']['orders']['row ranker']['ndcg2d']:.3f}" in text
    assert "nan" not in text
    bench.heat_maps(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_another_layers_state_leaves_the_model_as_it_is(store: Store) -> None:
    configured = store.model.config.state_layer
    assert bench._at_layer(store.model, 0).config.state_layer == 0
    assert store.model.config.state_layer == configured > 0
