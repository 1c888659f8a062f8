"""Stale vectors see no more than they may."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from frontrow.benchmarks import stale_vectors
from frontrow.benchmarks.stale_vectors import asked_visits, datasets, member_vectors
from frontrow.benchmarks.world_model import world_of
from frontrow.foundation.encoding import bucket, serving_tokens
from frontrow.foundation.model import FoundationModel, ModelConfig
from frontrow.training.data import Dataset
from frontrow.training.train import build_model
from frontrow.training.world import World
from frontrow.training.world_log import WorldConfig
from frontrow.training.world_population import DAY, DEVICES


@pytest.fixture(scope="module")
def small() -> World:
    return world_of(3, WorldConfig(members=60, titles=100, days=20))


@pytest.fixture(scope="module")
def both(small: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    return datasets(small, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(both: tuple[Dataset, Dataset]) -> FoundationModel:
    config = ModelConfig(d_model=16, layers=1, heads=1, max_events=12)
    return build_model(both[0], config).eval()


def test_nothing_of_the_last_days_is_trained_on(small: World, both: tuple[Dataset, Dataset]) -> None:
    trained, whole = both
    until = small.end - stale_vectors.HELD_OUT_DAYS * DAY
    assert trained.events.timestamp.max() < until < whole.events.timestamp.max()
    assert len(trained.events.ids) == (whole.events.timestamp < until).sum()


def test_visits_are_asked_for_a_title_that_was_new_to_the_member(small: World, both: tuple[Dataset, Dataset]) -> None:
    visits, titles = asked_visits(small, both[1])
    assert len(visits) > 20
    assert len(set(visits.tolist())) == len(visits)
    plays = small.plays
    for visit, title in zip(visits, titles, strict=True):
        member, time = small.visits.member[visit], small.visits.time[visit]
        before = (plays.member == member) & (plays.time < time)
        assert title not in plays.title[before]
        assert title in plays.title[plays.visit == visit]
        assert (plays.time[before] < time - 48 * 3600).any()
        assert time >= small.end - stale_vectors.HELD_OUT_DAYS * DAY + 48 * 3600


@pytest.mark.parametrize("stale_hours", [0, 48])
def test_a_stale_vector_is_of_the_history_as_it_was(
    small: World, both: tuple[Dataset, Dataset], model: FoundationModel, stale_hours: int
) -> None:
    data, schema = both[1], both[1].schema
    visits = small.visits.take(asked_visits(small, data)[0][:20])
    found = member_vectors(model, data, visits, stale_hours, "nothing")
    for row, (member, time) in enumerate(zip(visits.member, visits.time, strict=True)):
        history = data.events.member(int(np.searchsorted(data.member_ids, member)))
        known = history.ids[history.timestamp < time - stale_hours * 3600]
        tokens = torch.from_numpy(serving_tokens(schema, known, np.zeros(schema.width, np.int32)))[-12:]
        with torch.no_grad():
            expected, _ = model.encode(tokens, torch.tensor([0, len(tokens)]))
        assert found[row] == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_what_is_told_is_time_and_device_but_not_the_row(
    small: World, both: tuple[Dataset, Dataset], model: FoundationModel
) -> None:
    data, seen = both[1], []
    visits = small.visits.take(asked_visits(small, data)[0][:20])

    def encode(tokens: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append(tokens[offsets[1:] - 1])
        return torch.zeros(len(offsets) - 1, 1), None

    spy = SimpleNamespace(config=model.config, encode=encode, parameters=model.parameters)
    for told in get_args(stale_vectors.Told):
        member_vectors(spy, data, visits, 24 if told == "gap" else 0, told)  # type: ignore[arg-type]
    untold, told_gap, told_of = seen
    device, canvas, hour = (data.schema.spans[name][0] for name in ("device", "canvas", "hour"))
    names = data.vocabularies["device"].values
    assert [names[i - 2] for i in told_of[:, device]] == [DEVICES[d] for d in visits.device]
    assert ((told_of[:, hour] - 2) - visits.time // 3600 % 24).abs().max() <= 1
    assert not told_of[:, canvas].any()
    assert not untold[:, data.schema.request_columns].any()
    gap = next(f for f in data.schema.fields if f.kind == "gap")
    before = [data.events.member(int(np.searchsorted(data.member_ids, m))).timestamp for m in visits.member]
    now = visits.time - 24 * 3600
    since = np.array([n - times[times < n].max() for n, times in zip(now, before, strict=True)])
    assert told_gap[:, data.schema.spans["gap"][0]].tolist() == bucket(gap, since).tolist()
    others = [c for c in data.schema.request_columns if c != data.schema.spans["gap"][0]]
    assert not told_gap[:, others].any()


def test_the_text_has_what_was_measured_and_the_difference_to_the_next_event_alone() -> None:
    def of(ranks: list[int], value: float) -> dict[str, dict]:
        return {"0 h": {"ranks": ranks, "value": [value] * 4}, "48 h": {"ranks": ranks, "value": [value] * 4}}

    plain, *others = stale_vectors.HALF_LIVES
    methods = {plain: of([0, 20, 20, 20], 0.5)} | {m: of([0, 0, 0, 20], 0.75) for m in others}
    found = stale_vectors.summary([{"seed": 4, "members": [0, 1, 2, 3], "methods": methods}])
    assert found["methods"][others[0]]["48 h"]["hr@10"]["difference"]["mean"] == pytest.approx(0.5)
    text = stale_vectors.markdown({**found, "world": {"members": 9, "titles": 8}, "held_out_days": 7})
    assert f"| {plain} | 0.5000 | 0.5000 |" in text
    assert f"| {others[0]} | 0.7500 (+0.2500 to +0.2500)" in text
