"""Training on the titles after the next one too: which they are, what they weigh, and the loss over them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.heads import AHEAD, Heads, Later, titles_ahead
from frontrow.foundation.model import ModelConfig
from frontrow.kernels import linear_cross_entropy as op
from frontrow.training.batches import training_batches
from frontrow.training.data import Dataset
from frontrow.training.train import TrainConfig, build_model, changed_settings, train

SMALL = ModelConfig(d_model=16, layers=1, heads=1, max_events=12, dropout=0.0, request_dropout=0.0, id_dropout=0.0)


def test_they_are_those_of_the_own_history_and_fade_by_half_lives() -> None:
    title, times = torch.tensor([5, 6, 7, 8, -1, 9]), torch.tensor([10**7, 10**7 + 3600, 10**7 + 3 * 3600, 50, 60, 70])
    titles, weights = titles_ahead(title, times, torch.tensor([0, 3, 6]), half_life_hours=1.0)
    assert titles.shape == weights.shape == (6, AHEAD)
    kept = [row[w > 0].tolist() for row, w in zip(titles, weights, strict=True)]
    assert kept == [[5, 6, 7], [6, 7], [7], [8, 9], [9], [9]]
    assert weights[0, :4].tolist() == pytest.approx([1.0, 0.5, 0.125, 0.0])
    assert weights[3, 2].item() == pytest.approx(0.5 ** (20 / 3600))


def test_the_loss_is_the_weighted_mean_of_log_probabilities(tiny_data: Dataset) -> None:
    heads = Heads(tiny_data.schema, tiny_data.sizes, 16, 8)
    hidden, titles = torch.randn(3, 16), torch.randn(len(tiny_data.titles), 8)
    targets = torch.from_numpy(tiny_data.events.ids[:3])
    column = tiny_data.schema.spans["entity_id"][0]
    index = (targets[:, column] - 2).long()
    later = Later(torch.tensor([0, 3600, 7200]), torch.tensor([0, 2, 3]), half_life_hours=1.0)
    likely = (heads.member(hidden) @ titles.T).log_softmax(1)
    expected = -(likely[0, index[0]] + 0.5 * likely[0, index[1]] + likely[1, index[1]] + likely[2, index[2]]) / 3.5
    found = heads.losses(hidden, titles, targets, later)
    torch.testing.assert_close(found["entity_id"], expected)
    alone = heads.losses(hidden, titles, targets)
    assert alone["entity_id"] != found["entity_id"]
    assert all(torch.equal(alone[name], found[name]) for name in alone if name != "entity_id")


def test_pieces_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, titles = torch.randn(7, 4, requires_grad=True), torch.randn(9, 4)
    targets, weights = torch.randint(0, 9, (7, 3)), torch.rand(7, 3)
    whole = op.weighted_linear_cross_entropy(hidden, titles, targets, weights)
    monkeypatch.setattr(op, "LOGITS", 20)
    parted = op.weighted_linear_cross_entropy(hidden, titles, targets, weights)
    torch.testing.assert_close(whole, parted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (whole, parted)))
    with pytest.raises(ValueError, match=r"targets \(7, 3\) and weights \(7, 2\) do not fit"):
        op.weighted_linear_cross_entropy(hidden, titles, targets, weights[:, :2])


def test_a_half_life_of_nearly_nothing_is_the_next_title_alone(tiny_data: Dataset) -> None:
    batch = next(iter(training_batches(tiny_data, 12, 200, seed=0, epoch=0)))
    apart = torch.arange(len(batch.tokens)) * 3600
    losses = {}
    for half_life in (0.0, 1e-3, 24.0):
        torch.manual_seed(0)
        model = build_model(tiny_data, replace(SMALL, half_life_hours=half_life))
        losses[half_life] = model.losses(batch.tokens, batch.offsets, batch.targets, apart)["entity_id"].item()
    assert losses[1e-3] == pytest.approx(losses[0.0], rel=1e-5)
    assert losses[24.0] != pytest.approx(losses[0.0], rel=1e-3)


def test_batches_say_when_their_targets_happened(tiny_data: Dataset) -> None:
    key = {
        tuple(ids): time for ids, time in zip(tiny_data.events.ids.tolist(), tiny_data.events.timestamp, strict=True)
    }
    batch = next(iter(training_batches(tiny_data, 12, 200, seed=0, epoch=0)))
    same = [key[tuple(ids)] == time for ids, time in zip(batch.targets.tolist(), batch.times.tolist(), strict=True)]
    assert sum(same) > 0.9 * len(same), "all but for events that are encoded alike"


def test_events_without_times_are_refused(tiny_data: Dataset, tmp_path: Path) -> None:
    events = Encoded(tiny_data.events.ids, 0 * tiny_data.events.timestamp, tiny_data.events.offsets)
    config = TrainConfig(model=replace(SMALL, half_life_hours=24.0))
    with pytest.raises(ValueError, match="half_life_hours is 24, but the events have no times; give 0"):
        train(replace(tiny_data, events=events), config, tmp_path)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"half_life_hours {wrong}"):
            replace(SMALL, half_life_hours=wrong)


def test_a_run_that_is_older_than_a_setting_had_its_default() -> None:
    config = TrainConfig(model=SMALL)
    old = json.loads(json.dumps(asdict(config)))
    del old["model"]["half_life_hours"], old["clip"]
    assert changed_settings(old, config) == []
    changed = replace(config, clip=2.0, model=replace(SMALL, half_life_hours=3.0))
    assert changed_settings(old, changed) == ["clip was 1.0, now 2.0", "model half_life_hours was 0.0, now 3.0"]
