"""The benchmark of surfaces asks the model as the server does, and its page says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from frontrow.benchmarks import surfaces
from frontrow.benchmarks.surfaces import (
    NOWHERE,
    TYPED,
    difference,
    like_this,
    look_ups,
    markdown,
    measures,
    member_vectors,
    search_table,
    searches,
)
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import default_schema
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.requests import PageRequest, Prepared
from frontrow.serving.store import Store
from frontrow.training.data import Dataset, load_dataset
from frontrow.training.world import WorldConfig, simulate

if TYPE_CHECKING:
    from conftest import TinyRun


def test_a_search_is_encoded_as_the_server_encodes_it(
    tiny_bundle: Path, tiny_data: Dataset, tiny_model: FoundationModel
) -> None:
    engine, now = HomepageEngine(Store.open(tiny_bundle)), 1_720_000_000
    members = np.array([3, 0, 41])
    contexts = [{"timestamp": now, "device": d, "locale": "en-US", "canvas": "search"} for d in ("TV", "phone", "TV")]
    requests = [
        PageRequest(int(tiny_data.member_ids[m]), (), json.dumps(c | {"query": "x"}).encode(), surface="search")
        for m, c in zip(members, contexts, strict=True)
    ]
    prepared = [p for p in engine.prepare(requests, now) if isinstance(p, Prepared)]
    expected, _ = engine.encode(prepared)
    found = member_vectors(tiny_model, tiny_data, members, contexts)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_every_member_searches_once_after_the_log_for_what_is_there(tmp_path: Path) -> None:
    world = simulate(WorldConfig(seed=5, members=100, titles=200, days=20))
    world.write(tmp_path)
    data = load_dataset(tmp_path, default_schema())
    members, titles, contexts = searches(world, data)
    assert len(members) == len(set(members.tolist())) > 0.9 * len(data)
    assert all(c["timestamp"] >= world.end for c in contexts)
    again = searches(world, data)
    np.testing.assert_array_equal(titles, again[1])
    released = world.titles.release[titles]
    assert (released <= [c["timestamp"] for c in contexts]).all(), "nobody finds what is not out yet"


def test_measures_of_ranks_with_what_was_not_found() -> None:
    ranks = np.array([0, 1, 9, 10, NOWHERE])
    assert measures(ranks) == {"hr@10": 0.6, "mrr": (1 + 1 / 2 + 1 / 10 + 1 / 11) / 5}
    gain = difference([np.zeros(50)], [np.tile([0, 1], 25)])
    assert gain["mrr"] == 0.25
    assert 0 < gain["from"] < 0.25 < gain["to"]


def test_the_page_is_made_of_the_result(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surfaces, "NAMES", 300)
    monkeypatch.setattr(surfaces, "ASKED", 20)
    ways = ("lexical", "popularity", "model", "model, not told the canvas", "titles found")
    rng = np.random.default_rng(0)
    by_seed = {s: {n: {w: rng.integers(0, 30, 40) for w in ways} for n in TYPED} for s in (7, 8)}
    result = {"search": search_table(by_seed), "more_like_this": like_this(tiny_run.run_dir), "time": look_ups()}
    found = json.loads(json.dumps(result))
    assert found["search"]["searches"] == 80
    alike = found["more_like_this"]
    assert alike["members"] == len(tiny_run.data)
    assert all(0 <= m["hr@10"] <= 1 for m in alike["ranked_by"].values())
    text = markdown(found)
    assert text.count("\n| 3 |") == 4
    assert "seeds 7, 8" in text
    for heading in ("**Search**", "**More like this**", "**Look-up of names**"):
        assert heading in text
        assert heading not in markdown({})
