"""A real Triton Server on a tiny bundle: the page that members get, whatever they send and whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import statistics
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_files import selectors, selects_something
from frontrow.clients import AsyncHomepageClient, Homepage, HomepageClient, InvalidRequest, Overloaded, SchemaMismatch
from frontrow.foundation.schema import SOURCES, Schema, default_schema
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.metrics import EVERY_SECONDS
from frontrow.serving.requests import PageRequest
from frontrow.serving.serve import serve_bundle
from frontrow.serving.store import Store
from frontrow.serving.triton_server import (
    CONTROL_HEADER,
    ServerNotFound,
    TritonServer,
    find_tritonserver,
    has_nvidia_gpu,
)
from server_process import eventually, free_ports
from wire_cases import BAD_REQUESTS, Bad, first_row_score, inputs, public_events, texts

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

WHEN = {"timestamp": 1_720_000_000, "device": "TV"}


@dataclass(frozen=True)
class Running:
    """The server of this file, and clients of it."""

    server: TritonServer
    engine: HomepageEngine
    client: HomepageClient
    raw: Any

    def infer(self, model: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Straight through tritonclient, past the checks of ours."""
        tensors = []
        for name, array in arrays.items():
            dtype = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "object": "BYTES"}[str(array.dtype)]
            tensors.append(grpc.InferInput(name, list(array.shape), dtype))
            tensors[-1].set_data_from_numpy(array)
        result = self.raw.infer(model, tensors, str(self.engine.store.version), client_timeout=20)
        return {t.name: result.as_numpy(t.name) for t in result.get_response().outputs}


@pytest.fixture(scope="module")
def running(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    ports, log = free_ports(), tmp_path_factory.mktemp("server") / "server.log"
    with serve_bundle(tiny_bundle, log=log, stages=True, control_key="key", **ports) as server:
        url = f"127.0.0.1:{server.grpc_port}"
        with HomepageClient(url, timeout_s=20) as client, grpc.InferenceServerClient(url) as raw:
            yield Running(server, HomepageEngine(Store.open(tiny_bundle)), client, raw)


def assert_is_page(found: Homepage, page: Any) -> None:
    assert isinstance(page, Page), page
    assert [row.row_id for row in found.rows] == page.row_ids.tolist()
    np.testing.assert_allclose([row.score for row in found.rows], page.row_scores, rtol=1e-5)
    for row, ids, scores, sources in zip(found.rows, page.title_ids, page.title_scores, page.sources, strict=True):
        count = int((ids >= 0).sum())
        assert [t.title_id for t in row.titles] == ids[:count].tolist()
        np.testing.assert_allclose([t.score for t in row.titles], scores[:count], rtol=1e-5, atol=1e-6)
        assert [t.source for t in row.titles] == [SOURCES[s] for s in sources[:count]]
    assert found.fallback == page.info["fallback"]


def engine_page(running: Running, member: int | None, events: list[Any], **size: Any) -> Any:
    request = PageRequest(-1 if member is None else member, texts(events), json.dumps(WHEN).encode(), **size)
    return running.engine.pages([request])[0]


# --- The page ---


@pytest.mark.parametrize("member", [1005, None, 999_999], ids=["stored", "anonymous", "unknown"])
@pytest.mark.parametrize("sent", [0, 3], ids=["no events", "events"])
def test_the_served_page_is_the_engines_page(running: Running, member: int | None, sent: int) -> None:
    events = public_events(running.engine.store.bundle, 1020)[:sent]
    found = running.client.homepage(member, events=events, context=WHEN, rows=6, titles=7)
    assert_is_page(found, engine_page(running, member, events, rows=6, titles=7))
    assert found.bundle_version == running.engine.store.version
    assert all(title.name == f"Title {title.title_id - 500}" for row in found.rows for title in row.titles)


def test_the_asyncio_client_gets_the_same_pages(running: Running) -> None:
    async def ask() -> list[Homepage]:
        async with AsyncHomepageClient(f"127.0.0.1:{running.server.grpc_port}", timeout_s=20) as client:
            return await asyncio.gather(*(client.homepage(m, context=WHEN) for m in (1001, 1002, 1003, None)))

    for found, member in zip(asyncio.run(ask()), (1001, 1002, 1003, None), strict=True):
        assert_is_page(found, engine_page(running, member, []))


def test_a_hand_written_caller_may_leave_optional_inputs_out_and_send_batches(running: Running) -> None:
    answer = running.infer("homepage", {"member_id": np.array([[1001]])})
    assert answer["row_ids"].shape == (1, 10)
    stored = texts(public_events(running.engine.store.bundle, 1009))[:9]
    context = json.dumps(WHEN).encode()
    events = np.array([stored, stored[:4] + [b""] * 5], np.object_)
    two = {"member_id": np.array([[-1], [-1]]), "events": events, "context": np.array([[context]] * 2, np.object_)}
    answer = running.infer("homepage", two)
    requests = [PageRequest(-1, stored, context), PageRequest(-1, stored[:4], context)]
    for row, page in enumerate(running.engine.pages(requests)):
        assert isinstance(page, Page), page
        np.testing.assert_array_equal(answer["title_ids"][row], page.title_ids)
        np.testing.assert_allclose(answer["title_scores"][row], page.title_scores, rtol=1e-5, atol=1e-6)


def test_nothing_left_to_show_is_an_empty_page(running: Running) -> None:
    everything = running.engine.store.bundle.titles.ids.tolist()
    assert running.client.homepage(1001, exclude=everything).rows == ()


def test_the_largest_page_and_a_long_history_arrive_whole(running: Running) -> None:
    events = [{"timestamp": 1_600_000_000 + i, "what": {"entity_id": 500 + i % 30}} for i in range(20_000)]
    found = running.client.homepage(events=events, rows=100, titles=500, context=WHEN)
    assert_is_page(found, engine_page(running, None, events, rows=100, titles=500))
    assert found.info["counts"]["truncated"] == 20_000 - running.engine.store.model.config.max_events


# --- Bad requests ---


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_is_an_invalid_argument_and_the_next_good_one_is_answered(running: Running, bad: Bad) -> None:
    with pytest.raises(grpc.InferenceServerException, match=bad.says) as refused:
        running.infer("homepage", bad.inputs())
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    answer = running.infer("homepage", inputs("homepage", member_id=[1001], page=[2, 4]))
    assert answer["title_ids"].shape == (1, 2, 4)


def test_what_the_server_refuses_is_an_invalid_request_of_the_client(running: Running) -> None:
    with pytest.raises(InvalidRequest, match=r"event 0: 'what\.entity_id' is -7"):
        running.client.homepage(events=[{"timestamp": 1, "what": {"entity_id": -7}}])


def test_a_client_with_other_fields_is_told_so(running: Running) -> None:
    own = default_schema()
    other = Schema(own.fields, tuple(dataclasses.replace(f, width=4) for f in own.title_fields))
    url = f"127.0.0.1:{running.server.grpc_port}"
    with HomepageClient(url, timeout_s=20, schema=other) as client, pytest.raises(SchemaMismatch, match=other.hash):
        client.homepage(1001)
    with HomepageClient(url, timeout_s=20, schema=None) as client:
        assert client.homepage(1001).rows


# --- Other surfaces ---


@pytest.mark.parametrize("member", [1005, None], ids=["stored", "anonymous"])
def test_search_and_more_like_this_are_the_engines(running: Running, member: int | None) -> None:
    who = -1 if member is None else member
    for found, question, surface in (
        (running.client.search("title 11", member, context=WHEN, titles=30), {"query": "title 11"}, "search"),
        (running.client.search("tilte 7", member, context=WHEN, titles=30), {"query": "tilte 7"}, "search"),
        (running.client.search("nothing like it", member, context=WHEN), {"query": "nothing like it"}, "search"),
        (running.client.more_like_this(550, member, context=WHEN), {"title_id": 550}, "more_like_this"),
    ):
        request = PageRequest(who, (), json.dumps(WHEN | question).encode(), titles=30, surface=surface)
        (page,) = running.engine.pages([request])
        assert isinstance(page, Page), page
        count = len(found.titles)
        assert [t.title_id for t in found.titles] == page.title_ids[0, :count].tolist()
        np.testing.assert_allclose([t.score for t in found.titles], page.title_scores[0, :count], rtol=1e-5, atol=1e-6)
        assert {t.source for t in found.titles} <= {"lexical" if surface == "search" else "neighbour"}
        assert (found.fallback, found.surface) == (page.info["fallback"], surface)
        assert found.label == ("Found" if surface == "search" else "More like Title 50")
        assert bool(count) == ("like it" not in str(question))


def test_the_asyncio_client_asks_all_surfaces_at_once(running: Running) -> None:
    async def ask() -> list[Any]:
        async with AsyncHomepageClient(f"127.0.0.1:{running.server.grpc_port}", timeout_s=20) as client:
            return await asyncio.gather(
                client.search("title 3", 1001), client.homepage(1001), client.more_like_this(503, 1001)
            )

    found, page, similar = asyncio.run(ask())
    assert found.titles[0].name == "Title 3"
    assert len(page.rows) == 10
    assert similar.label == "More like Title 3"
    assert len(similar.titles) == 20


# --- The stages ---


def test_the_stages_put_together_by_hand_score_as_the_homepage_does(running: Running) -> None:
    context = [json.dumps(WHEN).encode()]
    page = running.infer("homepage", inputs("homepage", member_id=[1010], context=context, page=[20, 50]))
    encoded = running.infer("foundation_model", inputs("foundation_model", member_id=[1010], context=context))
    vector, state = encoded["member_vector"][0], encoded["row_state"][0]
    found = running.infer(
        "candidate_retrieval", inputs("candidate_retrieval", member_vector=vector, member_id=[1010], k=[1000])
    )
    ids = found["title_ids"][0]
    ranked = running.infer(
        "candidate_scoring", inputs("candidate_scoring", member_vector=vector, title_ids=ids, k=[len(ids)])
    )
    assert (np.diff(ranked["scores"][0]) <= 0).all()
    scores = dict(zip(ranked["title_ids"][0].tolist(), ranked["scores"][0].tolist(), strict=True))
    there = page["title_ids"][0] >= 0
    expected = [scores[t] for t in page["title_ids"][0][there].tolist()]
    np.testing.assert_allclose(page["title_scores"][0][there], expected, rtol=1e-5, atol=1e-6)
    rows = running.infer("row_ranking", inputs("row_ranking", row_state=state, row_ids=page["row_ids"][0]))
    alone, first = rows["scores"][0, 0], page["title_scores"][0, 0]
    expected = first_row_score(running.engine.store, alone, first, ranked["scores"][0])
    assert page["row_scores"][0, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "arrays", "says"),
    [
        ("foundation_model", {"member_id": [-1], "events": [b"{"]}, "event 0 is not JSON"),
        (
            "candidate_retrieval",
            {"member_vector": [1.0, 2.0], "member_id": [1], "k": [5]},
            "member_vector has 2 values",
        ),
        ("candidate_retrieval", {"member_vector": [1.0] * 64, "member_id": [1], "k": [0]}, "k is 0"),
        ("candidate_scoring", {"member_vector": [np.nan] * 64, "title_ids": [501], "k": [1]}, "not finite"),
        ("row_ranking", {"row_state": [1.0] * 32, "row_ids": [1, 4040]}, "4040"),
        ("catalogue", {"title_offset": [-3]}, "title_offset is -3"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_stage_refuses_what_does_not_fit(running: Running, model: str, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(grpc.InferenceServerException, match=says) as refused:
        running.infer(model, inputs(model, **arrays))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


# --- Load ---


def test_mixed_requests_share_executes(running: Running) -> None:
    """16 threads, all surfaces, histories of 0 to 60 events, stored and anonymous members, with and without context and
    exclusions.
    What waits while a batch is computed shares the next, whatever inputs and lengths it has."""
    events = [{"timestamp": 1_600_000_000 + i, "what": {"entity_id": 500 + i % 60}} for i in range(60)]
    rng = np.random.default_rng(5)
    kinds = [(None if rng.random() < 0.5 else 1000 + int(rng.integers(60)), int(rng.integers(61))) for _ in range(480)]

    def ask(i: int) -> bool:
        member, length = kinds[i]
        if i % 4 == 3:
            return len(running.client.search(f"title {i % 12}", member, events=events[:length]).titles) > 0
        if i % 8 == 6:
            return len(running.client.more_like_this(500 + i % 120, member).titles) == 20
        page = running.client.homepage(
            member, events=events[:length], context=WHEN if i % 3 else None, exclude=[501] if i % 2 else (),
            rows=5 + i % 5,
        )  # fmt: skip
        return 5 <= len(page.rows) <= 5 + i % 5

    before = counted(running)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(len(kinds))))
    assert eventually(lambda: counted(running)["pages"] == before["pages"] + len(kinds))
    mean = len(kinds) / (counted(running)["batches"] - before["batches"])
    print(f"mean batch of mixed requests, 16 threads: {mean:.2f}")
    assert mean > 1.5


def test_more_than_it_can_answer_is_refused_and_the_background_comes_last(running: Running) -> None:
    """180 at once, more than may wait."""
    url, events = f"127.0.0.1:{running.server.grpc_port}", public_events(running.engine.store.bundle, 1020)
    done: list[tuple[bool, str]] = []

    async def ask(client: AsyncHomepageClient, background: bool) -> None:
        try:
            await client.homepage(events=events, rows=100, titles=100)
            done.append((background, "page"))
        except Overloaded as error:
            done.append((background, str(error)))

    async def all_at_once() -> None:
        async with (
            AsyncHomepageClient(url, timeout_s=20) as client,
            AsyncHomepageClient(url, timeout_s=20, background=True) as background,
        ):
            await client.catalogue()
            await background.catalogue()
            first, last = ([ask(client, False) for _ in range(60)] for _ in range(2))
            await asyncio.gather(*first, *(ask(background, True) for _ in range(60)), *last)

    before = counted(running)
    asyncio.run(all_at_once())
    refused = [words for _, words in done if words != "page"]
    assert 0 < len(refused) <= 180 - 16
    assert re.match(
        rf"{url} has more requests .* than it can answer: .*maximum queue size: \d+ pages come first", refused[0]
    )
    pages = [sum(words == "page" for of, words in done if of == background) for background in (False, True)]
    assert pages[0] / 120 > pages[1] / 60
    assert eventually(lambda: counted(running)["overloaded"] == before["overloaded"] + len(refused))


def test_one_page_at_a_time_takes_25_ms_at_most(running: Running) -> None:
    events = [{"timestamp": 1_700_000_000 + 60 * i, "what": {"entity_id": 500 + i % 90}, "where": {"device": "TV"}}
              for i in range(200)]  # fmt: skip
    times = []
    for _ in range(100):
        started = time.perf_counter()
        running.client.homepage(events=events, context=WHEN)
        times.append((time.perf_counter() - started) * 1000)
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    print(f"homepage over gRPC, 200 events, concurrency 1: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    assert p50 <= 25


# --- Operation ---


def counted(running: Running) -> dict[str, float]:
    """frontrow_homepage_total, of all that was answered: counts follow soon after."""
    time.sleep(2 * EVERY_SECONDS)
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
    start = 'frontrow_homepage_total{what="'
    return {line[len(start) :].split('"')[0]: float(line.split()[-1]) for line in lines if line.startswith(start)}


def test_metrics_count_pages_refusals_and_fallbacks(running: Running) -> None:
    before = counted(running)
    running.client.homepage(999_999)
    with pytest.raises(InvalidRequest):
        running.client.homepage(1001, context={"colour": "red"})
    assert eventually(lambda: counted(running)["refused"] > before["refused"])
    after = counted(running)
    for name, more in (("pages", 1), ("refused", 1), ("fallback_unknown_member", 1), ("fallback_unknown_titles", 0)):
        assert after.get(name, 0) - before.get(name, 0) == more, name


def test_alerts_and_dashboard_ask_for_metrics_that_are_there_from_the_start(running: Running) -> None:
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    metrics = urllib.request.urlopen(url, timeout=10).read().decode()
    missing = {s for _, s in selectors() if not s.startswith("frontrow:") and not selects_something(s, metrics)}
    if not has_nvidia_gpu():  # then Triton Server has no metrics of GPUs; their names are those of its documentation
        assert {s.split("{")[0] for s in missing} == {"nv_gpu_utilization", "nv_gpu_memory_used_bytes"}
    else:
        assert not missing


def test_models_are_loaded_and_unloaded_only_by_who_holds_the_key(running: Running) -> None:
    key = {f"triton-grpc-protocol-{CONTROL_HEADER}": running.server.control_key}
    wrong = {f"triton-grpc-protocol-{CONTROL_HEADER}": "guess"}
    for headers in (None, wrong):
        for change in (running.raw.load_model, running.raw.unload_model):
            with pytest.raises(grpc.InferenceServerException, match="restricted"):
                change("row_ranking", headers=headers)
    assert running.raw.is_model_ready("row_ranking")
    running.raw.unload_model("row_ranking", headers=key)
    running.raw.load_model("row_ranking", headers=key)
    assert running.raw.is_model_ready("row_ranking", str(running.engine.store.version))
