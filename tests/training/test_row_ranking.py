"""Rows: which are relevant at a moment, how a ranking of them is measured, and a ranker that learns it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frontrow.foundation.bundle import load_bundle
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.row_ranker import ROW_STATISTICS, RowRanker
from frontrow.serving.rows import RowCatalogue, RowSpec, TitleColumns, rows_to_json
from frontrow.serving.store import Store
from frontrow.training import export, row_ranking
from frontrow.training.batches import training_ends, training_events
from frontrow.training.data import Dataset
from frontrow.training.row_ranking import (
    FIRST_TITLES,
    MOMENTS_PER_MEMBER,
    Moments,
    calibrate,
    choices,
    evaluate_rows,
    held_out_choices,
    moments,
    row_metrics,
    row_scores,
    train_row_ranker,
)

FIRST_TITLE = 500  # the id of the tiny data's first title
SPECS = [
    RowSpec(1, "Popular", "popularity >= 0.7"),
    RowSpec(2, "Old", "year < 1985"),
    RowSpec(3, "Dramas", "'Drama' in genres"),
    RowSpec(4, "Nothing", "year > 3000"),
    RowSpec(5, "Because you liked {title}", "similar_to_liked(1)"),
    RowSpec(6, "For regulars", "history_length >= 22 and 'Comedy' in genres"),
    RowSpec(7, "Watch again", "popularity >= 0", seen="only"),
    RowSpec(8, "All dramas, two of them first", "'Drama' in genres", seen="any", first=(560, 502, 9999)),
    RowSpec(9, "Three only", "popularity >= 0.3", min_titles=2, max_titles=3),
    RowSpec(10, "Again, like what you liked", "similar_to_liked(1)", seen="any", min_titles=1),
]


@pytest.fixture(scope="module")
def store(tiny_bundle: Path) -> Store:
    return Store(load_bundle(tiny_bundle))


@pytest.fixture(scope="module")
def rows(store: Store, tiny_data: Dataset) -> RowCatalogue:
    columns = TitleColumns.from_metadata(len(tiny_data.titles), tiny_data.titles.metadata, store.popularity)
    return RowCatalogue(rows_to_json(SPECS, ("play", "like")), columns)


def test_relevance_equals_a_loop(store: Store, rows: RowCatalogue, tiny_data: Dataset) -> None:
    offsets, index = tiny_data.events.offsets, tiny_data.title_indices()
    at = np.concatenate([offsets[:20], offsets[:20] + 9, offsets[1:] - 1])
    scores = torch.randn(len(at), len(tiny_data.titles)).round(decimals=1)  # many ties
    relevant, shown = row_ranking._relevance(tiny_data, rows, store.member_view, scores, index, at)
    seen_again = 0
    for p, event in enumerate(at.tolist()):
        member = max(m for m in range(len(tiny_data)) if offsets[m] <= event)
        history = tiny_data.events.ids[offsets[member] : event]
        seen = set(index[offsets[member] : event].tolist())
        target = int(index[event])
        seen_again += target in seen
        for r, spec in enumerate(rows.specs):
            eligible = np.flatnonzero(rows.eligibility[r].mask(store.member_view(history))).tolist()
            allowed = [i for i in eligible if spec.seen == "any" or (i in seen) == (spec.seen == "only")]
            named = [t - FIRST_TITLE for t in spec.first]
            place = {i: named.index(i) if i in named else len(named) for i in allowed}
            row = sorted(allowed, key=lambda i: (place[i], -scores[p, i].item(), i))
            assert bool(shown[p, r]) == (len(row) >= spec.min_titles), (p, spec)
            assert bool(relevant[p, r]) == (target in row[: min(spec.max_titles, FIRST_TITLES)]), (p, spec)
    assert seen_again  # and so in no row that leaves seen titles out, whatever its genre
    by_row = relevant.float().mean(0)
    assert (by_row[[0, 1, 2, 4, 6, 7, 8, 9]] > 0).all()  # the test has something to tell
    assert by_row[3] == 0
    assert 0 < shown[:, 5].float().mean() < 1


@pytest.mark.parametrize("part", [None, "validation", "test"])
def test_moments_are_states_of_the_frozen_layer(
    store: Store, rows: RowCatalogue, tiny_model: FoundationModel, tiny_data: Dataset, part: str | None
) -> None:
    found = moments(tiny_model, tiny_data, rows, store.member_view, part)  # type: ignore[arg-type]
    if part is None:
        chosen, count = choices(tiny_data), 0
        for start, stop in zip(tiny_data.events.offsets, training_ends(tiny_data), strict=False):
            count += min(int(chosen[max(start, stop - tiny_model.config.max_events) : stop].sum()), MOMENTS_PER_MEMBER)
        assert len(found.state) == count
    else:
        assert len(found.state) == len(held_out_choices(tiny_data, part))  # type: ignore[arg-type]
    assert found.state.shape[1] == tiny_model.config.d_model
    assert found.relevant.shape == found.shown.shape == (len(found.state), len(rows))
    assert torch.isfinite(found.state).all()
    again = moments(tiny_model, tiny_data, rows, store.member_view, part)  # type: ignore[arg-type]
    assert torch.equal(found.state, again.state)


def test_no_page_was_asked_for_while_one_title_was_watched(tiny_data: Dataset) -> None:
    """Member 1: play, pause, complete of a title; another; the next day it again. Member 2: the same title first."""
    hour, index = 3600, tiny_data.title_indices()
    a, b = (int(np.flatnonzero(index == i)[0]) for i in (0, 1))
    ids = tiny_data.events.ids[[a, a, a, b, b, b]]
    time = np.array([0, 1 * hour, 3 * hour, 4 * hour, 28 * hour, 0], np.int64)
    small = replace(tiny_data, events=Encoded(ids, time, np.array([0, 0, 5, 6])))
    assert choices(small).tolist() == [True, False, False, True, True, True]


def naive_metrics(scores: list[float], relevant: list[bool], shown: list[bool]) -> tuple[float, float, float] | None:
    """(NDCG, AUC, top row relevant) of one moment, among the rows shown."""
    kept = [(s, r) for s, r, there in zip(scores, relevant, shown, strict=True) if there]
    good, bad = [s for s, r in kept if r], [s for s, r in kept if not r]
    if not good or not bad:
        return None
    order = sorted(kept, key=lambda pair: -pair[0])
    gain = sum(1 / math.log2(i + 2) for i, (_, r) in enumerate(order) if r)
    best = sum(1 / math.log2(i + 2) for i in range(len(good)))
    auc = sum(g > b for g in good for b in bad) / (len(good) * len(bad))
    return gain / best, auc, float(order[0][1])


def test_row_metrics_equal_loops() -> None:
    scores, relevant, shown = torch.randn(80, 7), torch.rand(80, 7) < 0.4, torch.rand(80, 7) < 0.7
    found = row_metrics(scores, Moments(torch.empty(80, 0), relevant, shown))
    each = [
        naive_metrics(s, r, there)
        for s, r, there in zip(scores.tolist(), relevant.tolist(), shown.tolist(), strict=True)
    ]
    usable = [m for m in each if m is not None]
    assert found["moments"] == len(usable) < 80
    for i, name in enumerate(("row_ndcg", "row_auc", "top_row_relevant")):
        assert found[name] == pytest.approx(sum(m[i] for m in usable) / len(usable), abs=1e-5)


def test_a_perfect_ranking_of_rows_scores_1_and_its_reverse_0() -> None:
    relevant = torch.tensor([[True, False, False, True]] * 3)
    made = Moments(torch.empty(3, 0), relevant, torch.ones(3, 4, dtype=torch.bool))
    assert row_metrics(relevant.float(), made)["row_auc"] == 1
    assert row_metrics(relevant.float(), made)["row_ndcg"] == pytest.approx(1)
    assert row_metrics(-relevant.float(), made)["row_auc"] == 0


def learnable(count: int) -> Moments:
    """The relevant row is the one whose number the state has as its sign."""
    side = torch.randint(0, 2, (count,))
    state = torch.randn(count, 8) * 0.1
    state[:, 0] += side * 2.0 - 1
    relevant = torch.stack([side == 0, side == 1, torch.zeros(count, dtype=torch.bool)], dim=1)
    return Moments(state, relevant, torch.ones_like(relevant))


def test_the_ranker_learns_what_no_fixed_order_can() -> None:
    train, test = learnable(600), learnable(200)
    ids, features = torch.tensor([10, 20, 30]), torch.randn(3, 4 + ROW_STATISTICS)
    epochs: list[int] = []
    ranker = train_row_ranker(train, test, ids, features, epochs=15, on_epoch=lambda done, total: epochs.append(done))
    logits = {"row_ranker": row_scores(ranker, test, ids, features)}
    table = evaluate_rows(logits, train, test, features, torch.tensor([3.0, 2.0, 1.0]))
    assert epochs == list(range(1, 16))
    assert table["row_ranker"]["row_auc"] > 0.95
    assert {n for n, m in table.items() if m["row_auc"] < 0.8} == {"by_popularity", "by_size", "by_training_relevance"}
    assert not ranker.training


def test_scores_are_probabilities_of_moments_the_model_was_not_trained_on() -> None:
    """Training moments in which rows are relevant far too often do not make the scores too high."""
    ids, features = torch.tensor([10, 20, 30]), torch.randn(3, 4 + ROW_STATISTICS)
    train, later, test = learnable(600), learnable(600), learnable(600)
    for made in (later, test):
        made.relevant[torch.rand(made.relevant.shape) >= 0.3] = False
    ranker = train_row_ranker(train, later, ids, features, epochs=15)
    logits = {"row_ranker": row_scores(ranker, test, ids, features)}
    found = evaluate_rows(logits, train, test, features, torch.tensor([3.0, 2.0, 1.0]))["row_ranker"]
    assert found["happened"] == pytest.approx(float(test.relevant.float().mean()))
    assert found["predicted"] == pytest.approx(found["happened"], abs=0.02)


def test_calibration_leaves_the_order_and_needs_something_that_happened() -> None:
    ids, features, made = torch.tensor([10, 20, 30]), torch.randn(3, 4 + ROW_STATISTICS), learnable(200)
    ranker = RowRanker(ids, d_model=8, vector_width=4)
    before = row_scores(ranker, made, ids, features)
    never = Moments(made.state, torch.zeros_like(made.relevant), made.shown)
    assert torch.equal(row_scores(calibrate(ranker, never, ids, features), made, ids, features), before)
    after = row_scores(calibrate(ranker, made, ids, features), made, ids, features)
    assert not torch.allclose(after, before)
    assert torch.equal(after.argsort(1), before.argsort(1))


def test_held_out_events_do_not_make_the_rows_that_the_ranker_learns_from(
    tiny_model: FoundationModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, torch.Tensor]] = []
    real = export.train_rows
    monkeypatch.setattr(export, "train_rows", lambda *a: given.append(a[3]) or real(*a))
    served = load_bundle(export.export_bundle(tiny_model, tiny_data, tmp_path, {})).candidates["popularity"].numpy()
    index = tiny_data.title_indices()
    known = given[0]["popularity"].numpy()
    for found, events in ((known, training_events(tiny_data)), (served, np.ones(len(index), bool))):
        member = np.repeat(np.arange(len(tiny_data)), np.diff(tiny_data.events.offsets))[events]
        assert found.sum() == len(set(zip(member.tolist(), index[events].tolist(), strict=True)))


def test_a_row_added_after_training_has_a_score_by_its_content() -> None:
    made = learnable(300)
    ids, features = torch.tensor([10, 20, 30]), torch.randn(3, 4 + ROW_STATISTICS)
    ranker = train_row_ranker(made, made, ids, features, epochs=2)
    new_ids, new_features = torch.tensor([20, 99, 98]), torch.cat([features[1:2], torch.randn(2, 4 + ROW_STATISTICS)])
    scores = row_scores(ranker, made, new_ids, new_features)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[:, 0], row_scores(ranker, made, ids, features)[:, 1])
    assert not torch.allclose(scores[:, 1], scores[:, 2])


def test_row_vectors_do_not_depend_on_the_order_or_number_of_rows() -> None:
    ranker = RowRanker(torch.tensor([5, 3, 8]), d_model=8, vector_width=4).eval()
    features = torch.randn(3, 4 + ROW_STATISTICS)
    together, biases = ranker.row_vectors(torch.tensor([8, 5, 77]), features)
    for i, row in enumerate((8, 5, 77)):
        vector, bias = ranker.row_vectors(torch.tensor([row]), features[i : i + 1])
        torch.testing.assert_close(vector[0], together[i])
        torch.testing.assert_close(bias[0], biases[i])
    expected = ranker.embedding[0] + ranker.content(features[2])
    torch.testing.assert_close(together[2], expected)
