"""Reliability, calibration error and temperature: known truths, and the claims that are read off the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import FIRST
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.store import Store
from frontrow.training.batches import evaluated_members, target_positions
from frontrow.training.calibration import (
    Claims,
    before_and_after,
    calibration_error,
    calibration_of,
    fit_temperature,
    head_claims,
    reliability,
    row_claims,
    wilson,
)
from frontrow.training.data import Dataset
from frontrow.training.evaluate import chunks, model_scorer, score_unseen
from frontrow.training.row_ranking import held_out_choices


def drawn(count: int, values: int, exclusive: bool, times: float = 1.0) -> Claims:
    """Perfect probabilities, and what they lead to; then logits that are `times` too far apart."""
    logits = torch.randn(count, values) * 2
    if exclusive:
        chosen = torch.multinomial(logits.softmax(1), 1)
        happened = torch.zeros(count, values, dtype=torch.bool).scatter_(1, chosen, True)
    else:
        happened = torch.rand(count, values) < logits.sigmoid()
    return Claims(logits * times, happened, torch.ones_like(happened), exclusive)


@pytest.mark.parametrize("exclusive", [True, False])
def test_perfect_probabilities_err_as_by_chance_and_need_no_temperature(exclusive: bool) -> None:
    found = calibration_of(drawn(4000, 5, exclusive))
    for reading in {"each", "top"} & set(found):
        assert found[reading]["ece"] < found[reading]["ece_if_perfect_95"]
        inside = [b["from"] <= b["predicted"] <= b["to"] for b in found[reading]["bins"]]
        assert sum(inside) >= len(inside) - 3
    assert fit_temperature(drawn(4000, 5, exclusive)) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_temperature_undoes_what_was_done_to_the_logits(exclusive: bool) -> None:
    found = before_and_after(drawn(4000, 5, exclusive, 2.5), drawn(4000, 5, exclusive, 2.5))
    assert found is not None
    before, after = found["before"], found["after"]
    assert after["temperature"] == pytest.approx(2.5, rel=0.08)
    assert before["each"]["ece"] > before["each"]["ece_if_perfect_95"]
    for better in ("nll", "brier"):
        assert after[better] < before[better]
    assert after["each"]["ece"] < after["each"]["ece_if_perfect_95"]


def test_chance_alone_is_what_is_said_of_it() -> None:
    """`ece_if_perfect` is the mean over draws from the very probabilities."""
    p, draw, found = np.random.default_rng(0).beta(1, 3, 600), np.random.default_rng(1), []
    for _ in range(400):
        found.append(calibration_error(reliability(p, draw.random(len(p)) < p), len(p))["ece"])
    said = calibration_error(reliability(p, p > 2), len(p))
    assert np.mean(found) == pytest.approx(said["ece_if_perfect"], rel=0.05)
    assert np.mean(np.array(found) > said["ece_if_perfect_95"]) == pytest.approx(0.05, abs=0.03)


def test_chance_knows_that_one_value_of_a_moment_happens() -> None:
    """Values of one moment that share a bin happen less unevenly than independent ones; all of them in one, surely."""
    logits, found = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)), []
    p, possible, draw = logits.softmax(1), torch.ones(300, 200, dtype=torch.bool), torch.Generator().manual_seed(1)
    for _ in range(100):
        happened = torch.zeros_like(possible).scatter(1, p.multinomial(1, generator=draw), True)
        found.append(calibration_of(Claims(logits, happened, possible, True))["each"])
    assert np.mean([f["ece"] for f in found]) == pytest.approx(found[0]["ece_if_perfect"], rel=0.03)
    first = torch.zeros_like(possible[:, :20])
    first[:, 0] = True
    alike = calibration_of(Claims(torch.zeros(300, 20), first, possible[:, :20], True))["each"]
    assert alike["ece_if_perfect"] == pytest.approx(0, abs=1e-6)


def test_bins_have_as_many_claims_or_as_many_predicted_happenings() -> None:
    p = np.random.default_rng(0).random(3000) ** 4
    happened = np.random.default_rng(1).random(3000) < p
    by_claims, by_predicted = reliability(p, happened, "claims"), reliability(p, happened, "predicted")
    assert {b["claims"] for b in by_claims} == {200}
    expected = [b["predicted"] * b["claims"] for b in by_predicted]
    assert max(expected) - min(expected) < 2 * p.max()
    for table in (by_claims, by_predicted):
        assert [b["predicted"] for b in table] == sorted(b["predicted"] for b in table)
        assert sum(b["happened"] * b["claims"] for b in table) == pytest.approx(happened.sum())
        assert all(b["from"] <= b["happened"] <= b["to"] for b in table)


def test_the_interval_is_wilsons() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20."""
    low, high = wilson(np.array([81, 15, 0]), np.array([263, 148, 20]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611], atol=5e-5)


def test_nll_and_brier_equal_their_formulas() -> None:
    logits, happened = torch.tensor([[0.0, math.log(3), 9.0]]), torch.tensor([[True, False, False]])
    claims = Claims(
        logits, happened, torch.tensor([[True, True, False]]), True
    )  # chances 1/4 and 3/4; the last is none
    found = calibration_of(claims)
    assert found["nll"] == pytest.approx(math.log(4))
    assert found["brier"] == pytest.approx(0.75**2 * 2)
    independent = calibration_of(Claims(logits, happened, claims.possible, False))  # 1/2 and 3/4
    assert independent["nll"] == pytest.approx(math.log(2) + math.log(4))
    assert independent["brier"] == pytest.approx(0.5**2 + 0.75**2)
    assert "top" not in independent


def test_a_head_without_moments_or_with_one_value_has_nothing_to_say() -> None:
    claims = drawn(30, 4, True)
    nothing = Claims(claims.logits[:0], claims.happened[:0], claims.possible[:0], True)
    one = Claims(claims.logits[:, :1], torch.ones(30, 1, dtype=torch.bool), claims.possible[:, :1], True)
    assert before_and_after(nothing, claims) is before_and_after(claims, nothing) is before_and_after(one, one) is None


def test_logits_that_are_no_numbers_are_named_and_impossible_ones_count_nothing() -> None:
    claims = drawn(30, 4, False)
    logits, possible = claims.logits.clone(), claims.possible.clone()
    logits[3, 2], possible[3, 2] = -torch.inf, False
    assert math.isfinite(Claims(logits, claims.happened, possible, False).nll())
    with pytest.raises(ValueError, match="1 of 30 moments have logits that are not finite"):
        Claims(logits, claims.happened, claims.possible, False)


def test_claims_are_those_of_the_heads(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    found = head_claims(tiny_model, tiny_data, "test")
    assert set(found) == {"titles", "new titles", "action_type", "entity_type", "duration", "genres"}
    at = target_positions(tiny_data, evaluated_members(tiny_data), "test")
    targets = tiny_data.events.ids[at] - FIRST

    def column(name: str) -> np.ndarray:
        return targets[:, slice(*tiny_data.schema.spans[name])]

    for name in ("titles", "action_type", "entity_type", "duration"):
        claims, own = found[name], column("entity_id" if name == "titles" else name)[:, 0]
        assert claims.happened.float().argmax(1).tolist() == own[own >= 0].tolist()
        assert claims.happened.sum(1).eq(1).all()
        expected = claims.logits.log_softmax(1)[claims.happened].mean()
        assert claims.nll() == pytest.approx(-expected.item(), rel=1e-5)
    assert (column("duration") < 0).any(), "events without a duration are no claims about it"
    genres = [{g for g in line if g >= 0} for line in column("genres").tolist()]
    assert [set(h.nonzero()[:, 0].tolist()) for h in found["genres"].happened] == [g for g in genres if g]

    score = model_scorer(tiny_model, tiny_data, "test", True)
    unseen = [score_unseen(score, tiny_data, "test", members) for members in chunks(tiny_data)]
    scores, target = (np.concatenate(part) for part in zip(*unseen, strict=True))
    again = len(scores) - len(found["new titles"].logits)
    assert 0 < again < len(scores), "some members' next title is one they have seen"
    chances = found["new titles"].probabilities()
    assert torch.allclose(chances.sum(1), torch.ones(len(chances)))
    new = [i for i, t in enumerate(target) if (tiny_data.title_indices()[_before(tiny_data, i)] != t).all()]
    np.testing.assert_allclose(chances, torch.from_numpy(scores[new]).softmax(1), rtol=1e-4, atol=1e-7)


def _before(data: Dataset, line: int) -> slice:
    member = evaluated_members(data)[line : line + 1]
    return slice(int(data.events.offsets[member[0]]), int(target_positions(data, member, "test")[0]))


def test_row_claims_are_the_probabilities_of_the_page(tiny_bundle: Path, tiny_data: Dataset) -> None:
    engine = HomepageEngine(Store.open(tiny_bundle))
    claims = row_claims(engine, tiny_data, "test")
    p = claims.probabilities()
    assert claims.happened.shape == (len(held_out_choices(tiny_data, "test")), len(engine.store.rows))
    assert not (claims.happened & ~claims.possible).any()
    assert (p[~claims.possible] == 0).all()
    assert 0 < p[claims.possible].mean() < 0.5
