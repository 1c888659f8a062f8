"""The model: causal, the same for one history and for many, its losses against loops, its titles by their metadata."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.foundation import embedding
from frontrow.foundation.heads import Heads
from frontrow.foundation.model import FoundationModel, ModelConfig
from frontrow.foundation.schema import FIRST, UNKNOWN, Schema
from frontrow.training.batches import evaluation_batch, trained_titles
from frontrow.training.data import Dataset
from frontrow.training.train import build_model
from torch import Tensor

# Attention over padded batches may take another kernel than over one history; the bar is design.md §7's for fp32.
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def histories(data: Dataset, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens drawn at random within the tables, of histories of these lengths."""
    sizes = np.array([data.sizes.get(f.name) or f.fixed_size() for f in data.schema.fields for _ in range(f.slots)])
    tokens = np.random.default_rng(0).integers(0, sizes, (sum(lengths), data.schema.width)).astype(np.int32)
    return torch.from_numpy(tokens), torch.from_numpy(np.cumsum([0, *lengths]))


@pytest.mark.parametrize("changed", [0, 4, 9])
def test_hidden_states_see_nothing_later(tiny_model: FoundationModel, tiny_data: Dataset, changed: int) -> None:
    tokens, offsets = histories(tiny_data, [10])
    other = tokens.clone()
    other[changed:] = histories(tiny_data, [20])[0][10 + changed :]
    before, state_before = tiny_model.hidden(tokens, offsets)
    after, state_after = tiny_model.hidden(other, offsets)
    torch.testing.assert_close(before[:changed], after[:changed], **CLOSE)
    torch.testing.assert_close(state_before[:changed], state_after[:changed], **CLOSE)
    assert not torch.allclose(before[changed], after[changed], **CLOSE)
    assert not torch.allclose(before[-1], after[-1], **CLOSE)


def test_a_held_out_action_does_not_reach_the_vector_that_predicts_it(
    tiny_model: FoundationModel, tiny_data: Dataset
) -> None:
    """From events to vector: the action fields of the held-out event may be anything."""
    members = np.arange(5)
    ids = tiny_data.events.ids.copy()
    ids[np.ix_(tiny_data.events.offsets[members + 1] - 1, tiny_data.schema.action_columns)] = UNKNOWN
    events = type(tiny_data.events)(ids, tiny_data.events.timestamp, tiny_data.events.offsets)
    masked = Dataset(**{**vars(tiny_data), "events": events})
    assert (masked.events.ids != tiny_data.events.ids).any()
    vectors = [tiny_model.encode(*evaluation_batch(d, members, "test", 16, True))[0] for d in (tiny_data, masked)]
    assert torch.equal(*vectors)


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], list(range(1, 9)), [16, 1, 2]], ids=str)
def test_ragged_equals_one_by_one(tiny_model: FoundationModel, tiny_data: Dataset, lengths: list[int]) -> None:
    tokens, offsets = histories(tiny_data, lengths)
    hidden, state = tiny_model.hidden(tokens, offsets)
    vectors, row_states = tiny_model.encode(tokens, offsets)
    for b, (start, stop) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = tokens[start:stop], torch.tensor([0, stop - start])
        alone_hidden, alone_state = tiny_model.hidden(*own)
        alone_vector, alone_row_state = tiny_model.encode(*own)
        torch.testing.assert_close(hidden[start:stop], alone_hidden, **CLOSE)
        torch.testing.assert_close(state[start:stop], alone_state, **CLOSE)
        torch.testing.assert_close(vectors[b], alone_vector[0], **CLOSE)
        torch.testing.assert_close(row_states[b], alone_row_state[0], **CLOSE)


def test_a_member_does_not_depend_on_the_others_in_the_batch(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    tokens, offsets = histories(tiny_data, [3, 7, 2])
    other = tokens.clone()
    other[[0, 1, 2, 10, 11]] = UNKNOWN
    before, _ = tiny_model.encode(tokens, offsets)
    after, _ = tiny_model.encode(other, offsets)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0], **CLOSE)


def test_an_empty_history_is_one_token_that_asks(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    vectors, states = tiny_model.encode(torch.zeros(2, tiny_data.schema.width, dtype=torch.int32), torch.arange(3))
    assert torch.isfinite(vectors).all()
    assert torch.isfinite(states).all()
    torch.testing.assert_close(vectors[0], vectors[1], **CLOSE)


def test_a_title_never_played_has_the_vector_of_its_metadata(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    vectors, unseen = tiny_model.title_vectors(), np.flatnonzero(~trained_titles(tiny_data))
    metadata = tiny_data.title_ids[FIRST:][unseen]
    assert len(unseen) >= 5
    assert tiny_model.titles.embedding is not None
    unknown = tiny_model.events.table("entity_id")[UNKNOWN]
    expected = unknown + tiny_model.titles.embedding(torch.from_numpy(metadata))
    torch.testing.assert_close(vectors[unseen], expected)
    pairs = [(i, j) for i in range(len(unseen)) for j in range(i) if (metadata[i] != metadata[j]).any()]
    assert pairs
    assert all(not torch.allclose(vectors[unseen[i]], vectors[unseen[j]], **CLOSE) for i, j in pairs)


@pytest.fixture
def heads(tiny_data: Dataset) -> tuple[Heads, Tensor, Tensor, Tensor]:
    """(heads, hidden [T, M], title vectors [N, D], targets [T, C]) with absent and unknown targets among them."""
    hidden = torch.randn(30, 12, requires_grad=True)
    titles = torch.randn(len(tiny_data.titles), tiny_data.schema.id_field.width, requires_grad=True)
    targets = torch.from_numpy(tiny_data.events.ids[:30].copy())
    targets[3:6], targets[6:9] = 0, UNKNOWN
    return Heads(tiny_data.schema, tiny_data.sizes, 12, titles.shape[1]), hidden, titles, targets


def naive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, token by token; for several columns, binary cross-entropy summed over the values."""
    losses = []
    for row, target in zip(logits.double(), targets.tolist(), strict=True):
        values = [t - FIRST for t in target if t >= FIRST]
        if not values:
            continue
        if len(target) == 1:
            losses.append(row.exp().sum().log() - row[values[0]])
        else:
            p = 1 / (1 + (-row).exp())
            losses.append(-sum((p[v] if v in values else 1 - p[v]).log() for v in range(len(row))))
    return torch.stack(losses).mean().float()


def test_losses_equal_loops_over_the_tokens(heads: tuple[Heads, Tensor, Tensor, Tensor]) -> None:
    module, hidden, titles, targets = heads
    found = module.losses(hidden, titles, targets)
    linear = dict(zip((f.name for f in module.fields), module.linear, strict=True))
    assert set(found) == {"action_type", "entity_id", "entity_type", "duration", "genres"}
    for name, loss in found.items():
        # The title head is the dot product that serving ranks by.
        logits = module.member(hidden) @ titles.T if name == "entity_id" else linear[name](hidden)
        torch.testing.assert_close(loss, naive_loss(logits, targets[:, slice(*module.schema.spans[name])]))


@pytest.mark.parametrize("target", [0, UNKNOWN], ids=["absent", "unknown"])
def test_targets_that_are_not_there_count_for_nothing(heads: tuple[Heads, Tensor, Tensor, Tensor], target: int) -> None:
    module, hidden, titles, targets = heads
    losses = module.losses(hidden, titles, torch.full_like(targets, target))
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    (gradient,) = torch.autograd.grad(module.total(losses), hidden)
    assert not gradient.any()


def test_total_is_the_sum_weighted_by_the_schema(heads: tuple[Heads, Tensor, Tensor, Tensor]) -> None:
    module = heads[0]
    losses = module.losses(*heads[1:])
    weights = {f.name: f.loss_weight for f in module.schema.fields}
    torch.testing.assert_close(module.total(losses), sum((weights[n] * v for n, v in losses.items()), torch.zeros(())))


def test_every_head_reaches_its_table_and_the_input(tiny_data: Dataset) -> None:
    model = build_model(tiny_data, ModelConfig(d_model=32, heads=2))
    tokens, offsets = histories(tiny_data, [20])
    losses = model.losses(tokens, offsets, tokens, torch.zeros(len(tokens), dtype=torch.int64))
    ends = {f.name: linear.weight for f, linear in zip(model.heads.fields, model.heads.linear, strict=True)}
    ends |= {"entity_id": model.events.table("entity_id")}
    for name, loss in losses.items():
        for end in (ends[name], model.events.projection.weight):
            assert torch.autograd.grad(loss, end, retain_graph=True)[0].any(), name
    assert model.titles.embedding is not None
    table = model.titles.embedding.table("genres")
    assert torch.autograd.grad(losses["entity_id"], table)[0].any()


def test_request_fields_are_dropped_for_whole_histories_in_training_only(tiny_data: Dataset) -> None:
    model = build_model(tiny_data, ModelConfig(d_model=32, heads=2, request_dropout=0.5))
    tokens, offsets = histories(tiny_data, [3] * 50)
    tokens += (tokens == 0).int()
    dropped = model.drop_request_fields(tokens, offsets)
    request, action = tiny_data.schema.request_columns, tiny_data.schema.action_columns
    assert torch.equal(dropped[:, action], tokens[:, action])
    blank = (dropped[:, request] == 0).view(50, -1)
    assert (blank.all(1) | ~blank.any(1)).all()
    assert 0.2 < blank.all(1).float().mean() < 0.8
    assert (tokens[:, request] != 0).all()
    model.eval()
    assert torch.equal(model.hidden(tokens, offsets)[0], model.hidden(tokens, offsets)[0])


def test_a_schema_of_one_field_trains() -> None:
    field = {"name": "title", "path": "what.id", "kind": "id", "when": "action", "width": 4, "loss_weight": 1.0}
    schema = Schema.from_dict({"fields": [field]})
    metadata = torch.zeros(FIRST + 5, 0, dtype=torch.int32)
    model = FoundationModel(schema, ModelConfig(d_model=8, heads=2), {"title": FIRST + 5}, metadata)
    tokens = torch.tensor([[0], [3], [4]], dtype=torch.int32)
    model.heads.total(model(tokens, torch.tensor([0, 3]), tokens, torch.zeros(3, dtype=torch.int64))).backward()
    assert model.title_vectors().shape == (5, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"d_model": 30, "heads": 4}, "d_model 30"),
        ({"heads": 0}, "heads"),
        ({"state_layer": -1}, "state_layer -1"),
        ({"layers": 2, "state_layer": 3}, "state_layer 3"),
        ({"max_events": 0}, "max_events 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"id_dropout": -0.1}, "id_dropout -0.1"),
        ({"request_dropout": 2}, "request_dropout 2"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**settings)


def test_the_model_embeds_through_the_op(
    tiny_model: FoundationModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    op = embedding.event_embedding

    def counted(ids: Tensor, *args: Any) -> Tensor:
        calls.append(tuple(ids.shape))
        return op(ids, *args)

    monkeypatch.setattr(embedding, "event_embedding", counted)
    tokens, offsets = histories(tiny_data, [3, 2])
    tiny_model.losses(tokens, offsets, tokens, torch.zeros(len(tokens), dtype=torch.int64))
    assert calls == [tuple(tokens.shape), (len(tiny_data.titles), tiny_data.schema.title_spans["year"][1])]


def test_a_folded_model_is_the_same_until_it_trains(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    model = copy.deepcopy(tiny_model)
    tokens, offsets = histories(tiny_data, [3, 9])
    before = model.encode(tokens, offsets)
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    model.events.fold()
    for found, wanted in zip(model.encode(tokens, offsets), before, strict=True):
        torch.testing.assert_close(found, wanted, **CLOSE)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    assert model.events.folded is not None
    assert model.eval().events.folded is not None
    assert model.double().events.folded is None
    model.events.fold()
    assert model.train().events.folded is None
