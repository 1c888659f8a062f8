"""Search and more-like-this in one process: the same model, the same batches, one row each."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from frontrow.foundation.schema import MAX_TEXT, SOURCES, Schema, Vocabulary
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store
from frontrow.serving.surfaces import NAMES, NEIGHBOURS, SURFACES, Question, question
from wire_cases import public_events, texts

NOW = 1_720_000_000.0
SEARCH, LIKE_THIS = SURFACES["search"], SURFACES["more_like_this"]


def asking(surface: str, member: int = 1000, size: int = 20, context: Any = None, **more: Any) -> PageRequest:
    """A request with a question: `query=` or `title_id=`."""
    question = {k: more.pop(k) for k in ("query", "title_id") if k in more}
    text = json.dumps({**(context or {}), **question}).encode()
    return PageRequest(member, context=text, titles=size, surface=surface, **more)


def pages(engine: HomepageEngine, *requests: PageRequest) -> list[Page]:
    found = engine.pages(requests, NOW)
    for page in found:
        assert isinstance(page, Page), page
    return [page for page in found if isinstance(page, Page)]


def shown(page: Page) -> list[int]:
    return page.title_ids[page.title_ids >= 0].tolist()


def score(engine: HomepageEngine, request: PageRequest) -> np.ndarray:
    """The member's dot product with every title, float32 [N]."""
    prepared = engine.prepare([request], NOW)
    vectors, _ = engine.encode([p for p in prepared if not isinstance(p, ValueError)])
    with torch.inference_mode():
        return (vectors @ engine.store.vectors.T)[0].numpy()


def seen_by(store: Store, member_id: int) -> set[int]:
    return {e["what"]["entity_id"] for e in public_events(store.bundle, member_id)}


# --- Search ---


def test_search_is_by_how_the_name_fits_and_then_by_the_members_score(engine: HomepageEngine) -> None:
    """`title 11` is one name, and begins those of titles 110 to 119."""
    request = asking("search", query="title 11", size=30)
    (page,) = pages(engine, request)
    own = score(engine, request)
    others = sorted(range(110, 120), key=lambda t: (-own[t], t))
    assert shown(page) == [500 + t for t in [11, *others]]
    np.testing.assert_allclose(page.title_scores[0, :11], own[[11, *others]], rtol=1e-5)
    assert {SOURCES[s] for s in page.sources[0, :11]} == {"lexical"}
    assert page.info["matches"] == {"exact": 1, "prefix": 10, "words": 0, "typos": 0}
    assert (page.row_ids.tolist(), page.row_scores.tolist()) == ([SEARCH.row_id], [0.0])


def test_members_get_other_orders_and_titles_they_have_seen(engine: HomepageEngine, store: Store) -> None:
    found = pages(engine, *(asking("search", m, query="title", size=120) for m in (1000, 1001)))
    assert len({tuple(shown(page)) for page in found}) == 2
    assert seen_by(store, 1000) <= set(shown(found[0])) == set(store.bundle.titles.ids.tolist())


def test_of_equal_scores_the_smaller_id_comes_first(engine: HomepageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.store, "vectors", torch.ones_like(engine.store.vectors))
    (page,) = pages(engine, asking("search", query="title 2"))
    assert shown(page) == [502, *range(520, 530)]


def test_excluded_titles_are_not_found(engine: HomepageEngine) -> None:
    (page,) = pages(engine, asking("search", query="title 11", exclude=np.array([511, 513])))
    assert 511 not in shown(page)
    assert 510 + 100 in shown(page)


@pytest.mark.parametrize(
    "query", ["", "   ", "\t\n", "\x00\x01", "👽", "?!", "no such name", "x" * MAX_TEXT],
    ids=["empty", "spaces", "white space", "control characters", "emoji", "punctuation", "no match", "long"],
)  # fmt: skip
def test_nothing_found_is_an_empty_row_and_says_so(engine: HomepageEngine, query: str) -> None:
    (page,) = pages(engine, asking("search", query=query))
    assert page.row_ids.tolist() == [SEARCH.row_id]
    assert page.title_ids.tolist() == [[-1] * 20]
    assert page.info["fallback"] == "no_match"
    assert engine.counters["fallback_no_match"] == engine.counters["surface_search"] == engine.counters["pages"] == 1


def test_an_anonymous_search_is_answered_and_says_that_it_is_not_personal(engine: HomepageEngine) -> None:
    (page,) = pages(engine, asking("search", -1, query="title 5"))
    assert len(shown(page)) == 11
    assert page.info["fallback"] == "empty_history"


# --- More like this ---


def test_more_like_this_is_the_nearest_unseen_titles_in_the_members_order(engine: HomepageEngine, store: Store) -> None:
    request = asking("more_like_this", 1003, title_id=550, size=200)
    (page,) = pages(engine, request)
    vectors = store.vectors.numpy()
    near = [t for t in np.argsort(-(vectors @ vectors[50]), kind="stable").tolist() if t != 50]
    seen = {t - 500 for t in seen_by(store, 1003)}
    proposed = [t for t in near if t not in seen][:NEIGHBOURS]
    own = score(engine, request)
    assert shown(page) == [500 + t for t in sorted(proposed, key=lambda t: (-own[t], t))]
    assert {SOURCES[s] for s in page.sources[0, : len(proposed)]} == {"neighbour"}
    assert page.info["row_titles"] == {str(LIKE_THIS.row_id): 550}
    assert page.info["fallback"] is None


def test_of_many_titles_only_the_nearest_are_proposed(engine: HomepageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontrow.serving.surfaces.NEIGHBOURS", 7)
    similarity = engine.store.vectors.numpy() @ engine.store.vectors[50].numpy()
    unseen = [t for t in np.argsort(-similarity).tolist() if t != 50 and t + 500 not in seen_by(engine.store, 1003)]
    (page,) = pages(engine, asking("more_like_this", 1003, title_id=550))
    assert sorted(shown(page)) == sorted(500 + t for t in unseen[:7])


@pytest.mark.parametrize("member", [-1, 999_999], ids=["anonymous", "unknown"])
def test_for_somebody_unknown_it_is_pure_similarity(engine: HomepageEngine, store: Store, member: int) -> None:
    (page,) = pages(engine, asking("more_like_this", member, title_id=550, size=10))
    similarity = store.vectors.numpy() @ store.vectors[50].numpy()
    nearest = [t for t in np.argsort(-similarity, kind="stable").tolist() if t != 50][:10]
    assert shown(page) == [500 + t for t in nearest]
    np.testing.assert_allclose(page.title_scores[0], similarity[nearest], rtol=1e-5)
    assert page.info["fallback"] in ("empty_history", "unknown_member")


def test_events_in_the_request_make_somebody_known(engine: HomepageEngine, store: Store) -> None:
    events = public_events(store.bundle, 1004)
    known, sent = pages(
        engine, asking("more_like_this", 1004, title_id=550),
        asking("more_like_this", -1, title_id=550, events=texts(events)),
    )  # fmt: skip
    assert shown(sent) == shown(known)
    assert not seen_by(store, 1004) & set(shown(sent))


def test_where_nothing_is_left_the_row_is_empty(engine: HomepageEngine, store: Store) -> None:
    (page,) = pages(engine, asking("more_like_this", title_id=550, exclude=store.bundle.titles.ids))
    assert shown(page) == []
    assert page.info["fallback"] == "nothing_left"


# --- Both ---


def test_the_context_is_read_with_the_surface_as_its_canvas(engine: HomepageEngine, store: Store) -> None:
    """The tiny data has no canvas: the surface's is a value that the model never saw, which only a request's own is
    counted for."""
    for request, unknown in (
        (asking("search", query="title"), []),
        (asking("more_like_this", title_id=550, context={"canvas": None}), []),
        (asking("search", query="title", context={"canvas": "kids"}), ["context.canvas 'kids'"]),
        (PageRequest(1000), []),
    ):
        (page,) = pages(engine, request)
        assert page.info["unknown"] == unknown
        assert page.info["surface"] == request.surface
    tv, phone = (asking("search", query="title", context={"device": device}) for device in ("TV", "phone"))
    assert not np.array_equal(score(engine, tv), score(engine, phone))


def test_the_surface_is_the_canvas_where_the_model_knows_it(store: Store) -> None:
    fields = tuple(f for f in store.schema.fields if f.name != "canvas")
    without = SimpleNamespace(schema=Schema(fields, store.schema.title_fields))
    vocabularies = {**store.bundle.vocabularies, "canvas": Vocabulary(["home", "search"])}
    knows = SimpleNamespace(schema=store.schema, bundle=SimpleNamespace(vocabularies=vocabularies))
    for some, expected in ((knows, {"canvas": "search"}), (store, {}), (without, {})):
        of, expected = cast(Store, some), {"device": "TV"} | expected
        context = {"query": "alien", "device": "TV"}
        assert question(of, "search", context) == Question(SEARCH, "alien")
        assert context == expected


def test_requests_of_all_surfaces_share_a_batch(engine: HomepageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        asking("search", 1001, query="title 1"), PageRequest(1002), asking("more_like_this", -1, title_id=510, size=3),
        asking("search", 1003, query="nothing like it", size=5), PageRequest(-1, rows=2, titles=4),
        asking("more_like_this", 1004, title_id=599, size=120), asking("search", -1, query="titel 7", size=9),
    ]  # fmt: skip
    alone = [pages(HomepageEngine(engine.store), request)[0] for request in requests]  # whose rankings are not kept
    encoded: list[int] = []
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda prepared: encoded.append(len(prepared)) or encode(prepared))
    together = pages(engine, *requests)
    assert encoded == [len(requests)]
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found.row_ids, expected.row_ids)
        np.testing.assert_array_equal(found.title_ids, expected.title_ids)
        np.testing.assert_allclose(found.title_scores, expected.title_scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.sources, expected.sources)


def test_no_row_of_a_bundle_can_have_a_surfaces_id() -> None:
    assert NAMES == ("homepage", "search", "more_like_this")
    assert all(surface.row_id < -1 for surface in SURFACES.values()), "−1 ends a page; rows.json counts from 0"


@pytest.mark.parametrize(
    ("surface", "context", "says"),
    [
        ("search", None, "context: 'query' is missing; a request on the surface 'search' has it"),
        ("search", {}, "'query' is missing"),
        ("search", {"query": None}, "'query' is missing"),
        ("search", {"query": 5}, "'query' is 5; give a text"),
        ("search", {"query": ["alien"]}, r"'query' is \['alien'\]; give a text"),
        ("search", {"query": "x" * 10_000}, "'query' has 10000 characters; give at most 256"),
        ("search", {"query": "x", "title_id": 550}, r"context has \['title_id'\]"),
        ("search", {"query": "x", "colour": "red"}, r"context has \['colour'\]"),
        ("search", {"query": "x", "device": 5}, "context: 'device' is 5"),
        ("search", {"query": "x", "canvas": 5}, "context: 'canvas' is 5"),
        ("more_like_this", None, "'title_id' is missing; a request on the surface 'more_like_this' has it"),
        ("more_like_this", {"title_id": "550"}, "'title_id' is '550'; give an integer id"),
        ("more_like_this", {"title_id": 550.0}, "'title_id' is 550.0; give an integer id"),
        ("more_like_this", {"title_id": True}, "'title_id' is True; give an integer id"),
        ("more_like_this", {"title_id": -1}, "'title_id' is -1; ids are"),
        ("more_like_this", {"title_id": 2**63}, "'title_id' is 9223372036854775808; ids are"),
        ("more_like_this", {"title_id": 77}, "'title_id' is 77, which the catalogue of this bundle lacks"),
        ("homepage", {"query": "alien"}, r"context has \['query'\]"),
        ("kitchen", {}, "surface is 'kitchen'; this server ranks the surfaces homepage, search, more_like_this"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_refused_by_name_and_disturbs_nobody(
    engine: HomepageEngine, surface: str, context: Any, says: str
) -> None:
    text = b"" if context is None else json.dumps(context).encode()
    bad = PageRequest(1000, context=text, surface=surface)
    before, refused, after = engine.pages([asking("search", query="title 3"), bad, PageRequest(1001)], NOW)
    with pytest.raises(ValueError, match=says):
        raise refused  # type: ignore[misc]
    assert len(str(refused)) < 400
    assert isinstance(before, Page)
    assert isinstance(after, Page)
    assert (engine.counters["refused"], engine.counters["pages"]) == (1, 2)
