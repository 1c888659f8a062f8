"""Retrieval peers: what is searched, how recall is counted, and that a stopped run goes on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.benchmarks import retrieval_peers
from frontrow.benchmarks.retrieval_peers import (
    QUERIES,
    Case,
    build,
    cases,
    clustered,
    fastest,
    grown,
    nearest,
    plot,
    recall,
)


def test_vectors_are_clustered_unequal_and_of_the_seed() -> None:
    titles, members = clustered(3000, 16)
    assert (titles.shape, members.shape) == ((3000, 16), (QUERIES, 16))
    np.testing.assert_array_equal(titles, clustered(3000, 16)[0])
    lengths = np.linalg.norm(titles, axis=1)
    assert np.percentile(lengths, 99) > 2 * np.percentile(lengths, 5)
    spread = titles.std(0)
    assert spread[0] > 2 * spread[-1]
    unit = titles / lengths[:, None]
    noise = np.random.default_rng(1).standard_normal((3000, 16)) * spread
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    near, chance = (np.sort(of[:200] @ of.T, axis=1)[:, -10:].mean() for of in (unit, noise))
    assert near > chance  # titles have company


def test_grown_titles_stay_where_titles_are() -> None:
    titles, _ = clustered(300, 16)
    many = grown(titles, 1000)
    assert many.shape == (1000, 16)
    assert many.dtype == np.float32
    to_nearest = np.linalg.norm(many[:, None] - titles[None], axis=2).min(1)
    apart = np.linalg.norm(titles[:, None] - titles[None], axis=2).mean()
    assert to_nearest.mean() < 0.7 * apart


def test_recall_counts_the_true_ones_among_as_many() -> None:
    truth = np.array([[3, 1, 2, 0], [7, 6, 5, 4]])
    assert recall(truth, truth, 2) == 1.0
    assert recall(np.array([[1, 9, 3, 2], [6, 7, 4, 5]]), truth, 2) == 0.75
    assert recall(np.array([[1, 3, -1, -1], [4, 5, 6, 7]]), truth, 100) == 0.75


GRAPHS = [c for c in cases(100_000, 16) if "HNSW" in c.family or "links" in c.family]


@pytest.mark.parametrize("case", [*cases(3000, 16), *GRAPHS], ids=lambda c: c.family)
def test_each_index_finds_the_nearest(case: Case) -> None:
    if (package := case.family.split(",")[0].split()[0]) in ("hnswlib", "usearch"):
        pytest.importorskip(package, reason="pip install '.[bench]'")
    titles, queries = clustered(3000, 16)
    truth = nearest(titles, queries, 100)
    built = build(case, titles, 100)
    # Graphs lose titles of short vectors, which are among nobody's neighbours by inner product.
    least = 0.8 if case in GRAPHS else 0.9 if "bfloat16" in case.settings else 0.97
    for setting in case.settings:
        assert recall(built.search(setting)(queries[:40]), truth[:40], 100) > least
    assert built.megabytes > 0


def test_large_sets_have_graphs_lists_and_codes_that_faiss_can_make() -> None:
    factories = [c.factory for c in cases(100_000, 64) if c.factory]
    assert {"Flat", "HNSW16", "HNSW32", "IVF1024,PQ32x4fs,RFlat"} <= set(factories)
    for factory in factories:
        retrieval_peers.faiss.index_factory(64, factory, retrieval_peers.faiss.METRIC_INNER_PRODUCT)
    assert "IVF2048,Flat" in [c.factory for c in cases(1_000_000, 64)]


def test_a_stopped_run_goes_on_and_the_fastest_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[int] = []
    monkeypatch.setattr(retrieval_peers, "write_result", lambda name, content: written.append(len(content["cases"])))
    two = [Case("faiss Flat", "Flat", ("", "blas")), Case("faiss SQ8", "SQ8", ("",))]
    monkeypatch.setattr(retrieval_peers, "cases", lambda count, width: iter(two))
    titles, queries = clustered(700, 8)
    done: dict[str, Any] = {"cases": {}}
    retrieval_peers.measure("s", titles, queries, done, 0.01, "abc")
    assert written == [2, 3]
    assert sorted(done["cases"]) == ["s: faiss Flat", "s: faiss Flat blas", "s: faiss SQ8"]
    assert done["cases"]["s: faiss Flat"]["recall@400"] == 1.0
    del done["cases"]["s: faiss SQ8"]
    kept = json.dumps(done["cases"]["s: faiss Flat"])
    retrieval_peers.measure("s", titles, queries, done, 0.01, "later")
    assert json.dumps(done["cases"]["s: faiss Flat"]) == kept
    assert done["cases"]["s: faiss SQ8"]["commit"] == "later"
    plot(list(done["cases"].values()), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_the_fastest_of_those_that_miss_little() -> None:
    def record(index: str, found: float, qps: float, factory: str | None) -> dict[str, Any]:
        one = {"qps": qps, "ms": 1000 / qps}
        return {"set": "s", "index": index, "setting": "", "recall@400": found, "one": one, "factory": factory}

    lines = fastest([record("Flat", 1, 10, "Flat"), record("HNSW", 0.96, 50, "HNSW"), record("other", 0.97, 90, None)])
    by = {line["recall_at_least"]: line for line in lines}
    assert (by[0.95]["any"], by[0.95]["faiss"]) == ("other", "HNSW")
    assert by[0.99]["any"] == by[0.99]["faiss"] == "Flat"


def test_without_the_peers_packages_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("faiss")
    monkeypatch.setitem(retrieval_peers.sys.modules, "hnswlib", None)
    monkeypatch.setattr(retrieval_peers, "write_result", lambda name, content: None)
    both = [Case("hnswlib, 16 links", None, (600,), (16, 40)), Case("faiss Flat", "Flat", ("",))]
    monkeypatch.setattr(retrieval_peers, "cases", lambda count, width: iter(both))
    done: dict[str, Any] = {"cases": {}}
    retrieval_peers.measure("s", *clustered(700, 8), done, 0.01, "abc")
    assert list(done["cases"]) == ["s: faiss Flat"]
