"""The engine's stages one by one, for callers that put them together in another way."""

from __future__ import annotations

import numpy as np
import pytest
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.requests import RequestError
from frontrow.serving.store import Store


def test_the_stages_alone_refuse_what_does_not_fit(engine: HomepageEngine) -> None:
    width, none = engine.store.vectors.shape[1], np.empty(0, np.int64)
    good, ids = np.ones(width, np.float32), np.array([500, 501])
    for call, words in (
        (lambda: engine.candidates(good[:-1], -1, 5, none), rf"member_vector has {width - 1} values.* has {width}"),
        (lambda: engine.candidates(good, -1, 0, none), "k is 0"),
        (lambda: engine.candidates(good, -5, 5, none), "member_id is -5"),
        (lambda: engine.candidates(good, -1, 5, np.array([-3])), "exclude has -3"),
        (lambda: engine.score_titles(good * np.nan, ids, 2), "not finite"),
        (lambda: engine.score_titles(good, ids, -1), "k is -1"),
        (lambda: engine.row_probabilities(np.ones(3, np.float32), np.array([1])), "row_state has 3 values"),
        (lambda: engine.row_probabilities(np.ones(32, np.float32), np.array([1, 77])), r"row_ids has \[77\]"),
    ):
        with pytest.raises(RequestError, match=words):
            call()


def test_more_titles_than_there_are_is_what_there_is(engine: HomepageEngine, store: Store) -> None:
    vector = store.vectors[7].numpy()
    ids, sources = engine.candidates(vector, -1, 2**31 - 1, np.array([503]))
    assert sorted(ids.tolist()) == sorted(set(store.bundle.titles.ids.tolist()) - {503})
    assert len(sources) == len(ids)
    ids, scores = engine.score_titles(vector, np.array([10**15, 507, 501, 4]), 2**31 - 1)
    expected = store.vectors[[7, 1]].numpy() @ vector
    order = np.argsort(-expected)
    assert ids.tolist() == [*np.array([507, 501])[order], -1, -1]
    np.testing.assert_allclose(scores[:2], expected[order], rtol=1e-5)
    assert (scores[2:] == -np.inf).all()
    assert engine.score_titles(vector, np.empty(0, np.int64), 3)[0].tolist() == [-1]
