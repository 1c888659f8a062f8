"""Known answers: a server that computes something else is not let in."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from frontrow.foundation.bundle import BundleError
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.known import check_known, compare_known
from frontrow.serving.store import Store


@pytest.fixture
def engine(tiny_bundle: Path) -> HomepageEngine:
    return HomepageEngine(Store.open(tiny_bundle))


def test_a_bundle_that_answers_its_known_requests_differently_is_not_served(engine: HomepageEngine) -> None:
    check_known(engine)
    known = copy.deepcopy(engine.store.bundle.known)
    known["answers"][1]["title_scores"][0][0] += 0.5
    engine.store = copy.copy(engine.store)
    engine.store.bundle = dataclasses.replace(engine.store.bundle, known=known)
    member = known["answers"][1]["member_id"]
    with pytest.raises(BundleError, match=rf"answered differently: member {member}: title_scores is off by 0\.5"):
        check_known(engine)


def test_an_empty_page_may_be_a_known_answer(engine: HomepageEngine) -> None:
    """JSON keeps no shape of an empty list."""
    empty = {"member_id": 1000, "row_scores": [], "title_scores": []}
    known = {"rows": 10, "titles": 8, "context": {"timestamp": 5}, "answers": [empty]}
    nothing = np.zeros(0, np.float32), np.zeros((0, 8), np.float32)
    assert compare_known(known, [nothing]) is None
    assert "row_scores has shape (1,)" in str(compare_known(known, [(np.ones(1), np.ones((1, 8)))]))


def test_what_is_less_exact_is_compared_by_the_best_scores() -> None:
    known = {"titles": 2, "answers": [{"member_id": 7, "row_scores": [0.5, 0.4], "title_scores": [[3, 2], [1, 0]]}]}
    other_order = np.array([0.501, 0.4]), np.array([[1, 0], [3.01, 2]])
    assert "title_scores is off by 2" in str(compare_known(known, [other_order]))
    assert compare_known(known, [other_order], exactly=False) is None
    assert "title_scores is off by 3" in str(compare_known(known, [(np.array([0.5, 0.4]), np.zeros((2, 2)))], False))
