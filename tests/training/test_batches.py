"""The split and the batches: nothing held out is ever trained on, everything else exactly once an epoch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.schema import FIRST
from frontrow.training.batches import (
    Batch,
    evaluated_members,
    evaluation_batch,
    target_positions,
    trained_titles,
    trained_values,
    training_batches,
    training_ends,
    training_events,
    windows,
)
from frontrow.training.data import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

LONGEST, BATCH = 7, 60


@pytest.fixture(scope="module")
def marked(tiny_data: Dataset) -> Dataset:
    """The tiny data with every cell of event i set to i + 1, so that where a cell came from can be read off it."""
    count = len(tiny_data.events.ids)
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32)[:, None], tiny_data.schema.width, axis=1)
    events = Encoded(ids, tiny_data.events.timestamp, tiny_data.events.offsets)
    return Dataset(**{**vars(tiny_data), "events": events})


def epoch(data: Dataset, seed: int = 0, number: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(training_batches(data, LONGEST, BATCH, seed, number, rank, world))


def test_the_last_two_events_of_each_member_are_held_out(tiny_data: Dataset) -> None:
    members, offsets = np.arange(len(tiny_data)), tiny_data.events.offsets
    assert evaluated_members(tiny_data).tolist() == members.tolist()
    test, validation = (target_positions(tiny_data, members, part) for part in ("test", "validation"))
    assert (test == offsets[1:] - 1).all()
    assert (validation == offsets[1:] - 2).all()
    held_out = np.zeros(len(tiny_data.events.ids), bool)
    held_out[test] = held_out[validation] = True
    assert (training_events(tiny_data) == ~held_out).all()


def test_members_with_fewer_than_three_events_are_trained_on_but_not_evaluated(tiny_data: Dataset) -> None:
    events = Encoded(tiny_data.events.ids[:7], tiny_data.events.timestamp[:7], np.array([0, 1, 3, 7]))
    data = Dataset(**{**vars(tiny_data), "events": events, "member_ids": np.arange(3)})
    assert training_ends(data).tolist() == [1, 3, 5]
    assert evaluated_members(data).tolist() == [2]


def test_held_out_events_never_reach_training(marked: Dataset) -> None:
    held_out = np.flatnonzero(~training_events(marked)) + 1
    for batch in epoch(marked):
        assert not np.isin(batch.tokens.numpy(), held_out).any()
        assert not np.isin(batch.targets.numpy(), held_out).any()


def test_every_training_event_is_a_target_once_an_epoch(marked: Dataset) -> None:
    targets = torch.cat([b.targets for b in epoch(marked)])[:, 0].numpy() - 1
    assert sorted(targets.tolist()) == np.flatnonzero(training_events(marked)).tolist()


def test_a_token_has_the_action_before_its_target_and_the_request_of_its_target(marked: Dataset) -> None:
    schema, firsts = marked.schema, set((marked.events.offsets[:-1] + 1).tolist())
    for batch in epoch(marked):
        for token, target in zip(batch.tokens, batch.targets[:, 0].tolist(), strict=True):
            assert set(token[schema.request_columns].tolist()) == {target}
            assert set(token[schema.action_columns].tolist()) == {0 if target in firsts else target - 1}


def test_batches_are_whole_windows_of_about_the_size_asked_for(marked: Dataset) -> None:
    for batch in epoch(marked):
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.tokens) == len(batch.targets) <= BATCH + LONGEST
        for start, stop in pairwise(batch.offsets.tolist()):
            assert 1 <= stop - start <= LONGEST
            own = batch.targets[start:stop, 0]
            assert (own.diff() == 1).all()
            assert (np.searchsorted(marked.events.offsets, own.numpy() - 1, "right")).std() == 0  # one member


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return len(one) == len(other) and all(torch.equal(a.targets, b.targets) for a, b in pairs)


def test_an_epoch_depends_on_nothing_but_seed_and_number(marked: Dataset) -> None:
    assert same(epoch(marked, 3, 5), epoch(marked, 3, 5))
    assert len({tuple(b.targets[:, 0].tolist()) for n in range(3) for b in epoch(marked, 0, n)[:1]}) == 3
    assert epoch(marked, 0, 0)[0].targets[:, 0].tolist() != epoch(marked, 1, 0)[0].targets[:, 0].tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_and_take_equally_many(marked: Dataset, world: int) -> None:
    alone = [b.targets[:, 0].tolist() for b in epoch(marked)]
    shares = [[b.targets[:, 0].tolist() for b in epoch(marked, rank=r, world=world)] for r in range(world)]
    assert len({len(s) for s in shares}) == 1
    used = len(alone) // world * world
    assert used
    assert [batch for step in zip(*shares, strict=True) for batch in step] == alone[:used]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 9), st.integers(0, 5))
def test_windows_cover_every_event_once(lengths: list[int], longest: int, seed: int) -> None:
    offsets = np.cumsum([0, *lengths])
    pieces = windows(offsets[:-1], offsets[1:], longest, np.random.default_rng(seed))
    assert [i for a, b in pieces.tolist() for i in range(a, b)] == list(range(offsets[-1]))
    assert all(1 <= b - a <= longest for a, b in pieces.tolist())
    assert not any(a < cut < b for a, b in pieces.tolist() for cut in offsets.tolist())


@pytest.mark.parametrize("part", ["test", "validation"])
def test_evaluation_reads_what_came_before_and_the_request(marked: Dataset, part: str) -> None:
    members = np.array([4, 0, 59])
    tokens, offsets = evaluation_batch(marked, members, part, LONGEST, True)  # type: ignore[arg-type]
    last = target_positions(marked, members, part) + 1  # type: ignore[arg-type]
    schema = marked.schema
    for target, start, stop in zip(last.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        own = tokens[start:stop].numpy()
        assert own[:, schema.request_columns[0]].tolist() == list(range(target - LONGEST, target + 1))
        assert own[:, schema.action_columns[0]].tolist() == list(range(target - LONGEST - 1, target))


def test_without_request_fields_only_the_last_token_is_blank(marked: Dataset) -> None:
    members = np.array([4, 0, 59])
    given, offsets = evaluation_batch(marked, members, "test", LONGEST, True)
    blank, _ = evaluation_batch(marked, members, "test", LONGEST, False)
    changed = (given != blank).numpy()
    expected = np.zeros_like(changed)
    expected[np.ix_(offsets[1:].numpy() - 1, marked.schema.request_columns)] = True
    assert (changed == expected).all()
    assert not blank.numpy()[expected].any()


def test_trained_values_are_those_that_training_reads(tiny_data: Dataset) -> None:
    found = trained_values(tiny_data)
    tokens = torch.cat([b.tokens for b in epoch(tiny_data)]).numpy()
    for f in tiny_data.schema.fields:
        start, stop = tiny_data.schema.spans[f.name]
        if f.kind != "id":
            assert set(np.flatnonzero(found[f.name]).tolist()) == set(tokens[:, start:stop].ravel().tolist()), f.name
    assert found["entity_id"][FIRST:].tolist() == trained_titles(tiny_data).tolist()
    assert not found["canvas"][FIRST:].any()


def test_trained_titles_are_those_of_training_events(tiny_data: Dataset) -> None:
    wanted = set(tiny_data.title_indices()[training_events(tiny_data)].tolist())
    assert set(np.flatnonzero(trained_titles(tiny_data)).tolist()) == wanted
    assert len(wanted) < len(tiny_data.titles)
