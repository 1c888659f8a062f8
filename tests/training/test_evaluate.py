"""Evaluation: ranks and metrics against loops, baselines against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import default_schema
from frontrow.training import baselines
from frontrow.training.baselines import NEIGHBOURS, item_item_scores, popularity_scores, user_user_scores
from frontrow.training.batches import Part, evaluated_members, evaluation_batch, target_positions
from frontrow.training.data import Dataset, load_dataset, write_dataset
from frontrow.training.evaluate import (
    Scorer,
    evaluate,
    evaluate_scorer,
    model_scorer,
    ranking_metrics,
    ranks_of_targets,
    score_unseen,
)
from frontrow.training.export import candidate_lists

PARTS: list[Part] = ["validation", "test"]


def small_data(folder: Path, histories: list[list[int]], titles: int) -> Dataset:
    """Members 0, 1, … with these titles, one a second, of a catalogue of titles 0 to `titles` − 1."""
    events = [(m, t, {"entity_id": i}) for m, history in enumerate(histories) for t, i in enumerate(history)]
    columns = zip(*events, strict=True)
    table = pa.table(dict(zip(("member_id", "timestamp", "what"), map(list, columns), strict=True)))
    write_dataset(folder, table, pa.table({"title_id": range(titles), "name": [str(i) for i in range(titles)]}))
    return load_dataset(folder, default_schema())


def fixed(*scores: list[float]) -> Scorer:
    """A scorer that knows its answers."""
    return lambda members: np.array(scores, np.float32)[members]


def naive_rank(scores: list[float], seen: set[int], target: int) -> int:
    """How many others stand before the target: those unseen that score more, or as much with a smaller id."""
    before = (s > scores[target] or (s == scores[target] and i < target) for i, s in enumerate(scores) if i not in seen)
    return sum(before)


def played(data: Dataset, member: int) -> list[int]:
    return data.title_indices()[data.events.offsets[member] : data.events.offsets[member + 1]].tolist()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("levels", [3, 10_000], ids=["many ties", "few ties"])
def test_metrics_equal_loops(tiny_data: Dataset, part: Part, levels: int) -> None:
    scores = np.random.default_rng(1).integers(0, levels, (len(tiny_data), len(tiny_data.titles))).astype(np.float32)
    back = 1 if part == "test" else 2
    ranks = []
    for member in range(len(tiny_data)):
        history = played(tiny_data, member)
        ranks.append(naive_rank(scores[member].tolist(), set(history[:-back]), history[-back]))
    found = evaluate_scorer(lambda members: scores[members].copy(), tiny_data, part)
    hits = [r for r in ranks if r < 10]
    assert found["hr@10"] == pytest.approx(len(hits) / len(ranks))
    assert found["ndcg@10"] == pytest.approx(sum(1 / math.log2(r + 2) for r in hits) / len(ranks))
    assert found["mrr"] == pytest.approx(sum(1 / (r + 1) for r in ranks) / len(ranks))


def test_metrics_by_hand() -> None:
    found = ranking_metrics(np.array([0, 2, 9, 10]))
    assert found["hr@10"] == 0.75
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11) / 4)


def mrr(data: Dataset, scorer: Scorer) -> float:
    return evaluate_scorer(scorer, data, "test")["mrr"]


def test_seen_titles_do_not_compete_and_ties_go_to_the_smaller_id(tmp_path: Path) -> None:
    data = small_data(tmp_path, [[0, 1, 2]], titles=5)
    assert mrr(data, fixed([9, 9, 3, 2, 1])) == 1  # 0 and 1 are seen
    assert mrr(data, fixed([0, 0, 3, 3, 1])) == 1  # 3 has the larger id
    assert mrr(data, fixed([0, 0, 1, 2, 3])) == 1 / 3
    other = small_data(tmp_path, [[0, 1, 4]], titles=5)
    assert mrr(other, fixed([3, 3, 3, 3, 3])) == 1 / 3


def test_a_target_seen_before_is_still_ranked(tmp_path: Path) -> None:
    data = small_data(tmp_path, [[2, 1, 2]], titles=5)
    assert mrr(data, fixed([4, 9, 3, 2, 1])) == 1 / 2


def test_a_target_without_a_number_for_a_score_comes_last(tmp_path: Path) -> None:
    data = small_data(tmp_path, [[0, 1, 2]], titles=5)
    assert mrr(data, fixed([0, 0, math.nan, 1, 2])) == pytest.approx(1 / 5)
    assert mrr(data, fixed([0, 0, 3, math.nan, 2])) == pytest.approx(1 / 2)


def test_a_target_the_catalogue_lacks_is_a_miss(tmp_path: Path) -> None:
    data = small_data(tmp_path, [[0, 1, 77], [0, 1, 2]], titles=20)
    found = evaluate_scorer(fixed(list(range(20)), [9.0] * 3 + [1.0] * 17), data, "test")
    assert (found["hr@10"], found["mrr"]) == (0.5, pytest.approx((1 / 21 + 1) / 2))
    assert found["popularity_rank_played"] == 2


@pytest.mark.parametrize("part", PARTS)
def test_scores_of_seen_titles_are_minus_infinity_and_others_untouched(tiny_data: Dataset, part: Part) -> None:
    members = evaluated_members(tiny_data)[5:9]
    scores, targets = score_unseen(lambda m: np.ones((len(m), len(tiny_data.titles))), tiny_data, part, members)
    back = 1 if part == "test" else 2
    for row, member, target in zip(scores, members, targets, strict=True):
        history = played(tiny_data, member)
        assert target == history[-back]
        hidden = set(history[:-back]) - {target}
        assert [i for i, s in enumerate(row) if s == -np.inf] == sorted(hidden)
        assert (row[list(set(range(len(row))) - hidden)] == 1).all()


def test_the_popularity_baseline_by_hand(tmp_path: Path) -> None:
    """Training events are all but the last two: title 0 three members, 1 two, 2 one."""
    histories = [[0, 1, 5, 6], [0, 1, 5, 2], [0, 2, 5, 1], [1, 1, 5, 0]]
    data = small_data(tmp_path, histories, titles=30)
    # Training plays: 0 by members 0 to 2, 1 by 0, 1 and 3, 2 by 2.
    scores = popularity_scores(data, "test")(np.array([0, 3]))
    assert scores[:, :4].tolist() == [[3, 3, 1, 0], [3, 3, 1, 0]]
    # Member 0 wants 6 (nobody played it, but of such titles 2 to 5 alone have smaller ids), 1 wants 2 (best
    # unseen), 2 wants 1, 3 wants 0: first.
    assert evaluate_scorer(popularity_scores(data, "test"), data, "test")["hr@10"] == 1


def naive_scores(data: Dataset, part: Part) -> dict[str, np.ndarray]:
    """Both collaborative filters from sets, title by title."""
    members, count = range(len(data)), len(data.titles)
    trained = [set(played(data, m)[:-2]) for m in members]
    before = [set(played(data, m)[: -1 if part == "test" else -2]) for m in members]
    fans = [{m for m in members if t in trained[m]} for t in range(count)]
    items = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                items[i, j] = len(fans[i] & fans[j]) / (math.sqrt(len(fans[i]) * len(fans[j])) + 10)
    users = np.zeros((len(data), len(data)))
    for u in members:
        for v in members:
            if u != v:
                users[u, v] = len(trained[u] & trained[v]) / math.sqrt(len(trained[u]) * len(trained[v]))
    for similarity in (items, users):
        for row in similarity:
            row[row < sorted(row)[-NEIGHBOURS] - 1e-9] = 0
    return {
        "item": np.array([[sum(items[t, j] for j in before[m]) for t in range(count)] for m in members]),
        "user": np.array([[sum(users[m, v] for v in fans[t]) for t in range(count)] for m in members]),
    }


@pytest.mark.parametrize("part", PARTS)
def test_collaborative_filters_equal_their_definitions(tiny_data: Dataset, part: Part) -> None:
    wanted = naive_scores(tiny_data, part)
    members = np.arange(len(tiny_data))
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "item": item_item_scores(tiny_data, part),
        "user": user_user_scores(tiny_data, part),
    }
    for name, score in found.items():
        np.testing.assert_allclose(score(members), wanted[name], rtol=1e-4, atol=1e-5)


def test_a_baseline_too_large_for_its_matrix_is_left_out_by_name(
    tiny_model: FoundationModel, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MOST_CELLS", 60 * 120)
    table = evaluate(tiny_model, tiny_data, "validation")
    assert set(table["baselines"]) == {"popularity", "user_user_cf"}
    assert table["left_out"].keys() == {"item_item_cf"}
    assert "120 × 120" in table["left_out"]["item_item_cf"]
    monkeypatch.setattr(baselines, "MOST_CELLS", 1)
    assert set(evaluate(tiny_model, tiny_data, "validation")["baselines"]) == {"popularity"}
    with pytest.raises(baselines.TooLarge, match="60 × 120"):
        candidate_lists(tiny_data, np.ones(len(tiny_data.events.ids), bool))


def test_a_part_that_there_is_not_is_refused(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    with pytest.raises(ValueError, match="'foo'; give test or validation"):
        evaluate(tiny_model, tiny_data, "foo")  # type: ignore[arg-type]


def test_the_model_scores_by_the_dot_product_that_is_served(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    members = np.array([3, 40])
    for with_request in (True, False):
        scores = model_scorer(tiny_model, tiny_data, "test", with_request)(members)
        tokens, offsets = evaluation_batch(tiny_data, members, "test", tiny_model.config.max_events, with_request)
        with torch.no_grad():
            wanted = tiny_model.encode(tokens, offsets)[0] @ tiny_model.title_vectors().T
        np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_the_table_has_the_model_twice_and_every_baseline(tiny_model: FoundationModel, tiny_data: Dataset) -> None:
    table = evaluate(tiny_model, tiny_data, "validation")
    assert (table["part"], table["members"]) == ("validation", 60)
    assert set(table["baselines"]) == {"popularity", "item_item_cf", "user_user_cf"}
    ranks = ranks_of_targets(tiny_model, tiny_data, "validation")
    assert table["model"]["hr@10"] == pytest.approx((ranks < 10).mean())
    assert table["model"] != table["model_without_request_fields"]
    assert target_positions(tiny_data, np.array([0]), "validation")[0] == tiny_data.events.offsets[1] - 2


def test_coverage_novelty_and_popularity_bias_by_hand(tmp_path: Path) -> None:
    """Two members, 24 titles; training plays title 0 twice and title 1 once, of three events."""
    data = small_data(tmp_path, [[0, 20, 21], [0, 1, 20, 22]], titles=24)
    first = [float(-i) for i in range(24)]  # shows the smallest unseen ids
    found = evaluate_scorer(fixed(first, first), data, "test")
    shown = [*range(1, 11), *range(2, 12)]  # 0 is seen by both, 1 and 20 by the second
    plays = {0: 2, 1: 1}
    assert found["coverage"] == 11 / 24
    assert found["novelty_bits"] == pytest.approx(np.mean([-math.log2((plays.get(i, 0) + 1) / 27) for i in shown]))
    # Popularity ranks are the ids here: 0, then 1, then unplayed titles by id.
    assert found["popularity_rank_shown"] == pytest.approx(np.mean(shown))
    assert found["popularity_rank_played"] == pytest.approx((21 + 22) / 2)
    assert found["popularity_bias"] == pytest.approx(((21 + 22) / 2 - np.mean(shown)) / 24)
