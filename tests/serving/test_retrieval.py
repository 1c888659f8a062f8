"""Candidates: whatever the member and the catalogue, a list without repeats, with true sources."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.foundation.bundle import Bundle, BundleError, load_bundle
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.schema import FIRST, SOURCES
from frontrow.serving.retrieval import ITEM_ITEM_SEEDS, QUOTAS, Member, item_item, retrieve
from frontrow.serving.store import Store

DAY = 20_000


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def store(bundle: Bundle) -> Store:
    return Store(bundle)


def member_of(store: Store, index: int, **changes: Any) -> Member:
    """A stored member, who has seen what the history says."""
    titles = store.bundle.histories.member(index).ids[:, store.title_column].astype(np.int64) - FIRST
    excluded = np.zeros(store.title_count, bool)
    excluded[titles] = True
    known = Member(int(store.bundle.member_ids[index]), index, titles, excluded, locale=0, day=DAY)
    return dataclasses.replace(known, **changes)


def stranger(store: Store, **changes: Any) -> Member:
    nothing = np.empty(0, np.int64)
    return Member(**{"member_id": -1, "index": -1, "recent": nothing, "locale": 0, "day": DAY,
                     "excluded": np.zeros(store.title_count, bool), **changes})  # fmt: skip


def vectors(store: Store, count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, store.vectors.shape[1])).astype(np.float32)


def candidates(store: Store, member: Member, k: int) -> dict[str, list[int]]:
    """Title indices by source, in their order."""
    titles, sources = retrieve(store, vectors(store, 1), [member], k)
    found: dict[str, list[int]] = {name: [] for name in SOURCES}
    for title, source in zip(titles[0].tolist(), sources[0].tolist(), strict=True):
        found[SOURCES[source]].append(title)
    return found


# --- The list itself ---


@pytest.mark.parametrize("k", [1, 2, 7, 40, 119, 120, 121, 1000, 10**6])
def test_no_title_is_excluded_or_twice_or_out_of_range_and_the_list_is_as_long_as_it_can_be(
    store: Store, k: int
) -> None:
    rng = np.random.default_rng(k)
    members = [member_of(store, i, excluded=rng.random(store.title_count) < share)
               for i, share in enumerate([0.0, 0.1, 0.5, 0.9, 0.99])]  # fmt: skip
    members += [member_of(store, 7), stranger(store)]
    titles, sources = retrieve(store, vectors(store, len(members)), members, k)
    assert titles.shape == sources.shape == (len(members), min(k, store.title_count))
    for member, found, source in zip(members, titles, sources, strict=True):
        count = min(k, int((~member.excluded).sum()))
        real = found[:count]
        assert (real >= 0).all()
        assert (real < store.title_count).all()
        assert len(np.unique(real)) == count
        assert not member.excluded[real].any()
        assert (source[:count] > 0).all()
        assert (found[count:] == -1).all(), "padding only at the end"
        assert (source[count:] == 0).all()


def test_everything_excluded_is_an_empty_list(store: Store) -> None:
    nothing_left = member_of(store, 0, excluded=np.ones(store.title_count, bool))
    titles, sources = retrieve(store, vectors(store, 1), [nothing_left], 50)
    assert (titles == -1).all()
    assert (sources == 0).all()


def test_members_of_one_call_do_not_disturb_each_other(store: Store) -> None:
    members = [member_of(store, 3), stranger(store), member_of(store, 5, locale=FIRST)]
    together = retrieve(store, vectors(store, 3), members, 40)
    for b, member in enumerate(members):
        alone = retrieve(store, vectors(store, 3)[b : b + 1], [member], 40)
        np.testing.assert_array_equal(together[0][b], alone[0][0])
        np.testing.assert_array_equal(together[1][b], alone[1][0])


def test_padding_of_faiss_is_no_title(bundle: Bundle) -> None:
    """An IVF index that probes one cell of eight finds fewer titles than asked, and pads with −1."""
    coarse = Store(dataclasses.replace(bundle, manifest={**bundle.manifest, "index": "IVF8,Flat"}))
    _, near = coarse.index.search(vectors(coarse, 1), coarse.title_count)
    assert (near == -1).any(), "else this test tests nothing"
    titles, sources = retrieve(coarse, vectors(coarse, 1), [stranger(coarse)], coarse.title_count)
    assert sorted(titles[0].tolist()) == list(range(coarse.title_count))
    assert 0 < (sources[0] == SOURCES.index("embedding")).sum() <= (near >= 0).sum()


def test_an_index_that_faiss_does_not_know_is_named(bundle: Bundle) -> None:
    odd = Store(dataclasses.replace(bundle, manifest={**bundle.manifest, "index": "Crystal"}))
    with pytest.raises(BundleError, match="Crystal"):
        _ = odd.index


# --- Sources are what they say ---


def test_each_source_proposes_what_it_stands_for(store: Store) -> None:
    k, member = 40, member_of(store, 4)
    found = candidates(store, member, k)
    for name, quota in QUOTAS.items():
        assert found[name], f"{name} proposes nothing"
        if name not in ("embedding", "popular"):  # these two also fill what the others leave
            assert len(found[name]) <= round(quota * k)
    near = {t for seed in member.recent for t in store.neighbours(seed).tolist()}
    assert set(found["item_item"]) <= near
    assert set(found["user_user"]) <= set(store.user_user[member.index].tolist())
    scores = store.vectors.numpy() @ vectors(store, 1)[0]
    before = {*found["item_item"], *found["user_user"]}
    best = [t for t in np.argsort(-scores).tolist() if not member.excluded[t] and t not in before]
    assert found["embedding"] == best[: len(found["embedding"])]
    assert found["popular"] == sorted(found["popular"], key=lambda t: (-store.popularity[t], t))
    years = store.columns.numbers["year"]
    assert (years[found["new"]] >= np.nanmax(years) - 1).all()
    ranks = {t: rank for rank, t in enumerate(store.popular.tolist())}
    assert all(ranks[t] >= store.title_count // 2 and store.popularity[t] > 0 for t in found["explore"])


def test_titles_that_a_row_names_to_stand_first_are_candidates_for_everybody(bundle: Bundle) -> None:
    named = [int(bundle.titles.ids[i]) for i in (70, 3, 41)]
    rows = json.loads(json.dumps(bundle.rows))
    rows["rows"][0]["first"] = [*named, 10**9]  # the last is no title of this catalogue
    store = Store(dataclasses.replace(bundle, rows=rows))
    excluded = np.zeros(store.title_count, bool)
    excluded[41] = True
    for member in (stranger(store, excluded=excluded), member_of(store, 4, excluded=excluded)):
        assert candidates(store, member, 10)["editorial"] == [3, 70]


def test_the_embedding_reaches_past_what_is_excluded(store: Store) -> None:
    """Whoever has seen the 60 nearest titles is shown the nearest of the others."""
    scores = store.vectors.numpy() @ vectors(store, 1)[0]
    nearest = np.argsort(-scores)
    excluded = np.zeros(store.title_count, bool)
    excluded[nearest[:60]] = True
    found = candidates(store, stranger(store, excluded=excluded), 20)["embedding"]
    assert not excluded[found].any()
    np.testing.assert_allclose(scores[found[:8]], scores[nearest[60:68]], rtol=0, atol=2e-3 * np.abs(scores).max())


def test_item_item_sums_the_similarities_of_the_newest_titles(store: Store) -> None:
    recent = np.random.default_rng(1).integers(0, store.title_count, 80)
    total: dict[int, float] = {}
    for seed in recent[-ITEM_ITEM_SEEDS:]:
        for title, score in zip(store.item_item[seed].tolist(), store.item_item_scores[seed].tolist(), strict=True):
            if title >= 0 and score > 0:
                total[title] = total.get(title, 0.0) + score
    expected = sorted(total, key=lambda t: (-total[t], t))[:25]
    assert item_item(store, recent, 25).tolist() == expected


def test_a_member_without_neighbours_gets_the_other_sources(bundle: Bundle) -> None:
    nothing_near = {**bundle.candidates, "item_item": bundle.candidates["item_item"] * 0 - 1}
    store = Store(dataclasses.replace(bundle, candidates=nothing_near))
    found = candidates(store, member_of(store, 4), 40)
    assert found["item_item"] == []
    assert sum(map(len, found.values())) == 40
    assert found["none"] == []
    assert store.neighbours(3).tolist() == [], "padding is no title: not the last one either"


def test_a_stranger_gets_no_collaborative_filtering(store: Store) -> None:
    found = candidates(store, stranger(store), 40)
    assert found["item_item"] == found["user_user"] == []
    assert sum(map(len, found.values())) == 40


def test_a_catalogue_without_years_has_no_new_titles(bundle: Bundle) -> None:
    def without_years(found: Any) -> Any:
        metadata = {k: v for k, v in found.titles.metadata.items() if k != "year"}
        rows = {**found.rows, "rows": [r for r in found.rows["rows"] if "year" not in r["where"]]}
        return dataclasses.replace(found, titles=dataclasses.replace(found.titles, metadata=metadata), rows=rows)

    assert candidates(store := Store(without_years(bundle)), stranger(store), 40)["new"] == []


def test_what_is_popular_depends_on_the_locale_once_there_are_enough_events_of_it(bundle: Bundle) -> None:
    at, title_at = bundle.schema.spans["locale"][0], bundle.schema.spans["entity_id"][0]
    ids = bundle.histories.ids.copy()
    large = np.arange(len(ids)) % 4 != 0
    assert large.sum() >= 1000 > (~large).sum()
    ids[:, at] = np.where(large, FIRST, FIRST + 1)
    ids[large, title_at] = FIRST + np.arange(large.sum()) % 9 * 11  # titles 0, 11, 22 … 88, played alike
    histories = Encoded(ids, bundle.histories.timestamp, bundle.histories.offsets)
    store = Store(dataclasses.replace(bundle, histories=histories))
    assert list(store.popular_by_locale) == [FIRST]
    plays = np.bincount(ids[large, title_at] - FIRST, minlength=store.title_count)
    expected = sorted(range(store.title_count), key=lambda t: (-plays[t], t))
    assert store.popular_by_locale[FIRST].tolist() == expected

    for locale, order in ((FIRST, expected), (FIRST + 1, store.popular.tolist()), (0, store.popular.tolist())):
        found = candidates(store, stranger(store, locale=locale), 20)
        assert len(found["popular"]) == 3
        assert found["popular"] == [t for t in order if t not in found["embedding"]][:3], locale


# --- Exploration ---


def test_exploration_is_the_same_all_day_and_differs_between_members_and_days(store: Store) -> None:
    def explored(member_id: int, day: int) -> list[int]:
        return candidates(store, stranger(store, member_id=member_id, day=day), 120)["explore"]

    assert len(explored(1, DAY)) >= 3
    assert explored(1, DAY) == explored(1, DAY)
    ways = {tuple(explored(member_id, day)) for member_id in range(-1, 9) for day in (DAY, DAY + 1)}
    assert len(ways) >= 19, "twenty draws of different members and days"
    assert len({t for way in ways for t in way}) > len(explored(1, DAY)), "and over time other titles get their turn"
