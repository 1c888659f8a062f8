"""The adapters in model_repository/: Triton Server's requests in, one response each, and configs that say the truth."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_triton import MODELS, InferenceResponse, InProcessTransport, TritonError, execute, load_model, request
from frontrow.clients import HomepageClient, InvalidRequest
from frontrow.foundation.bundle import BundleError
from frontrow.foundation.schema import SOURCES, WIRE, Tensor
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store
from frontrow.serving.triton_model import device_of
from server_process import eventually
from wire_cases import BAD_REQUESTS, NUMPY, Bad, first_row_score, inputs, public_events, texts

CONTEXT = b'{"timestamp": 1720000000}'


def asking(**question: Any) -> bytes:
    """The same context with the question of a surface."""
    return json.dumps({**json.loads(CONTEXT), **question}).encode()


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> HomepageEngine:
    return HomepageEngine(Store.open(tiny_bundle))


@pytest.fixture(scope="module")
def homepage(tiny_bundle: Path) -> Any:
    return load_model("homepage", tiny_bundle)


@pytest.fixture(scope="module")
def foundation_model(tiny_bundle: Path) -> Any:
    return load_model("foundation_model", tiny_bundle)


@pytest.mark.parametrize(
    ("kind", "cuda", "device"), [("CPU", True, "cpu"), ("GPU", True, "cuda:3"), ("GPU", False, "cpu")]
)
def test_an_instance_computes_where_triton_server_puts_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, cuda: bool, device: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert str(device_of({"model_instance_kind": kind, "model_instance_device_id": "3"})) == device


def answer(model: Any, **arrays: np.ndarray) -> InferenceResponse:
    (response,) = execute(model, [request(arrays)])
    return response


def assert_is_page(response: InferenceResponse, page: Any, row: int = 0) -> None:
    assert isinstance(page, Page), page
    rows = len(page.row_ids)
    np.testing.assert_array_equal(response.value("row_ids")[row, :rows], page.row_ids)
    np.testing.assert_allclose(response.value("row_scores")[row, :rows], page.row_scores, rtol=1e-5)
    np.testing.assert_array_equal(response.value("title_ids")[row, :rows], page.title_ids)
    np.testing.assert_allclose(response.value("title_scores")[row, :rows], page.title_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(response.value("sources")[row, :rows], page.sources)
    assert (response.value("row_ids")[row, rows:] == -1).all(), "shorter pages of a client batch end in −1"
    assert (response.value("title_ids")[row, rows:] == -1).all()


# --- Adapters and configs ---


@pytest.mark.parametrize("model", sorted(WIRE))
def test_an_adapter_is_small_and_each_config_agrees_with_the_wire_contract(model: str) -> None:
    assert len((MODELS / model / "1" / "model.py").read_text().splitlines()) < 80
    text = re.sub(r"#.*", "", (MODELS / model / "config.pbtxt").read_text())
    assert f'name: "{model}"' in text
    assert 'backend: "python"' in text
    assert int(re.search(r"max_batch_size: (\d+)", text)[1]) > 1  # type: ignore[index]
    assert model == "catalogue" or re.search(r"^dynamic_batching", text, re.MULTILINE)
    for side, tensors in zip(("input", "output"), WIRE[model], strict=True):
        block = re.search(rf"^{side} \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        found = [_tensor(entry) for entry in re.findall(r"\{(.*?)\}", block[1])]
        assert [f[0] for f in found] == list(tensors), side
        for tensor, ragged in found:
            if side == "input":
                assert ragged == (-1 in tensor.dims), f"{tensor.name}: without it, unequal lengths never share a batch"


def _tensor(entry: str) -> tuple[Tensor, bool]:
    """A tensor of a config, and whether it may be ragged."""
    value = dict(re.findall(r"(\w+): (\[[^]]*\]|\"\w+\"|\w+)", entry))
    dtype = value["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES")
    dims = tuple(json.loads(value["dims"]))
    optional, ragged = (value.get(k) == "true" for k in ("optional", "allow_ragged_batch"))
    return Tensor(value["name"].strip('"'), dtype, dims, optional), ragged  # type: ignore[arg-type]


def test_every_model_of_the_repository_is_in_the_contract() -> None:
    assert sorted(path.parent.name for path in MODELS.glob("*/config.pbtxt")) == sorted(WIRE)


def test_a_damaged_bundle_keeps_a_model_from_loading(tmp_path: Path) -> None:
    for model in WIRE:
        with pytest.raises(BundleError, match=re.escape(str(tmp_path))):
            load_model(model, tmp_path)


# --- The served path without a server ---


def test_the_client_gets_the_engines_page_through_the_adapter(tiny_bundle: Path, engine: HomepageEngine) -> None:
    stored = public_events(engine.store.bundle, 1005)
    context = {"timestamp": 1_720_000_000, "device": "TV"}
    with HomepageClient(transport=InProcessTransport(tiny_bundle)) as client:
        for member, events in ((1005, []), (None, stored), (1005, stored[:3]), (7, [])):
            found = client.homepage(member, events=events, context=context, rows=7, titles=6, exclude=[501])
            request_ = PageRequest(
                -1 if member is None else member, texts(events), json.dumps(context).encode(), 7, 6, np.array([501])
            )
            (page,) = engine.pages([request_])
            assert isinstance(page, Page)
            assert [row.row_id for row in found.rows] == page.row_ids.tolist()
            for row, ids, scores, sources in zip(
                found.rows, page.title_ids, page.title_scores, page.sources, strict=True
            ):
                count = int((ids >= 0).sum())
                assert [t.title_id for t in row.titles] == ids[:count].tolist()
                assert [t.name for t in row.titles] == [f"Title {i - 500}" for i in ids[:count]]
                np.testing.assert_allclose([t.score for t in row.titles], scores[:count], rtol=1e-5)
                assert [t.source for t in row.titles] == [SOURCES[s] for s in sources[:count]]
                assert "{" not in row.label
            assert found.fallback == page.info["fallback"]
            assert found.bundle_version == engine.store.version
        with pytest.raises(InvalidRequest, match=r"context has \['colour'\]"):
            client.homepage(1005, context={"colour": "red"})


# --- Batches ---


def test_requests_of_different_lengths_share_one_execute(homepage: Any, engine: HomepageEngine) -> None:
    stored = public_events(engine.store.bundle, 1009)
    sent: list[dict[str, Any]] = [
        {"member_id": [1001], "context": [CONTEXT]},
        {"member_id": [-1], "context": [CONTEXT], "events": texts(stored)},
        {"member_id": [-1], "context": [CONTEXT], "events": texts(stored[:2]), "page": [3, 20]},
        {"member_id": [1002], "context": [CONTEXT], "exclude": [503, 504], "surface": [b"homepage"]},
        {"member_id": [1003], "context": [asking(query="title 4")], "surface": [b"search"]},
        {"member_id": [1004], "context": [asking(title_id=570)], "page": [1, 30], "surface": [b"more_like_this"]},
    ]
    before = homepage.engine.counters["pages"]
    responses = execute(homepage, [request(inputs("homepage", **values)) for values in sent])
    assert homepage.engine.counters["pages"] == before + 6
    expected = engine.pages([
        PageRequest(1001, context=CONTEXT),
        PageRequest(-1, texts(stored), CONTEXT),
        PageRequest(-1, texts(stored[:2]), CONTEXT, 3, 20),
        PageRequest(1002, (), CONTEXT, exclude=np.array([503, 504])),
        PageRequest(1003, (), asking(query="title 4"), surface="search"),
        PageRequest(1004, (), asking(title_id=570), 1, 30, surface="more_like_this"),
    ])  # fmt: skip
    for response, page in zip(responses, expected, strict=True):
        assert_is_page(response, page)


def test_a_request_may_leave_optional_inputs_out(homepage: Any, engine: HomepageEngine) -> None:
    response = answer(homepage, member_id=np.array([[1003]]), context=np.array([[CONTEXT]], object))
    assert_is_page(response, engine.pages([PageRequest(1003, context=CONTEXT)])[0])


@pytest.mark.parametrize("size", [2, 3])
def test_a_client_batch_pads_shorter_histories_with_empty_texts(
    homepage: Any, engine: HomepageEngine, size: int
) -> None:
    stored = public_events(engine.store.bundle, 1009)
    histories = [texts(stored[:n]) for n in (12, 0, 5)][:size]
    events = np.array([h + [b""] * (12 - len(h)) for h in histories], np.object_)
    context = np.array([[CONTEXT]] * size, np.object_)
    response = answer(homepage, member_id=np.full((size, 1), -1), events=events, context=context)
    assert response.value("info").shape == (size, 1)
    for row, page in enumerate(engine.pages([PageRequest(-1, h, CONTEXT) for h in histories])):
        assert_is_page(response, page, row)
        info = json.loads(response.value("info")[row, 0])
        assert info["fallback"] == (None if histories[row] else "empty_history")


def test_a_client_batch_of_pages_of_different_sizes_is_padded(homepage: Any, engine: HomepageEngine) -> None:
    response = answer(
        homepage, member_id=np.array([[1001], [1002]]), page=np.array([[2, 4], [6, 9]], np.int32),
        context=np.array([[CONTEXT]] * 2, np.object_),
    )  # fmt: skip
    assert response.value("title_ids").shape == (2, 6, 9)
    small, large = engine.pages([PageRequest(1001, (), CONTEXT, 2, 4), PageRequest(1002, (), CONTEXT, 6, 9)])
    assert isinstance(small, Page)
    np.testing.assert_array_equal(response.value("title_ids")[0, :2, :4], small.title_ids)
    assert (response.value("title_ids")[0, :, 4:] == -1).all()
    assert_is_page(response, large, 1)


# --- Errors: one bad request, one error response ---


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_a_bad_request_among_good_ones_gets_the_only_error(homepage: Any, engine: HomepageEngine, bad: Bad) -> None:
    good = inputs("homepage", member_id=[1004], context=[CONTEXT])
    first, wrong, last = execute(homepage, [request(good), request(bad.inputs()), request(good)])
    assert wrong.error is not None
    assert wrong.error.code_ == TritonError.INVALID_ARG
    assert re.search(bad.says, wrong.error.message_)
    for response in (first, last):
        assert_is_page(response, engine.pages([PageRequest(1004, context=CONTEXT)])[0])


def test_a_bad_row_of_a_client_batch_refuses_that_request_and_no_other(homepage: Any) -> None:
    batch = request({"member_id": np.array([[1001], [-2]])})
    refused, good = execute(homepage, [batch, request(inputs("homepage", member_id=[1001]))])
    assert refused.error.code_ == TritonError.INVALID_ARG
    assert "row 1 of the batch: member_id is -2" in refused.error.message_
    assert good.error is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"events": np.empty((1, 0), object)}, "input 'member_id' is missing"),
        ({"member_id": np.array([[1], [2]]), "page": np.array([[1, 1]])}, "different batch sizes"),
        ({"member_id": np.array([[1]]), "page": np.array([[3]])}, "page has 1 values; give two"),
        ({"member_id": np.array([[1]]), "context": np.array([[b"{}", b"{}"]], object)}, "context has 2 values"),
        ({"member_id": np.array([[1]]), "surface": np.array([[b"a", b"b"]], object)}, "surface has 2 values"),
    ],
    ids=["no member", "batch sizes", "page", "contexts", "surfaces"],
)
def test_inputs_that_do_not_fit_together_are_refused(homepage: Any, arrays: dict[str, Any], words: str) -> None:
    response = answer(homepage, **arrays)
    assert response.error is not None
    assert response.error.code_ == TritonError.INVALID_ARG
    assert words in response.error.message_


@pytest.mark.parametrize("error", [RuntimeError("no such luck"), ValueError("operands"), KeyError("key")], ids=repr)
def test_an_exception_that_nobody_foresaw_breaks_only_its_own_row(
    tiny_bundle: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is the server's fault, not the caller's: INTERNAL, even for numpy's and torch's ValueErrors."""
    model = load_model("homepage", tiny_bundle)
    real = model.engine.encode

    def encode(prepared: Any) -> Any:
        if any(p.member.member_id == 1007 for p in prepared):
            raise error
        return real(prepared)

    monkeypatch.setattr(model.engine, "encode", encode)
    asked = [request(inputs("homepage", member_id=[m])) for m in (1006, 1007, 1008)]
    first, broken, last = execute(model, asked)
    assert broken.error.code_ == TritonError.INTERNAL
    assert type(error).__name__ in broken.error.message_
    assert first.error is last.error is None
    assert counted(model)["pages"] == 2
    assert counted(model)["failed"] == 1


def test_counters_reach_the_metrics_without_the_warm_up(tiny_bundle: Path) -> None:
    model = load_model("homepage", tiny_bundle)
    for asked, expected in (
        ([1001, 999_999], {"pages": 2, "fallback_unknown_member": 1}),
        ([-2], {"pages": 2, "fallback_unknown_member": 1, "refused": 1}),
        ([-1], {"pages": 3, "fallback_unknown_member": 1, "refused": 1, "fallback_empty_history": 1}),
    ):
        execute(model, [request(inputs("homepage", member_id=[m])) for m in asked])
        found = counted(model)
        assert {k: v for k, v in found.items() if v and k not in ("truncated", "batches")} == expected
    assert found["truncated"] > 0, "member 1001 did more than the tiny model reads"


def counted(model: Any) -> dict[str, float]:
    """The metrics, once those of the answers that were sent are there: they follow."""
    found = model.metrics._pages._family.values
    assert eventually(lambda: found["batches"] == model.engine.counters["batches"] > 0)
    return found


def test_metrics_tell_stage_times_and_the_age_of_the_bundle(tiny_bundle: Path) -> None:
    model = load_model("homepage", tiny_bundle)
    stages = model.metrics._stages._family
    assert stages.name == "frontrow_stage_seconds_total"
    assert set(stages.values.values()) == {0.0}, "the warm-up is nobody's page"
    for member in (1001, 1002):
        before = dict(stages.values)
        answer(model, **inputs("homepage", member_id=[member]))
        counted(model)
        assert all(stages.values[stage] > before[stage] for stage in stages.values)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    exported = datetime.fromisoformat(manifest["created"]).timestamp()
    assert model.metrics._bundle.values == {"1 export": exported, "1 newest_event": manifest["as_of"]}


# --- The stages, and the catalogue ---


def test_the_stages_put_together_by_hand_score_as_the_homepage_does(tiny_bundle: Path, homepage: Any) -> None:
    page = answer(homepage, **inputs("homepage", member_id=[1010], context=[CONTEXT], page=[20, 50]))
    stage = {name: load_model(name, tiny_bundle) for name in WIRE if name not in ("homepage", "catalogue")}
    encoded = answer(stage["foundation_model"], **inputs("foundation_model", member_id=[1010], context=[CONTEXT]))
    vector = encoded.value("member_vector")[0]
    found = answer(stage["candidate_retrieval"],
                   **inputs("candidate_retrieval", member_vector=vector, member_id=[1010], k=[1000]))  # fmt: skip
    ids = found.value("title_ids")[0]
    ranked = answer(stage["candidate_scoring"],
                    **inputs("candidate_scoring", member_vector=vector, title_ids=ids, k=[len(ids)]))  # fmt: skip
    scores = dict(zip(ranked.value("title_ids")[0].tolist(), ranked.value("scores")[0].tolist(), strict=True))
    shown = page.value("title_ids")[0]
    expected = [scores[t] for t in shown[shown >= 0].tolist()]
    np.testing.assert_allclose(page.value("title_scores")[0][shown >= 0], expected, rtol=1e-5, atol=1e-6)
    state, row_ids = encoded.value("row_state")[0], page.value("row_ids")[0]
    rows = answer(stage["row_ranking"], **inputs("row_ranking", row_state=state, row_ids=row_ids))
    alone, first = rows.value("scores")[0, 0], page.value("title_scores")[0, 0]
    expected = first_row_score(Store.open(tiny_bundle), alone, first, ranked.value("scores")[0])
    assert page.value("row_scores")[0, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "bad", [b for b in BAD_REQUESTS if (b.events or b.context) and not b.surface], ids=lambda bad: bad.name
)
def test_the_foundation_model_refuses_alone_and_in_company(foundation_model: Any, bad: Bad) -> None:
    wrong = request({k: v for k, v in bad.inputs().items() if k in ("member_id", "events", "context")})
    good = request(inputs("foundation_model", member_id=[1001]))
    for responses in (foundation_model.execute([wrong]), foundation_model.execute([good, wrong])):
        assert responses[-1].error.code_ == TritonError.INVALID_ARG
        assert re.search(bad.says, responses[-1].error.message_)
        assert all(r.error is None for r in responses[:-1])


def test_the_catalogue_names_every_title_once(tiny_bundle: Path, engine: HomepageEngine) -> None:
    model = load_model("catalogue", tiny_bundle)
    titles = engine.store.bundle.titles
    response = answer(model, title_offset=np.array([[100]]))
    assert response.value("title_ids")[0].tolist() == titles.ids[100:].tolist()
    assert [n.decode() for n in response.value("title_names")[0]] == titles.names[100:]
    assert answer(model, title_offset=np.array([[len(titles)]])).value("title_ids").shape == (1, 0)
    for offset in (-1, len(titles) + 1):
        refused = answer(model, title_offset=np.array([[offset]]))
        assert refused.error is not None
        assert refused.error.code_ == TritonError.INVALID_ARG
        assert f"title_offset is {offset}" in refused.error.message_


def test_outputs_have_the_dtypes_of_the_contract(homepage: Any) -> None:
    response = answer(homepage, **inputs("homepage", member_id=[1001]))
    for tensor, found in zip(WIRE["homepage"][1], response.output_tensors, strict=True):
        assert found.name() == tensor.name
        assert found.as_numpy().dtype == NUMPY[tensor.dtype]
        assert found.as_numpy().ndim == 1 + len(tensor.dims)
