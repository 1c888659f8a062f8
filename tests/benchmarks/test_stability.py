"""Drift and warm starts: the measures, and the section made of the result alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.benchmarks.stability import METRIC, TURNED, drifts, markdown, reached, turned
from frontrow.training.alignment import Space


@pytest.fixture(scope="module")
def spaces() -> tuple[Space, Space]:
    """(new, reference): the same vectors, of which the new ones are turned in the plane and a little noisy."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]

    def vectors(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        one = rng.normal(size=(count, 16))
        return tuple(torch.from_numpy(x).float() for x in (one @ turn + noise * rng.normal(size=one.shape), one))  # type: ignore[return-value]

    titles, members = vectors(200, 0.05), vectors(150, 0.05)
    reference = Space(np.arange(200), titles[1], np.arange(150), members[1])
    return replace(reference, titles=titles[0], members=members[0]), reference


def test_a_turned_space_has_no_drift_left_but_its_noise(spaces: tuple[Space, Space]) -> None:
    found = drifts(*spaces)
    assert abs(found["none"]["titles"]["cosine"]) < 0.3
    for how in ("orthogonal", "balanced"):
        assert min(found[how][part]["cosine"] for part in ("titles", "members", "titles_not_fitted")) > 0.99


def test_a_map_is_judged_on_titles_it_has_not_seen(spaces: tuple[Space, Space]) -> None:
    new, reference = spaces
    half = np.arange(100)
    other = replace(new, titles=torch.cat([new.titles[:100], torch.randn(100, 16)]))
    expected, found = (turned(space, reference, "orthogonal", half).titles[:100] for space in (new, other))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("curve", "epoch"), [([0.1, 0.3, 0.2], 2), ([0.1, 0.2], None), ([0.25], 1)])
def test_the_first_epoch_that_reaches_a_goal_counts(curve: list[float], epoch: int | None) -> None:
    assert reached(curve, 0.25) == epoch


def test_the_section_has_the_results_figures() -> None:
    def outcome(value: float) -> dict[str, Any]:
        return {"test": {METRIC: value, "hr@10": 2 * value}, "test_new_titles": {"hr@10": value / 2}}

    trained = {"before": outcome(0.1), "warm": outcome(0.2)}
    trained["warm"] |= {"validation": [0.1, 0.2], "seconds": [5.0, 11.4], "epochs_to_scratch": None}
    part = {"cosine": 0.8765, "distance": 0.4321, "common": 5}
    drift = {how: dict.fromkeys(("titles", "members", "titles_not_fitted"), part) for how in TURNED.values()}
    run = {
        "events": {"first": 1000, "later": 2000}, "new_titles": 7, "titles": 77, "trained": trained,
        "drift": {"another seed": drift}, "scores": {"largest_difference": 2e-7, "same_first_ten": 1.0},
    }  # fmt: skip
    text = markdown({"seeds": [run, run]})
    assert "| warm | 2 | 11 | 0.200 | 0.400 | 0.100 | not reached, not reached |" in text
    assert "| before | 0 | 0 | 0.100 | 0.200 | 0.050 |  |" in text
    assert "| another seed | as they are | 0.876 | 0.876 | 0.876 | 0.432 |" in text
    assert "2.0e-07" in text
