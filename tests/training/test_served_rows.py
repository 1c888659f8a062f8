"""What the row ranker's blend is learned from is what serving ranks: the same candidates, chances and rows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.row_ranker import RowRanker
from frontrow.serving import homepage
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.page import FIRST_TITLES
from frontrow.serving.requests import PageRequest, Prepared
from frontrow.serving.rows import RowSpec, rows_to_json
from frontrow.serving.store import Store
from frontrow.training.batches import training_events
from frontrow.training.data import Dataset
from frontrow.training.export import candidate_lists, in_memory
from frontrow.training.row_ranking import Moments, held_out_choices
from frontrow.training.served_rows import Served, blend, served_at

ROWS = rows_to_json(
    [
        RowSpec(1, "Popular", "popularity >= 0.7"),
        RowSpec(2, "Dramas", "'Drama' in genres", max_titles=5, min_titles=2),
        RowSpec(3, "Because", "similar_to_liked(1)", min_titles=1),
        RowSpec(4, "Again", "popularity >= 0", seen="only"),
        RowSpec(5, "First", "year > 1990", first=(560, 540)),
    ],
    ("play", "like"),
)


@pytest.fixture(scope="module")
def lists(tiny_data: Dataset) -> dict[str, torch.Tensor]:
    return candidate_lists(tiny_data, training_events(tiny_data))


@pytest.fixture
def engine(tiny_model: FoundationModel, tiny_data: Dataset, lists: dict[str, torch.Tensor]) -> HomepageEngine:
    ranker = RowRanker(torch.arange(1, 6), tiny_model.config.d_model, tiny_data.schema.id_field.width).eval()
    ranker.blend.copy_(torch.tensor([0.3, 0.5, 0.8]))
    return HomepageEngine(Store(in_memory(tiny_model, tiny_data, ROWS, lists, ranker)))


def context(data: Dataset, at: int) -> bytes:
    """The request-time fields of an event."""
    found: dict[str, Any] = {"timestamp": int(data.events.timestamp[at])}
    for name in ("device", "canvas", "locale"):
        code = int(data.events.ids[at, data.schema.spans[name][0]]) - 2
        if code >= 0:
            found[name] = data.vocabularies[name].values[code]
    return json.dumps(found).encode()


@pytest.mark.parametrize("candidates", [1000, 40], ids=["all titles", "few"])
def test_training_sees_what_a_server_would_have_ranked(
    engine: HomepageEngine, tiny_model: FoundationModel, tiny_data: Dataset, lists: dict[str, torch.Tensor],
    candidates: int, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A server whose store ends before the event, asked at its time and in its context."""
    monkeypatch.setattr(homepage, "CANDIDATES", candidates)
    positions = held_out_choices(tiny_data, "test")[[0, 7, 30]]
    served = served_at(engine, tiny_data, positions)
    logits = served.blended(engine.store.row_ranker)
    for p, at in enumerate(positions.tolist()):
        owner = int(np.searchsorted(tiny_data.events.offsets, at, side="right")) - 1
        lengths = np.diff(tiny_data.events.offsets)
        lengths[owner] = at - tiny_data.events.offsets[owner]
        kept = np.concatenate([s + np.arange(n) for s, n in zip(tiny_data.events.offsets, lengths, strict=False)])
        events = Encoded(tiny_data.events.ids[kept], tiny_data.events.timestamp[kept], np.append(0, lengths.cumsum()))
        before = replace(tiny_data, events=events)
        server = HomepageEngine(Store(in_memory(tiny_model, before, ROWS, lists, engine.store.row_ranker)))
        request = PageRequest(int(tiny_data.member_ids[owner]), context=context(tiny_data, at), rows=5)
        (prepared,) = server.prepare([request], 1.9e9)
        assert isinstance(prepared, Prepared)
        (ranked,) = server.rank([request], [prepared], *server.encode([prepared]))
        one = served.ranked[p]
        np.testing.assert_array_equal(one.titles, ranked.titles)
        np.testing.assert_array_equal(one.eligible, ranked.eligible)
        np.testing.assert_allclose(one.scores, ranked.scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.worth.chance, ranked.worth.chance, rtol=1e-4, atol=1e-7)
        assert one.worth.chance.sum() == pytest.approx(1, rel=1e-5), "of the candidates, not of all titles"
        (page,) = server.pages([request], 1.9e9)
        assert isinstance(page, Page)
        first = server.store.rows.ids.tolist().index(int(page.row_ids[0]))
        assert page.row_scores[0] == pytest.approx(float(logits[p, first].sigmoid()), rel=1e-4)
        assert served.moments.shown[p, first]
        hit = tiny_data.titles.ids[served.targets[p]] in page.title_ids[0, :FIRST_TITLES]
        assert bool(served.moments.relevant[p, first]) == hit


def test_mass_and_relevance_equal_a_loop(engine: HomepageEngine, tiny_data: Dataset) -> None:
    served = served_at(engine, tiny_data, held_out_choices(tiny_data, "validation"))
    hits = 0
    for p, one in enumerate(served.ranked):
        for r, spec in enumerate(engine.store.rows.specs):
            places = np.flatnonzero(one.eligible[r]).tolist()
            named = [np.flatnonzero(tiny_data.titles.ids[one.titles] == t).tolist() for t in spec.first]
            lead = [i for several in named for i in several if i in places]
            row = (lead + [i for i in places if i not in lead])[: min(FIRST_TITLES, spec.max_titles)]
            mass = np.log(one.worth.chance[row].sum(dtype=np.float64) + 1e-6)
            assert float(served.mass[p, r]) == pytest.approx(mass, abs=1e-4)
            assert bool(served.moments.relevant[p, r]) == (served.targets[p] in one.titles[row])
            assert bool(served.moments.shown[p, r]) == (len(places) >= spec.min_titles)
            hits += int(served.moments.relevant[p, r])
    assert 0 < hits < served.moments.relevant.numel()


def made(count: int, happened: bool | None = None) -> Served:
    """Rows are relevant by a logit of −1 + 0.5 · state + 0.9 · mass."""
    logits, mass = torch.randn(count, 4), torch.randn(count, 4) - 2
    relevant = torch.rand(count, 4) < (-1 + 0.5 * logits + 0.9 * mass).sigmoid()
    if happened is not None:
        relevant = torch.full_like(relevant, happened)
    shown = torch.rand(count, 4) < 0.8
    return Served(Moments(torch.empty(count, 8), relevant, shown), logits, mass, np.zeros(count, np.int64), [])


def test_the_blend_weighs_state_and_titles_by_what_they_tell() -> None:
    ranker = RowRanker(torch.arange(4), d_model=8, vector_width=4)
    some = made(20_000)
    found = blend(ranker, some).blend
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.5, 0.9]), rtol=0, atol=0.1)
    predicted = some.blended(ranker).sigmoid()[some.moments.shown].mean()
    assert float(predicted) == pytest.approx(float(some.moments.relevant[some.moments.shown].float().mean()), abs=0.01)


@pytest.mark.parametrize("happened", [False, True])
def test_where_held_out_moments_tell_nothing_the_state_alone_ranks(happened: bool) -> None:
    ranker = RowRanker(torch.arange(4), d_model=8, vector_width=4)
    assert blend(ranker, made(50, happened)).blend.tolist() == [0, 1, 0]
