"""What title scores mean on every page: with the page's log normaliser they are probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frontrow.serving import probability
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.probability import Normaliser
from frontrow.serving.requests import PageRequest, prepare
from frontrow.serving.store import Store

NOW = 1_720_000_000.0


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> HomepageEngine:
    return HomepageEngine(Store.open(tiny_bundle))


def test_scores_of_all_titles_new_to_a_member_are_probabilities_that_add_up_to_1(engine: HomepageEngine) -> None:
    store = engine.store
    for member in (1000, 1031, -1):
        request = PageRequest(member)
        p = prepare(store, request, NOW)
        (page,) = engine.pages([request], NOW)
        assert isinstance(page, Page)
        vector = engine.encode([p])[0][0].double()
        scores = (store.vectors.double() @ vector).numpy()
        chances = np.exp(scores - page.info["title_log_normaliser"])
        assert chances[~p.seen].sum() == pytest.approx(1, abs=1e-5)


def test_members_asked_together_get_the_normalisers_they_get_alone(engine: HomepageEngine) -> None:
    requests = [PageRequest(member) for member in (1000, 1001, -1)]
    together = engine.pages(requests, NOW)
    for page, request in zip(together, requests, strict=True):
        (alone,) = HomepageEngine(engine.store).pages([request], NOW)
        assert isinstance(page, Page)
        assert isinstance(alone, Page)
        assert page.info["title_log_normaliser"] == pytest.approx(alone.info["title_log_normaliser"], abs=1e-5)


def test_who_has_seen_everything_has_no_normaliser(engine: HomepageEngine) -> None:
    seen = np.ones(engine.store.title_count, bool)
    vectors, _ = engine.encode([prepare(engine.store, PageRequest(1000), NOW)])
    nothing = np.empty((1, 0), np.int64)
    assert engine.store.normaliser(vectors, [seen], nothing, np.empty((1, 0), np.float32)).tolist() == [-np.inf]


def case(titles: int) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray], np.ndarray, np.ndarray]:
    """(title vectors, member vectors, seen, candidates, scores): of 8 members whose 190 best titles are candidates,
    some of them seen, with an end of none."""
    generator = torch.Generator().manual_seed(0)
    vectors, members = torch.randn(titles, 16, generator=generator), torch.randn(8, 16, generator=generator) * 0.7
    scores, candidates = (members @ vectors.T).topk(200)
    candidates[:, 190:], scores[:, 190:] = -1, -torch.inf
    seen = [np.random.default_rng(i).random(titles) < 0.1 for i in range(8)]
    return vectors, members, seen, candidates.numpy(), scores.numpy()


def test_in_a_large_catalogue_too_who_has_seen_everything_has_no_normaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one title left that is neither a candidate nor sampled stands for nothing known."""
    monkeypatch.setattr(probability, "EXACT", 1000)
    monkeypatch.setattr(probability, "SAMPLE", 500)
    vectors, members, _, candidates, scores = case(2000)
    normaliser, seen = Normaliser(vectors), np.ones(2000, bool)
    assert (normaliser(members, [seen] * 8, candidates, scores) == -np.inf).all()
    left = seen.copy()
    left[np.setdiff1d(np.arange(2000), normaliser.sample)[0]] = False
    assert (normaliser(members, [left] * 8, np.full_like(candidates, -1), scores) == -np.inf).all()
    one = np.full_like(candidates, -1)
    one[:, 0] = np.flatnonzero(~left)[0]
    with np.errstate(all="raise"):
        assert (normaliser(members, [left] * 8, one, np.full_like(scores, -np.inf)) == -np.inf).all()


def test_a_large_catalogue_is_estimated_within_3_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sampled is no candidate and not seen; candidates alone would be far off."""
    monkeypatch.setattr(probability, "EXACT", 1000)
    monkeypatch.setattr(probability, "SAMPLE", 4000)
    vectors, members, seen, candidates, scores = case(20_000)
    found = Normaliser(vectors)(members, seen, candidates, scores)
    products = (members @ vectors.T).double().numpy()
    exact = np.array([np.log(np.exp(p[~s]).sum()) for p, s in zip(products, seen, strict=True)])
    alone = np.array([np.log(np.exp(p[:190]).sum()) for p in scores.astype(np.float64)])
    assert np.abs(found - exact).max() < 0.03
    assert np.abs(alone - exact).max() > 0.3


def test_a_sample_of_all_titles_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, members, seen, candidates, scores = case(1500)
    exact = Normaliser(vectors)(members, seen, candidates, scores)
    monkeypatch.setattr(probability, "EXACT", 1000)
    monkeypatch.setattr(probability, "SAMPLE", 1500)
    np.testing.assert_allclose(Normaliser(vectors)(members, seen, candidates, scores), exact, rtol=1e-6)
