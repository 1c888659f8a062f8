"""Shapes of repository: stages put together make our page, and are wired as they are declared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.benchmarks.repository_shapes import SHAPES, ratios, shape
from frontrow.benchmarks.serve_load import draw_requests, inputs_of
from frontrow.benchmarks.serve_peers import at_noon, check
from frontrow.benchmarks.staged_page import ASSEMBLY, StagedEngine, ensemble_config
from frontrow.foundation.schema import WIRE
from frontrow.serving.homepage import CANDIDATES, HomepageEngine, Page
from frontrow.serving.requests import PageRequest, Prepared
from frontrow.serving.serve import STAGE_MODELS
from frontrow.serving.store import Store


def through_the_stages(engine: HomepageEngine, request: PageRequest, now: float) -> dict[str, np.ndarray]:
    """What page_assembly is given, by the functions that the stages call."""
    types: dict[str, Any] = {"INT64": np.int64, "INT32": np.int32}
    tensors = {}
    for t in WIRE["homepage"][0]:
        values = inputs_of(request)[t.name]
        text = t.dtype == "BYTES"
        tensors[t.name] = np.array([v.encode() for v in values] if text else values, types.get(t.dtype, np.object_))
    (prepared,) = engine.prepare([request], now)
    assert isinstance(prepared, Prepared)
    vector, state = (of[0].numpy() for of in engine.encode([prepared]))
    titles, sources = engine.candidates(vector, request.member_id, CANDIDATES, request.exclude)
    best, scores = engine.score_titles(vector, titles, CANDIDATES)
    chances = engine.row_probabilities(state, engine.store.rows.ids)
    found = (vector, titles, sources, best, scores, chances)
    return tensors | {t.name: value for t, value in zip(ASSEMBLY[0][-len(found) :], found, strict=True)}


def test_assembled_from_the_stages_a_stored_page_is_the_same(tiny_bundle: Path) -> None:
    staged = StagedEngine(tiny_bundle)
    engine = HomepageEngine(Store.open(tiny_bundle))
    now = float(engine.store.bundle.known["context"]["timestamp"])
    for request in at_noon(engine.store.bundle, draw_requests(engine.store.bundle, "stored", 5)):
        found = staged.page_of(through_the_stages(engine, request, now), now)
        (page,) = engine.pages([request], now)
        assert isinstance(page, Page)
        np.testing.assert_array_equal(found.row_ids, page.row_ids)
        np.testing.assert_array_equal(found.title_ids, page.title_ids)
        np.testing.assert_array_equal(found.sources, page.sources)
        np.testing.assert_allclose(found.row_scores, page.row_scores, rtol=1e-4)


def test_every_input_of_every_step_of_the_ensemble_is_there() -> None:
    text = ensemble_config()
    have = set(re.findall(r'^input \{ name: "(\w+)"', text, re.MULTILINE))
    wire = {name: WIRE[name] for name in STAGE_MODELS} | {"page_assembly": ASSEMBLY}
    steps = re.findall(r'step \{ model_name: "(\w+)".*?\n(.*?)\n  \}', text, re.DOTALL)
    assert sorted(name for name, _ in steps) == sorted(wire)
    for name, maps in steps:
        wanted = dict(re.findall(r'input_map \{ key: "(\w+)" value: "(\w+)" \}', maps))
        given = dict(re.findall(r'output_map \{ key: "(\w+)" value: "(\w+)" \}', maps))
        assert set(wanted) == {t.name for t in wire[name][0]}
        assert set(wanted.values()) <= have
        assert not set(given.values()) & have  # one name for two tensors: the later is not computed
        assert set(given) == {t.name for t in wire[name][1]}
        have |= set(given.values())
    assert {t.name for t in WIRE["homepage"][1]} <= have


def test_ratios_are_to_one_process_in_the_same_round() -> None:
    def run(kind: str, number: int, speed: float) -> dict[str, Any]:
        latency = {"p50": 1000 / speed, "p99": 2000 / speed}
        return {"server": kind, "in_flight": 1, "round": number, "pages_per_second": speed, "latency_ms": latency}

    runs = [run(kind, n, (100, 50, 20, 200)[k] * (n + 1)) for n in range(3) for k, kind in enumerate(SHAPES)]
    found = {line["shape"]: line for line in ratios(runs) if line["in_flight"] == 1}
    assert found["ensemble"]["throughput"] == [0.5, 0.5, 0.5]
    assert found["business logic"]["p50"] == [5.0, 5.0, 5.0]


@pytest.mark.long
@pytest.mark.parametrize("kind", SHAPES)
def test_a_server_of_each_shape_gives_our_pages(tiny_bundle: Path, kind: str) -> None:
    engine = HomepageEngine(Store.open(tiny_bundle))
    requests = at_noon(engine.store.bundle, draw_requests(engine.store.bundle, "stored", 5))
    pages = [page for page in engine.pages(requests) if isinstance(page, Page)]
    with shape(kind, tiny_bundle, threads=1) as server:
        assert check(kind, server, requests, pages) == 0.0
