"""What a GPU replays: batches of any size get what they get without graphs, and nothing of the batch before.

Without a GPU the same code calls the functions in place of replaying them, on the same fixed inputs and outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frontrow.foundation import embedding
from frontrow.foundation.bundle import Bundle, load_bundle
from frontrow.foundation.embedding import EventEmbedding
from frontrow.foundation.schema import Field
from frontrow.foundation.transformer import FixedRagged, Transformer
from frontrow.kernels.candidate_scoring import candidate_scoring_triton
from frontrow.kernels.event_embedding import event_embedding
from frontrow.kernels.field_groups import aligned, padded_weight
from frontrow.serving import graphs as graphs_module
from frontrow.serving import homepage
from frontrow.serving.graphs import CANDIDATES, MEMBERS, Graphs, Input, Recorded
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.requests import PageRequest
from frontrow.serving.store import Store
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode

NOW = 1_720_000_000.0
ON_GPU = torch.cuda.is_available()


def with_index(path: Path, index: str) -> Bundle:
    bundle = load_bundle(path)
    return dataclasses.replace(bundle, manifest={**bundle.manifest, "index": index})


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Store:
    """The bundle as a CPU serves it."""
    return Store(with_index(tiny_bundle, "Flat"), torch.device("cpu"))


@pytest.fixture(scope="module")
def store(tiny_bundle: Path) -> Iterator[Store]:
    """The bundle as a GPU serves it, or a CPU by the same code. Of fewer shapes, which take less time to record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs_module, "MEMBERS", (1, 2, 8))
        patch.setattr(graphs_module, "HISTORY", (4, 8))
        store = Store(with_index(tiny_bundle, "Flat"))
        store.graphs = store.graphs or Graphs(store)
        yield store


def histories(store: Store, *lengths: int) -> list[np.ndarray]:
    tokens = store.bundle.histories.ids
    starts = np.cumsum([0, *lengths]) * 7 % (len(tokens) - 40)
    return [tokens[s : s + n] for s, n in zip(starts, lengths, strict=False)]


def encoded(store: Store, of: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        offsets = torch.tensor([0, *(len(h) for h in of)]).cumsum(0)
        return store.model.encode(torch.from_numpy(np.concatenate(of)), offsets)


def assert_same(found: Any, wanted: Any) -> None:
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.as_tensor(f).cpu(), torch.as_tensor(w), rtol=1e-5, atol=1e-5)


# --- Histories ---


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tokens", [17, 40])
def test_a_fixed_shape_changes_nothing(layers: int, tokens: int) -> None:
    transformer = Transformer(16, layers, 2, dropout=0.0).eval()
    x = torch.randn(tokens, 16)
    offsets = torch.tensor([0, 4, 5, 14, 16])
    wanted = transformer.last(x[:16], offsets, 1)
    for empty in (0, 3):
        filled = torch.cat([offsets, offsets[-1:].expand(empty)])
        found = transformer.last(x, FixedRagged(filled, tokens, longest=11), 1)
        assert all(f.isfinite().all() for f in found)
        assert_same([f[:4] for f in found], wanted)


@pytest.mark.parametrize("lengths", [[1], [17], [1, 1], [17, 1, 5], [3, 17, 17, 1, 9], [17] * 8, [2] * 8, [5] * 21],
                         ids=str)  # fmt: skip
def test_members_are_encoded_as_without_graphs(store: Store, plain: Store, lengths: list[int]) -> None:
    of = histories(store, *lengths)
    assert store.graphs is not None
    assert_same(store.graphs.encode(of) or (), encoded(plain, of))


def test_a_batch_leaves_nothing_to_the_next(store: Store, plain: Store) -> None:
    graphs = store.graphs
    assert graphs is not None
    before = graphs.encode(histories(store, *[17] * 8))
    kept = [part.clone() for part in before or ()]
    small = histories(store, 2, 1, 3)  # of the same eight places
    assert_same(graphs.encode(small) or (), encoded(plain, small))
    assert_same(before or (), [k.cpu() for k in kept])  # nor is an answer overwritten that somebody still has
    many, few = np.random.default_rng(0).integers(0, 100, (8, 200)), np.array([[3, 9], [4, -1], [5, 5]])
    vectors = torch.randn(8, store.vectors.shape[1], device=store.device)
    found = graphs.score(vectors, many)
    kept_order = found[0].copy() if found else None
    order, _ = graphs.score(vectors[:3], few) or ()
    assert [set(row[row >= 0].tolist()) for row in order] == [{3, 9}, {4}, {5}]
    assert found is not None
    np.testing.assert_array_equal(found[0], kept_order)


def test_a_history_longer_than_the_model_reads_has_no_graph(store: Store) -> None:
    """It is encoded as ever; and so is nobody at all."""
    longest = store.model.config.max_events + 1
    of = histories(store, 3, longest + 1)
    assert store.graphs is not None
    assert store.graphs.encode(histories(store, longest)) is not None
    assert store.graphs.encode(of) is None
    assert store.graphs.encode([]) is None


def test_the_smallest_graph_that_holds_a_batch_is_taken() -> None:
    shapes = [(1, 4), (1, 9), (2, 8), (2, 18)]
    buckets = [[Input((t,), torch.int32), Input((b,), torch.int64)] for b, t in shapes]
    recorded = Recorded(lambda t, n: (n + t.sum(),), buckets, torch.device("cpu"), None)
    for members, tokens, wanted in [(1, 1, 0), (1, 4, 0), (1, 5, 1), (2, 2, 2), (2, 8, 2), (2, 9, 3)]:
        values = np.ones(tokens, np.int32), np.zeros(members, np.int64)
        assert recorded.smallest(values) is recorded.graphs[wanted]
        assert recorded.down(*values)[0].tolist() == [tokens] * members


# --- Titles ---


@pytest.mark.parametrize("members", [1, 3, 8, 11])
def test_titles_are_found_and_scored_as_without_graphs(store: Store, plain: Store, members: int) -> None:
    draw, graphs = np.random.default_rng(members), store.graphs
    assert graphs is not None
    vectors = draw.normal(size=(members, store.vectors.shape[1])).astype(np.float32)
    excluded = [draw.random(store.title_count) < 0.3 for _ in range(members)]
    for near, of, out in zip(graphs.nearest(vectors, excluded), plain.nearest(vectors, 120), excluded, strict=True):
        assert near[near >= 0].tolist() == [t for t in of.tolist() if not out[t]]
    titles = draw.integers(-1, store.title_count, (members, 40))
    found = graphs.score(torch.from_numpy(vectors).to(store.device), titles)
    assert found is not None
    order, scores = HomepageEngine(plain).score(torch.from_numpy(vectors), titles, 40)
    np.testing.assert_array_equal(found[0][:, :40], order)
    np.testing.assert_allclose(found[1][:, :40], scores, rtol=1e-5, atol=1e-5)
    assert (found[0][:, 40:] == -1).all()
    assert_same([graphs.products(vectors)], [plain.normaliser.products(torch.from_numpy(vectors))])


def test_an_index_that_does_not_look_at_all_titles_is_asked_itself(store: Store, tiny_bundle: Path) -> None:
    coarse = Store(with_index(tiny_bundle, "HNSW8"))
    coarse.graphs = coarse.graphs or Graphs(coarse)
    assert not coarse.graphs.finds(5)
    assert store.graphs is not None
    assert store.graphs.finds(5)
    assert coarse.nearest(np.zeros((1, store.vectors.shape[1]), np.float32), 5).shape == (1, 5)


# --- Pages ---


def test_pages_are_those_of_a_server_without_graphs(store: Store, plain: Store) -> None:
    events = [json.dumps({"timestamp": NOW - 50, "what": {"action_type": "play", "entity_id": 507}}).encode()]
    similar = json.dumps({"title_id": 503}).encode()
    requests = [
        PageRequest(1000, rows=8, titles=12), PageRequest(-1, events), PageRequest(1017, exclude=np.array([501, 502])),
        PageRequest(-1), PageRequest(1003, context=similar, surface="more_like_this"), PageRequest(1004),
        PageRequest(-1, context=similar, surface="more_like_this"),
    ]  # fmt: skip
    for some in (requests, requests[:1], requests[4:5], [*requests, *requests]):
        found, wanted = (HomepageEngine(s).pages(some, NOW) for s in (store, plain))
        for f, w in zip(found, wanted, strict=True):
            assert isinstance(f, Page), f
            assert isinstance(w, Page), w
            np.testing.assert_array_equal(f.row_ids, w.row_ids)
            np.testing.assert_array_equal(f.title_ids, w.title_ids)
            np.testing.assert_array_equal(f.sources, w.sources)
            np.testing.assert_allclose(f.title_scores, w.title_scores, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(f.row_scores, w.row_scores, rtol=1e-4)


def test_stages_alone_are_those_of_a_server_without_graphs(store: Store, plain: Store) -> None:
    vector = store.bundle.vectors[3].numpy()
    state = np.linspace(-1, 1, store.model.config.d_model, dtype=np.float32)
    engine, other = HomepageEngine(store), HomepageEngine(plain)
    calls: list[Callable[[HomepageEngine], Any]] = [
        lambda e: e.candidates(vector, 1000, 30, np.empty(0, np.int64)),
        lambda e: e.score_titles(vector, np.array([507, 501, 4, 510]), 2),
        lambda e: e.score_titles(vector, np.empty(0, np.int64), 3),
        lambda e: (e.row_probabilities(state, store.rows.ids),),
    ]
    for call in calls:
        assert_same(call(engine), call(other))


# --- Kernels ---


def test_what_no_graph_scores_needs_no_other_kernel(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than the widest graph takes are scored without one, by kernels that graphs have compiled."""
    pytest.importorskip("triton", reason="the kernels need Triton")
    variants: set[Any] = set()

    class Noted:
        def __getitem__(self, _grid: Any) -> Callable[..., None]:
            def launch(*args: Any, **constants: Any) -> None:
                kinds = [a.dtype if isinstance(a, torch.Tensor) else a is None for a in args]
                variants.add((*kinds, *constants.items()))

            return launch

    for op, kernels in {"candidate_scoring": ["_score_tile"], "top_keys": ["_best_of_tile", "_best_of_row"]}.items():
        for kernel in kernels:
            monkeypatch.setattr(sys.modules[f"frontrow.kernels.{op}"], kernel, Noted())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # it does not know such tensors
    titles = torch.empty(100_000, 64, device="meta")

    def launched(members: int, width: int) -> set[Any]:
        variants.clear()
        vectors = torch.empty(members, 64, device="meta")
        candidates = torch.empty(members, width, dtype=torch.int64, device="meta")
        candidate_scoring_triton(vectors, titles, candidates, width, width)
        return set(variants)

    recorded = set().union(*(launched(members, width) for members in MEMBERS for width in CANDIDATES))
    for members, width in [(1, 2049), (64, 5000), (13, 4097), (1, 100_000)]:
        assert launched(members, width) <= recorded
    engine, seen = HomepageEngine(store), []
    monkeypatch.setattr(homepage, "candidate_scoring", lambda *of: seen.append(of[2].dtype) or of[2:0:-1])
    engine.score(store.vectors[:2], np.zeros((2, 2049), np.int64), 7)
    assert seen == [torch.int64]


def test_what_is_recorded_reads_no_value_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of it would fail. On tensors without values whatever asks for one does."""
    if store.device.type == "cuda":
        return  # it was recorded
    graphs, mode = store.graphs, FakeTensorMode()
    assert graphs is not None
    with FakeCopyMode(mode):
        for name in ("model", "row_ranker"):
            monkeypatch.setattr(store, name, copy.deepcopy(getattr(store, name)))
    store.model.events.folded = None
    for name in ("vectors", "row_vectors", "row_biases"):
        monkeypatch.setattr(store, name, mode.from_tensor(getattr(store, name)))
    monkeypatch.setattr(store.normaliser, "sampled", mode.from_tensor(store.normaliser.sampled))
    every = [recorded for recorded in vars(graphs).values() if isinstance(recorded, Recorded)]
    assert len(every) == 5
    with mode, torch.inference_mode():
        for graph in (graph for recorded in every for graph in recorded.graphs):
            graph.function(*(torch.empty(i.shape, dtype=i.dtype) for i in graph.inputs))
        with pytest.raises(DataDependentOutputException):  # else this test is blind
            store.model.encode(torch.empty(9, store.schema.width, dtype=torch.int32), torch.empty(3, dtype=torch.int64))


def test_tables_of_any_width_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording keeps their addresses, so they must not be copied in each call."""
    title = Field("title", "what.entity_id", "id", "action", 12)
    genre = Field("genre", "title.genres", "categories", "action", 5, slots=3)
    events = EventEmbedding([title, genre], {"title": (0, 1), "genre": (1, 4)}, {"title": 9, "genre": 7}, 16).eval()
    ids = torch.tensor([[3, 2, 0, 1], [0, 0, 0, 0]], dtype=torch.int32)
    wanted = events(ids)
    events.lay_out()
    given = []
    monkeypatch.setattr(embedding, "event_embedding", lambda *of: given.append(of) or event_embedding(*of))
    torch.testing.assert_close(events(ids), wanted)
    _, tables, _, weight, _ = given[0]
    assert all(aligned(table).data_ptr() == table.data_ptr() for table in tables)
    assert weight.shape == (16, 24)
    assert padded_weight(weight, tables).data_ptr() == weight.data_ptr()


@pytest.mark.skipif(not ON_GPU, reason="compiles for the GPU that is there")
def test_nothing_is_compiled_once_a_store_is_open(tiny_bundle: Path) -> None:
    import triton

    engine, compiled = HomepageEngine(Store.open(tiny_bundle)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda *_, **of: compiled.append(of))
        for count in (1, 3, 17, 64, 70):
            members = np.resize(engine.store.bundle.member_ids, count).tolist()
            assert all(
                isinstance(p, Page) for p in engine.pages([PageRequest(m, exclude=np.array([count])) for m in members])
            )
    assert not compiled
