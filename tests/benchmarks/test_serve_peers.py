"""Peers of `frontrow serve`: they answer with our pages, and what becomes of their figures."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.benchmarks.peer_servers import batch_answer, grpc_answer
from frontrow.benchmarks.peers_running import OURS, running
from frontrow.benchmarks.plain_engine import PlainEngine
from frontrow.benchmarks.scratch_repository import Model, config_text
from frontrow.benchmarks.serve_client import Target, decoded, encoded
from frontrow.benchmarks.serve_load import draw_requests
from frontrow.benchmarks.serve_peers import at_noon, bars, check, disagreement, load, plot, ratios, summary
from frontrow.foundation.schema import Tensor
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> PlainEngine:
    return PlainEngine(tiny_bundle)


@pytest.fixture(scope="module")
def requests(plain: PlainEngine) -> list[PageRequest]:
    bundle = plain.store.bundle
    return [replace(r, rows=5, titles=6) for r in at_noon(bundle, draw_requests(bundle, "mixed", 20))]


@pytest.fixture(scope="module")
def pages(tiny_bundle: Path, requests: list[PageRequest]) -> list[Page]:
    engine = HomepageEngine(Store.open(tiny_bundle))
    return [page for page in engine.pages(requests) if isinstance(page, Page)]


def outputs(page: Page) -> dict[str, np.ndarray]:
    return {"row_ids": page.row_ids, "title_ids": page.title_ids, "title_scores": page.title_scores}


def test_plain_torch_makes_our_pages_alone_and_in_batches(
    plain: PlainEngine, requests: list[PageRequest], pages: list[Page]
) -> None:
    alone = [outputs(plain.page(r)) for r in requests]
    together = [outputs(page) for page in plain.pages(requests) if isinstance(page, Page)]
    assert disagreement(pages, alone) == (0.0, None)
    assert disagreement(pages, together) == (0.0, None)
    assert plain.counters["ranking_kept"] == 0


def test_another_page_is_noticed(pages: list[Page]) -> None:
    same = [outputs(page) for page in pages]
    other = [page | {"title_ids": page["title_ids"] + 1} for page in same]
    assert "of our titles are missing" in str(disagreement(pages, other)[1])
    scores = [page | {"title_scores": page["title_scores"] + 0.1} for page in same]
    assert "a title's score is 0.1 off" in str(disagreement(pages, scores)[1])
    shorter = [page | {"row_ids": page["row_ids"][1:]} for page in same]
    assert disagreement(pages, shorter)[0] == 1.0


def test_the_grpc_peer_reads_and_writes_kserve_messages(
    plain: PlainEngine, requests: list[PageRequest], pages: list[Page]
) -> None:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    target = Target("kserve", ("nowhere",))
    for request, page in zip(requests[:4], pages, strict=False):
        message = ModelInferRequest.FromString(encoded(target, request))
        found = decoded(target, grpc_answer(plain, message).SerializeToString())
        np.testing.assert_array_equal(found["title_ids"], page.title_ids)
        np.testing.assert_allclose(found["row_scores"], page.row_scores, rtol=1e-4)


def test_requests_without_a_value_are_left_out_for_whom_they_break() -> None:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    names = [
        [tensor.name for tensor in ModelInferRequest.FromString(encoded(target, PageRequest(7))).inputs]
        for target in (Target("kserve", ()), Target("kserve", (), sends_empty=False))
    ]
    assert names[0] == ["member_id", "events", "context", "page", "exclude", "surface", "experiment"]
    assert names[1] == ["member_id", "page", "surface"]


def test_a_batch_is_answered_in_order_and_shorter_pages_are_padded(plain: PlainEngine, pages: list[Page]) -> None:
    members = plain.store.bundle.member_ids[:3]
    found = batch_answer(plain, {"member_id": members[:, None], "page": np.array([[3, 4]] * 3)})
    assert found["title_ids"].shape == (3, 3, 4)
    for b, member in enumerate(members.tolist()):
        page = plain.page(PageRequest(member, rows=3, titles=4))
        np.testing.assert_array_equal(found["title_ids"][b], page.title_ids)
    everything = plain.store.bundle.titles.ids
    exclude = np.stack([everything, np.full_like(everything, 10**9)])
    found = batch_answer(plain, {"member_id": members[:2, None], "page": np.array([[3, 4]] * 2), "exclude": exclude})
    assert (found["title_ids"][0] == -1).all()
    assert (found["title_ids"][1] >= 0).any()


def test_a_model_config_batches_ragged_inputs_or_nothing() -> None:
    wire = ([Tensor("k", "INT32", (1,)), Tensor("events", "BYTES", (-1,), optional=True)],
            [Tensor("page", "FP32", (-1, -1))])  # fmt: skip
    text = config_text(Model("one", "code.py", wire))
    assert 'input { name: "k" data_type: TYPE_INT32 dims: [ 1 ] }' in text
    assert 'name: "events" data_type: TYPE_STRING dims: [ -1 ] allow_ragged_batch: true optional: true' in text
    assert 'output { name: "page" data_type: TYPE_FP32 dims: [ -1, -1 ] }' in text
    assert "dynamic_batching" in text
    alone = config_text(Model("one", "code.py", wire, batching=False))
    assert "dynamic_batching" not in alone
    assert "ragged" not in alone


def run(server: str, number: int, speed: float, p99: float, in_flight: int = 16) -> dict[str, Any]:
    latency = {"p50": 5.0, "p95": 8.0, "p99": p99}
    return {"server": server, "mode": "mixed", "in_flight": in_flight, "round": number, "pages_per_second": speed,
            "latency_ms": latency, "cpu_ms_per_page": 10.0, "cpu_percent": 150.0, "memory_mb": 500.0}  # fmt: skip


def test_ratios_are_those_of_the_same_round_and_the_winner_is_named(tmp_path: Path) -> None:
    runs = [run(OURS, 0, 400, 20), run("python backend", 0, 100, 40), run("FastAPI", 0, 500, 30)]
    runs += [run(OURS, 1, 300, 22), run("python backend", 1, 60, 11), run("FastAPI", 1, 450, 30)]
    content: dict[str, Any] = {"runs": runs, "ratios": ratios(runs), "summary": summary(runs)}
    content["overhead_ms"] = [{"mode": "mixed", "round": i, "added": value} for i, value in enumerate((0.5, 2.5, 0.7))]
    assert content["ratios"][0]["throughput"] == {"median": 4.5, "least": 4.0, "most": 5.0}
    assert content["ratios"][0]["p99"] == {"median": 1.25, "least": 0.5, "most": 2.0}
    found = {bar["bar"]: (bar["is"], bar["met"]) for bar in bars(content)}
    assert found == {
        "throughput of (a) at 16, times": (4.5, True),
        "p99 of (a) at 16, times": (1.25, False),
        "Triton Server adds, ms": (0.7, True),
        "most pages/s at 16": ("FastAPI", False),
    }
    plot({**content, "data_set": "x", "device": "a host", "date": "today"}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_peer_runs_answers_is_measured_and_ends(
    tiny_bundle: Path, requests: list[PageRequest], pages: list[Page]
) -> None:
    if missing := [p for p in ("fastapi", "uvicorn", "orjson", "aiohttp") if importlib.util.find_spec(p) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install '.[bench]'")
    with running("FastAPI", tiny_bundle) as server:
        assert check("FastAPI", server, requests, pages) == 0.0
        found = load(server, [encoded(server.target, r) for r in requests], 2, 0.2)
        (pid,) = server.processes()
    assert found["pages_per_second"] > 10
    assert found["memory_mb"] > 50
    assert not Path(f"/proc/{pid}").exists()
