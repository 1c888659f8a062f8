"""The trade-off and the reliability benchmark on the tiny data: what it measures is what is served and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.benchmarks import beyond_accuracy as benchmark
from frontrow.benchmarks import beyond_accuracy_report as report
from frontrow.foundation.model import FoundationModel
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.store import Store
from frontrow.training.data import Dataset
from frontrow.training.evaluate import evaluate_scorer, model_scorer


@pytest.fixture(scope="module")
def piece(
    tiny_model: FoundationModel, tiny_data: Dataset, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the benchmark keeps of a run."""
    engine = HomepageEngine(Store.open(tiny_bundle))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "DIALS", (0.0, 1.0))
        return {
            "members": len(tiny_data),
            "reliability": benchmark.reliability(tiny_model, tiny_data, engine),
            "lists": benchmark.lists_trade_off(tiny_model, tiny_data),
            "pages": benchmark.pages_trade_off(tiny_model, tiny_data, tmp_path_factory.mktemp("bundles")),
            "levels": {"mean": 1.0, "deviation": 0.5, "least": 0.1, "greatest": 2.0, "sample": 8, "catalogues": []},
            "latency": benchmark.latency(engine, 4, 4, requests=2),
        }


def test_lists_at_0_are_those_that_evaluation_ranks(
    piece: dict[str, Any], tiny_model: FoundationModel, tiny_data: Dataset
) -> None:
    expected = evaluate_scorer(model_scorer(tiny_model, tiny_data, "test", True), tiny_data, "test")
    for name in ("hr@10", "ndcg@10", "coverage", "novelty_bits"):
        assert piece["lists"][0][name] == pytest.approx(expected[name])


def test_the_served_bundle_ends_before_the_test_event(tiny_data: Dataset) -> None:
    cut = benchmark.before_test(tiny_data)
    for member in (0, 31, 59):
        whole, kept = tiny_data.events.member(member), cut.events.member(member)
        np.testing.assert_array_equal(kept.ids, whole.ids[:-1])
        np.testing.assert_array_equal(kept.timestamp, whole.timestamp[:-1])


def test_variety_is_measured_beside_what_it_costs(piece: dict[str, Any]) -> None:
    for way, quality in (("lists", "ndcg@10"), ("pages", "page_hit")):
        by_score, varied = piece[way]
        assert by_score["beside_0"] == {"mean": 0, "from": 0, "to": 0}
        assert varied["beside_0"]["mean"] == pytest.approx(varied[quality] - by_score[quality])
        assert varied["beside_0"]["from"] <= varied["beside_0"]["mean"] <= varied["beside_0"]["to"]
        within = "within_genres" if way == "lists" else "within_rows_genres"
        assert varied[within] != by_score[within]
    assert 0 < piece["pages"][0]["visible_hit"] <= piece["pages"][0]["page_hit"] < 1
    assert set(piece["reliability"]) >= {"titles", "action_type", "genres", "rows"}


def test_the_report_is_made_of_the_file_alone(piece: dict[str, Any], tmp_path: Path) -> None:
    lines = [{"diversity": d, "page_value": 0.5 - d / 10, **line} for d, line in enumerate(piece["pages"])]
    two = {head: piece["reliability"][head] for head in ("titles", "rows")}  # pictures of many panels take their time
    piece = piece | {"reliability": two}
    world = {"reliability": {"rows": two["rows"]}, "lines": lines, "oracle_page_value": 0.7, "random_page_value": 0.1}
    content = {"pages": [10, 8], "ml-100k": {"demo": piece}, "world": {"seed-1": world, "seed-2": world}}
    content = json.loads(json.dumps(content))
    text = report.markdown(content)
    assert f"| {piece['pages'][1]['page_hit']:.3f}" in text
    assert "mean of 2 worlds" in text
    assert "nan" not in text
    assert "simulated" in text.lower()
    for draw, name in ((report.draw_reliability, "reliability"), (report.draw_trade_off, "trade-off")):
        assert draw(content, tmp_path / f"{name}.png").stat().st_size > 10_000
