"""The engine in one process: what a page is worth, whom it must not fail, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.foundation.schema import MAX_EVENTS
from frontrow.kernels.folded_embedding import FoldedEmbedding
from frontrow.serving import homepage
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.page import FIRST_TITLES
from frontrow.serving.requests import PageRequest, RequestError
from frontrow.serving.store import Store
from frontrow.training.batches import evaluation_batch
from frontrow.training.data import Dataset
from wire_cases import BAD_REQUESTS, Bad, public_events, texts

NOW = 1_720_000_000.0
UNKNOWN_MEMBER = 999_999


def pages(engine: HomepageEngine, *requests: PageRequest) -> list[Page]:
    found = engine.pages(requests, NOW)
    for page in found:
        assert isinstance(page, Page), page
    return [page for page in found if isinstance(page, Page)]


def shown(page: Page) -> list[int]:
    return page.title_ids[page.title_ids >= 0].tolist()


def assert_same(found: Page, expected: Page) -> None:
    """The same rows and titles in the same order, with scores within 1e-5."""
    np.testing.assert_array_equal(found.row_ids, expected.row_ids)
    np.testing.assert_array_equal(found.title_ids, expected.title_ids)
    np.testing.assert_allclose(found.row_scores, expected.row_scores, rtol=1e-5)
    np.testing.assert_allclose(found.title_scores, expected.title_scores, rtol=1e-5, atol=1e-6)


def with_rows(store: Store, *rows: dict[str, Any]) -> HomepageEngine:
    """An engine of the same bundle with other rows."""
    full = [{"row_id": i, "label": f"Row {i}", "where": "True", "min_titles": 1, **row} for i, row in enumerate(rows)]
    bundle = dataclasses.replace(store.bundle, rows={"liked_actions": ["like"], "rows": full})
    return HomepageEngine(Store(bundle))


# --- What a score is ---


def test_scores_are_the_dot_product_of_member_and_title_vectors(engine: HomepageEngine, store: Store) -> None:
    """Against the whole model in float64, from the tokens on."""
    requests = [PageRequest(m, rows=20, titles=30) for m in (1000, 1017, 1059, -1)]
    prepared = engine.prepare(requests, NOW)
    model = copy.deepcopy(store.model).double()
    with torch.no_grad():
        titles = model.title_vectors()
        for page, p in zip(pages(engine, *requests), prepared, strict=True):
            assert not isinstance(p, ValueError)
            vectors, states = model.encode(torch.from_numpy(p.tokens), torch.tensor([0, len(p.tokens)]))
            scores = (titles @ vectors[0]).numpy()
            places = page.title_ids >= 0
            expected = scores[np.searchsorted(store.bundle.titles.ids, page.title_ids[places])]
            np.testing.assert_allclose(page.title_scores[places], expected, rtol=1e-5, atol=1e-5 * np.abs(scores).max())
            assert (page.title_scores[~places] == 0).all()
            ranker = copy.deepcopy(store.row_ranker).double()
            features = ranker.row_vectors(torch.from_numpy(store.rows.ids), store.row_features.double())
            alone = ranker(states, *features)[0].numpy()
            ids, candidates = store.bundle.titles.ids, np.flatnonzero(~p.seen)  # all 120 are, but those seen
            total = np.exp(scores[candidates]).sum()
            above: set[int] = set()
            for row, chance in zip(page.row_ids.tolist(), page.row_scores.tolist(), strict=True):
                at = store.rows.ids.tolist().index(row)
                fits = store.rows.masks(p.view, candidates, p.seen[candidates])[at]
                fits &= ~np.isin(ids[candidates], list(above))
                first = np.sort(scores[candidates[fits]])[::-1][:FIRST_TITLES]
                shift, stretch, slope = ranker.blend.tolist()
                logit = shift + stretch * alone[at] + slope * np.log(np.exp(first).sum() / total + 1e-6)
                assert chance == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)
                above |= set(page.title_ids[page.row_ids.tolist().index(row)].tolist())


def test_rows_go_down_and_titles_across_by_score_and_no_title_is_shown_twice(engine: HomepageEngine) -> None:
    (page,) = pages(engine, PageRequest(1003, rows=12, titles=9))
    assert 3 <= len(page.row_ids) <= 12
    assert (np.diff(page.row_scores) <= 0).all()
    assert len(shown(page)) == len(set(shown(page)))
    for ids, scores, sources in zip(page.title_ids, page.title_scores, page.sources, strict=True):
        count = int((ids >= 0).sum())
        assert 4 <= count <= 9, "no row of the default catalogue is shown with fewer than four titles"
        assert (ids[:count] >= 0).all()
        assert (np.diff(scores[:count]) <= 0).all()
        assert (sources[:count] > 0).all()
        assert (sources[count:] == 0).all()


def test_a_member_who_asks_again_gets_the_same_page_without_the_model(
    engine: HomepageEngine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = int(store.bundle.member_ids[3])
    first = pages(engine, PageRequest(member), PageRequest(member, rows=3, titles=5))
    monkeypatch.setattr(store.model, "encode", None)
    again = pages(engine, PageRequest(member), PageRequest(member, rows=3, titles=5))
    for found, expected in zip(again, first, strict=True):
        assert_same(found, expected)
        assert found.info["counts"] == expected.info["counts"]
    assert engine.counters["ranking_kept"] == 2


def test_a_page_is_ranked_anew_when_anything_it_depends_on_has_changed(engine: HomepageEngine, store: Store) -> None:
    member, other = store.bundle.member_ids[[3, 4]].tolist()
    event = texts(public_events(store.bundle, member)[-1:])
    same = PageRequest(member)
    (before,) = pages(engine, same)
    in_a_day = {"context": json.dumps({"timestamp": int(NOW) - 86400}).encode()}
    exclude = np.array(shown(before)[:5])
    changed = [PageRequest(other), PageRequest(member, events=event), PageRequest(member, **in_a_day),
               PageRequest(member, context=b'{"device": "TV"}'), PageRequest(member, exclude=exclude)]  # fmt: skip
    for request in changed:
        (found,) = pages(engine, request)
        (alone,) = pages(HomepageEngine(store), request)
        assert_same(found, alone)
    assert engine.counters["ranking_kept"] == 0
    (after,) = pages(engine, same)
    assert_same(after, before)


def test_so_many_rankings_are_kept_and_the_least_recently_used_goes_first(
    engine: HomepageEngine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homepage, "KEPT", 2)
    one, two, three = (PageRequest(int(m)) for m in store.bundle.member_ids[:3])
    for request, kept in ((one, 0), (two, 0), (one, 1), (three, 1), (one, 2), (two, 2), (three, 2)):
        pages(engine, request)
        assert engine.counters["ranking_kept"] == kept, request


def test_members_asked_together_get_the_pages_they_get_alone(engine: HomepageEngine, store: Store) -> None:
    requests = [PageRequest(int(m), rows=8, titles=6) for m in store.bundle.member_ids[:12]]
    requests += [PageRequest(), PageRequest(UNKNOWN_MEMBER), PageRequest(events=texts([play(501, 100)]))]
    for found, request in zip(pages(engine, *requests), requests, strict=True):
        assert_same(found, pages(HomepageEngine(store), request)[0])


def test_the_same_request_gives_the_same_page_to_the_last_bit(engine: HomepageEngine, store: Store) -> None:
    first, second = pages(engine, PageRequest(1001))[0], pages(HomepageEngine(store), PageRequest(1001))[0]
    for name in ("row_ids", "row_scores", "title_ids", "title_scores", "sources"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_what_is_served_is_what_was_evaluated(engine: HomepageEngine, tiny_data: Dataset) -> None:
    """Histories longer than the model reads too: the very tokens that the offline evaluation ranks with."""
    store, longest = engine.store, engine.store.model.config.max_events
    members = [5, 0, 31]
    assert (np.diff(tiny_data.events.offsets)[members] > longest + 2).all()
    for at in members:
        events = public_events(store.bundle, int(tiny_data.member_ids[at]))
        context = {"timestamp": events[-1]["timestamp"], **events[-1]["where"]}
        request = PageRequest(events=texts(events[:-1]), context=texts([context])[0])
        (p,) = engine.prepare([request], NOW)
        assert not isinstance(p, ValueError), p
        tokens, _ = evaluation_batch(tiny_data, np.array([at]), "test", longest, with_request=True)
        np.testing.assert_array_equal(p.tokens, tokens.numpy())


# --- Histories: stored, sent, and both ---


def play(title: int, timestamp: int, action: str = "play") -> dict[str, Any]:
    return {"timestamp": timestamp, "what": {"action_type": action, "entity_id": title}, "where": {"device": "TV"}}


@pytest.mark.parametrize("seconds", [400_000, -500], ids=["newer", "in between"])
def test_sent_events_join_the_stored_history(engine: HomepageEngine, store: Store, seconds: int) -> None:
    """As if the whole history had been sent; and events that are late stand where they belong."""
    stored = public_events(store.bundle, 1008)
    sent = [play(510 + i, stored[-1]["timestamp"] + seconds + i * 60) for i in range(4)]
    known, anonymous = pages(engine, PageRequest(1008, events=texts(sent)), PageRequest(events=texts(stored + sent)))
    assert_same(known, anonymous)
    assert known.info["fallback"] is anonymous.info["fallback"] is None
    alone = pages(engine, PageRequest(1008))[0]
    assert not np.array_equal(alone.title_scores, known.title_scores), "the sent events matter"
    assert not {510, 511, 512, 513} & set(shown(known))


def test_a_long_history_is_read_from_its_newest_end(engine: HomepageEngine, store: Store) -> None:
    longest = store.model.config.max_events
    rng = np.random.default_rng(3)
    events = [play(500 + int(t), 1_600_000_000 + 100 * i) for i, t in enumerate(rng.integers(0, 40, 10_000))]
    (page,) = pages(engine, PageRequest(events=texts(events)))
    assert page.info["counts"] == {
        "unknown_values": 0,
        "out_of_order": 0,
        "truncated": 10_000 - longest,
        "unknown_keys": 0,
    }
    assert engine.counters["truncated"] == 10_000 - longest
    whole, newest = engine.prepare([PageRequest(events=texts(e)) for e in (events, events[-longest - 1 :])], NOW)
    assert not isinstance(whole, ValueError)
    assert not isinstance(newest, ValueError)
    np.testing.assert_array_equal(whole.tokens, newest.tokens)
    assert not {e["what"]["entity_id"] for e in events} & set(shown(page)), "what was seen long ago stays seen"


def test_events_out_of_order_are_sorted_and_counted(engine: HomepageEngine) -> None:
    events = [play(501 + i, 1_600_000_000 + 3600 * t) for i, t in enumerate([0, 2, 1, 3, 9, 5])]
    mixed, straight = pages(
        engine, PageRequest(events=texts(events)),
        PageRequest(events=texts(sorted(events, key=lambda e: e["timestamp"]))),
    )  # fmt: skip
    assert_same(mixed, straight)
    assert mixed.info["counts"]["out_of_order"] == 2
    assert straight.info["counts"]["out_of_order"] == 0
    assert engine.counters["out_of_order"] == 2


# --- Never fails for a member ---


@pytest.mark.parametrize(
    ("request_", "fallback"),
    [
        (PageRequest(UNKNOWN_MEMBER), "unknown_member"),
        (PageRequest(2**63 - 1), "unknown_member"),
        (PageRequest(0), "unknown_member"),
        (PageRequest(-1), "empty_history"),
        (PageRequest(UNKNOWN_MEMBER, events=texts([play(10**12, 5), play(3, 9)])), "unknown_titles"),
        (PageRequest(UNKNOWN_MEMBER, events=texts([play(501, 5)])), None),
        (PageRequest(1000), None),
    ],
    ids=["unknown", "largest id", "smallest id", "anonymous", "titles all unknown", "unknown with events", "known"],
)
def test_everybody_gets_a_page_and_its_fallback_has_a_name(
    engine: HomepageEngine, request_: PageRequest, fallback: str | None
) -> None:
    (page,) = pages(engine, request_)
    assert len(page.row_ids) == 10
    assert np.isfinite(page.title_scores).all()
    assert page.info["fallback"] == fallback
    counted = {name: n for name, n in engine.counters.items() if name.startswith("fallback")}
    assert counted == ({f"fallback_{fallback}": 1} if fallback else {})
    assert engine.counters["pages"] == 1


def test_unknown_values_are_counted_and_no_error(engine: HomepageEngine) -> None:
    strange = {"timestamp": 7, "what": {"action_type": "teleport", "entity_id": 3}, "where": {"device": "fridge"}}
    (page,) = pages(engine, PageRequest(events=texts([strange, play(501, 9)]), context=b'{"device": "toaster"}'))
    assert page.info["counts"]["unknown_values"] == engine.counters["unknown_values"] == 4
    assert page.info["unknown"] == [
        "what.action_type 'teleport'", "what.entity_id 3", "where.device 'fridge'", "context.device 'toaster'",
    ]  # fmt: skip


def test_a_misspelt_key_is_counted_and_named(engine: HomepageEngine) -> None:
    event = {"timestamp": 7, "what": {"action_typ": "play", "entity_id": 501}}
    (page,) = pages(engine, PageRequest(events=texts([event])))
    assert page.info["counts"]["unknown_keys"] == engine.counters["unknown_keys"] == 1
    assert page.info["unknown"] == ["what.action_typ"]


def test_no_title_is_left_an_empty_page(engine: HomepageEngine, store: Store) -> None:
    everything = [play(int(t), 100) for t in store.bundle.titles.ids]
    for request in (
        PageRequest(exclude=store.bundle.titles.ids, titles=5),
        PageRequest(events=texts(everything), titles=5),
    ):
        (page,) = pages(engine, request)
        assert page.row_ids.shape == page.row_scores.shape == (0,)
        assert page.title_ids.shape == page.title_scores.shape == page.sources.shape == (0, 5)
        assert page.info["fallback"] == "nothing_left"
    assert engine.counters["fallback_nothing_left"] == 2


def test_the_largest_page_is_as_much_as_there_is(engine: HomepageEngine, store: Store) -> None:
    (page,) = pages(engine, PageRequest(1002, rows=100, titles=500))
    assert len(page.row_ids) < len(store.rows)
    assert page.title_ids.shape[1] == 500
    assert len(shown(page)) == len(set(shown(page))) <= store.title_count


def test_a_pinned_row_is_full_though_its_titles_are_not_among_the_candidates(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its titles are unpopular, and only ten candidates are drawn; those it lacks come by popularity."""
    monkeypatch.setattr(homepage, "CANDIDATES", 10)
    where = {"where": "popularity < 0.2", "min_titles": 4, "max_titles": 6}
    without, pinned = with_rows(store, where, {}), with_rows(store, {**where, "pin": 0}, {})
    request = PageRequest(1003, rows=5, titles=20)
    assert 0 not in pages(without, request)[0].row_ids
    (page,) = pages(pinned, request)
    assert page.row_ids[0] == 0
    assert int((page.title_ids[0] >= 0).sum()) == 6
    assert page.info["pinned"] == [0]
    assert not seen_by(store, 1003) & set(shown(page))


# --- Seen, excluded, liked ---


def seen_by(store: Store, member_id: int) -> set[int]:
    return {e["what"]["entity_id"] for e in public_events(store.bundle, member_id)}


def test_what_a_member_has_seen_stands_only_in_rows_that_say_so(engine: HomepageEngine, store: Store) -> None:
    seen = seen_by(store, 1011)
    (page,) = pages(engine, PageRequest(1011, rows=100, titles=100))
    assert not seen & set(shown(page))

    mixed = with_rows(store, {"pin": 0, "max_titles": 5}, {"seen": "only", "pin": 1, "max_titles": 5},
                      {"seen": "any", "pin": 2, "max_titles": 500})  # fmt: skip
    (page,) = pages(mixed, PageRequest(1011, rows=3, titles=500))
    new, again, both = ({t for t in row if t >= 0} for row in page.title_ids.tolist())
    assert len(new) == len(again) == 5
    assert not new & seen
    assert again < seen
    assert both == set(store.bundle.titles.ids.tolist()) - new - again
    history = page.sources[1][page.title_ids[1] >= 0]
    assert (history == 7).all(), "its source is the member's own history"


def test_excluded_titles_do_not_appear_even_where_seen_titles_may(store: Store) -> None:
    seen = sorted(seen_by(store, 1011))
    engine = with_rows(store, {"seen": "only", "max_titles": 500}, {"max_titles": 500})
    exclude = np.array([*seen[:3], 555, 556, 10**15], np.int64)  # ids that no catalogue has do no harm
    everything = set(shown(pages(engine, PageRequest(1011, titles=500))[0]))
    (page,) = pages(engine, PageRequest(1011, titles=500, exclude=exclude))
    assert set(shown(page)) == everything - set(exclude.tolist())
    assert everything == set(store.bundle.titles.ids.tolist())


def test_a_row_about_a_liked_title_names_it(engine: HomepageEngine, store: Store) -> None:
    events = [play(503, 100, "like"), play(504, 200, "abandon"), play(505, 300, "play")]
    (page,) = pages(engine, PageRequest(events=texts(events), rows=100))
    assert page.info["row_titles"] == {
        row: title for row, title in (("10", 505), ("11", 503)) if int(row) in page.row_ids
    }
    assert page.info["row_titles"], "abandoning is not liking, playing is"
    for row, title in page.info["row_titles"].items():
        near = store.neighbours(title - 500) + 500
        row_titles = page.title_ids[page.row_ids.tolist().index(int(row))]
        assert set(row_titles[row_titles >= 0].tolist()) <= set(near.tolist())


# --- What is refused ---


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_by_name_and_disturbs_nobody(engine: HomepageEngine, bad: Bad) -> None:
    before, refused, after = engine.pages([PageRequest(1000), bad.page_request(), PageRequest(1001)], NOW)
    with pytest.raises(ValueError, match=bad.says):
        raise refused  # type: ignore[misc]
    assert len(str(refused)) < 400
    assert engine.counters["refused"] == 1
    assert engine.counters["pages"] == 2
    for found, member in ((before, 1000), (after, 1001)):
        assert isinstance(found, Page)
        assert_same(found, pages(engine, PageRequest(member))[0])


def test_more_events_than_the_limit_are_refused_unread(engine: HomepageEngine) -> None:
    (refused,) = engine.pages([PageRequest(events=[b"not even JSON"] * (MAX_EVENTS + 1))], NOW)
    with pytest.raises(RequestError, match="100001 events; give at most 100000, the newest"):
        raise refused  # type: ignore[misc]


def test_more_bytes_than_the_limit_are_refused_unread(engine: HomepageEngine) -> None:
    long = [b" " * 2**20] * 33
    for request, words in (
        (PageRequest(events=long), f"events and context have {33 * 2**20} bytes; give at most {32 * 2**20}"),
        (PageRequest(context=long[0] * 33), "events and context have"),
        (PageRequest(experiment="x" * 257), "experiment has 257 characters; give at most 256"),
        (PageRequest(surface="x" * 2**20), "surface has 1048576 characters"),
    ):
        (refused,) = engine.pages([request], NOW)
        with pytest.raises(RequestError, match=words):
            raise refused  # type: ignore[misc]
    assert pages(engine, PageRequest(experiment="x" * 256))[0].info["experiment"] == "x" * 256


def test_only_bad_requests_is_only_refusals(engine: HomepageEngine) -> None:
    answers = engine.pages([bad.page_request() for bad in BAD_REQUESTS[:5]], NOW)
    assert all(isinstance(answer, ValueError) for answer in answers)
    assert engine.pages([], NOW) == []


# --- What it computes with ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="models are folded on a CPU")
def test_the_served_model_is_folded_and_its_page_is_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [PageRequest(m) for m in (*store.bundle.member_ids[:3].tolist(), UNKNOWN_MEMBER)]
    calls: list[int] = []
    fold_call = FoldedEmbedding.__call__

    def counted(self: FoldedEmbedding, ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return fold_call(self, ids)

    monkeypatch.setattr(FoldedEmbedding, "__call__", counted)
    folded = pages(HomepageEngine(store), *requests)
    assert len(calls) == 1
    unfolded = Store(store.bundle)
    unfolded.model.events.folded = None
    for found, wanted in zip(folded, pages(HomepageEngine(unfolded), *requests), strict=True):
        assert_same(found, wanted)
    assert len(calls) == 1
