"""The synthetic bundle: valid, the same for a seed, with histories and lists that make every stage work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frontrow.benchmarks.synthetic_bundle import HISTORY, RATINGS, synthetic_bundle
from frontrow.foundation.bundle import load_bundle
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store

TITLES, MEMBERS = 1600, 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_bundle(tmp_path_factory.mktemp("synthetic"), TITLES, MEMBERS)  # write_bundle has verified it


@pytest.fixture(scope="module")
def store(path: Path) -> Store:
    return Store.open(path)


def test_a_page_of_40_by_20_is_full(store: Store) -> None:
    page = HomepageEngine(store).pages([PageRequest(3, rows=40, titles=20)])[0]
    assert isinstance(page, Page)
    assert page.title_ids.shape == (40, 20)
    assert (page.title_ids > 0).all()
    assert len(np.unique(page.sources)) >= 5


def test_members_have_200_titles_each_once_in_time_order(store: Store) -> None:
    histories = store.bundle.histories
    assert np.diff(histories.offsets).tolist() == [HISTORY] * MEMBERS
    titles = histories.ids[:, store.title_column].reshape(MEMBERS, HISTORY)
    assert all(len(set(of)) == HISTORY for of in titles.tolist())
    gaps = np.diff(histories.timestamp.reshape(MEMBERS, HISTORY))
    assert (gaps >= 0).all()
    assert np.median(gaps) < 60  # a sitting
    assert gaps.max() > 86400  # and the next
    span = store.schema.spans["action_type"][0]
    assert len(np.unique(histories.ids[:, span])) == len(RATINGS)


def test_lists_have_no_title_twice_and_none_that_was_seen(store: Store) -> None:
    titles = store.bundle.histories.ids[:, store.title_column].reshape(MEMBERS, HISTORY) - 2
    for seen, others in zip(titles.tolist(), store.user_user.tolist(), strict=True):
        assert len(set(others)) == len(others) == len(set(others) - set(seen))
    for title, near in enumerate(store.item_item.tolist()):
        assert title not in near
        assert len(set(near)) == len(near)
    assert (np.diff(store.item_item_scores, axis=1) <= 0).all()


def test_popularity_falls_as_zipf_has_it(store: Store) -> None:
    plays = np.sort(store.popularity)[::-1]
    assert plays[0] / plays[450] == pytest.approx((450 + 50) / 50, rel=0.01)


def test_a_seed_makes_the_same_bundle(path: Path, tmp_path: Path) -> None:
    mine = load_bundle(path)
    again, other = (load_bundle(synthetic_bundle(tmp_path / str(s), TITLES, MEMBERS, s)) for s in (0, 1))
    assert mine.manifest["files"] == again.manifest["files"]
    assert not torch.equal(mine.vectors, other.vectors)


def test_too_few_titles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="700 titles"):
        synthetic_bundle(tmp_path, titles=700)
