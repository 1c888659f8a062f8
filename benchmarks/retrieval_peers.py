"""Which index finds a member's nearest titles fastest on one CPU core, and what does it miss? FAISS's, others, ours.

    python -m frontrow.benchmarks.retrieval_peers [--set 1e5x64 …] [--bundle BUNDLE] [--overwrite]
                                                                   → results/retrieval-cpu.json, .png

Vectors are drawn from a seed and clustered as embeddings are: titles around centres of unequal size, in few strong and
many weak directions, of lengths that fall by a power law; a member stands near a few centres. The set `demo` has the
title vectors of a bundle and the vectors of its members; in `grown` each title stands between one of these and one of
its ten nearest, 10⁵ in all. Nearest is by inner product. Each search asks for 600 titles:
what a page takes from the embedding, 400 of 1000 candidates, and 200 that the member has seen. Recall is the share of
the true 100 or 400 that are among as many first found.

A case is one index with one setting. Cases that the result file has are not measured again, so that a stopped run goes
on; every record names its commit. Needs `pip install '.[bench]'`.
Shape letters: N titles, Q queries, D vector width.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from ..foundation.bundle import newest_bundle
from ..kernels.catalogue_search import catalogue_search
from ..serving.homepage import HomepageEngine
from ..serving.requests import PageRequest, Prepared
from ..serving.store import Store
from .command import command
from .provenance import RESULTS, provenance, write_result

SETS = {"demo": None, "grown": None, "1e5x64": (100_000, 64), "1e5x128": (100_000, 128), "1e6x128": (1_000_000, 128)}
K, RECALL_AT, QUERIES, BATCH = 600, (100, 400), 256, 16
SECONDS = 0.6  # of searching for one figure
BOUNDS = (0.9, 0.95, 0.99, 0.9999)  # of recall@400
GROWN = 100_000
CENTRES, CLUSTER_SHARE = 500, 0.6
LARGE = 1_000_000  # from so many titles on
LISTS, LISTS_LARGE = 1024, 2048
GRAPH, GRAPH_LARGE = (32, 200), (16, 40)  # links and width in building of other libraries' graphs; large: in minutes
WIDTHS = (600, 1200)  # of a graph's search; FAISS takes at least K
Search = Callable[[np.ndarray], np.ndarray]  # float32 [Q, D] → indices int64 [Q, K], −1 past the end


@dataclass(frozen=True)
class Case:
    """An index before it is built, and how it is searched. family: what is built once for all its settings. factory:
    of FAISS, None for others. settings: as FAISS's ParameterSpace has them; numbers are a graph's width. graph: links
    of a title, and width in building."""

    family: str
    factory: str | None
    settings: Sequence[Any]
    graph: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Built:
    megabytes: float
    search: Callable[[Any], Search]  # of a setting


def cases(count: int, width: int) -> Iterator[Case]:
    """What is measured for so many titles, flat ones first, graphs last: they take longest to build."""
    yield Case("faiss Flat", "Flat", ("", "blas"))  # blas: matrix products from the first query on
    yield Case("ours, catalogue_search", None, ("float32", "bfloat16"))
    yield Case("usearch exact", None, ("",))
    yield Case("faiss SQbf16", "SQbf16", ("",))
    yield Case("faiss SQfp16", "SQfp16", ("",))
    yield Case("faiss SQfp16,RFlat", "SQfp16,RFlat", ("k_factor_rf=1.1",))
    yield Case("faiss SQ8", "SQ8", ("",))
    yield Case("faiss SQ8,RFlat", "SQ8,RFlat", ("k_factor_rf=2",))
    if count < 10_000:
        return
    scan = f"PQ{width // 2}x4fs"
    yield Case(f"faiss {scan},RFlat", f"{scan},RFlat", tuple(f"k_factor_rf={k}" for k in (2, 4, 8)))
    lists, graph = (LISTS, GRAPH) if count < LARGE else (LISTS_LARGE, GRAPH_LARGE)
    probes = (8, 32, 128, 256)
    yield Case(f"faiss IVF{lists},Flat", f"IVF{lists},Flat", tuple(f"nprobe={n}" for n in probes))
    yield Case(f"faiss IVF{lists},SQfp16", f"IVF{lists},SQfp16", tuple(f"nprobe={n}" for n in probes))
    yield Case(f"faiss IVF{lists},SQ8", f"IVF{lists},SQ8", tuple(f"nprobe={n}" for n in probes))
    both = tuple(f"nprobe={n},k_factor_rf={k}" for n in probes[1:] for k in (4, 8))
    yield Case(f"faiss IVF{lists},{scan},RFlat", f"IVF{lists},{scan},RFlat", both)
    for links in (16, 32):
        yield Case(f"faiss HNSW{links}", f"HNSW{links}", tuple(f"efSearch={w}" for w in WIDTHS))
    for library in ("hnswlib", "usearch"):
        yield Case(f"{library}, {graph[0]} links", None, WIDTHS, graph)


def clustered(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(titles float32 [N, D], members float32 [256, D])."""
    rng = np.random.default_rng(seed)
    strength = (1 + np.arange(width, dtype=np.float32)) ** -0.5
    centres = rng.standard_normal((CENTRES, width), np.float32) * strength
    share = 1 / np.arange(1, CENTRES + 1) ** CLUSTER_SHARE
    of_title = rng.choice(CENTRES, count, p=share / share.sum())
    titles = centres[of_title] + 0.7 * rng.standard_normal((count, width), np.float32) * strength
    lengths = (rng.permutation(count) + 50.0) ** -0.1  # popular titles have longer vectors
    titles *= (lengths / lengths.mean()).astype(np.float32)[:, None]
    near = centres[rng.choice(CENTRES, (QUERIES, 3), p=share / share.sum())]
    mixed = (rng.dirichlet(np.ones(3), QUERIES).astype(np.float32)[:, :, None] * near).sum(1)
    return titles, mixed + 0.4 * rng.standard_normal((QUERIES, width), np.float32) * strength


def of_bundle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(title vectors [N, D], vectors [Q, D] of up to 256 members) of a bundle."""
    engine = HomepageEngine(Store.open(path))
    members = engine.store.bundle.member_ids[:QUERIES].tolist()
    prepared = engine.prepare([PageRequest(m) for m in members], time.time())
    vectors, _ = engine.encode([p for p in prepared if isinstance(p, Prepared)])
    return engine.store.bundle.vectors.numpy(), vectors.numpy()


def grown(titles: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """float32 [count, D]: as many titles as that, each between a given one and one of its ten nearest."""
    rng = np.random.default_rng(seed)
    near = nearest(titles, titles, 11)  # it is often the nearest itself
    one = rng.integers(0, len(titles), count)
    other = near[one, rng.integers(0, 11, count)]
    part = rng.random((count, 1), np.float32)
    jitter = 0.2 * titles.std(0) * rng.standard_normal((count, titles.shape[1]), np.float32)
    return part * titles[one] + (1 - part) * titles[other] + jitter


def nearest(titles: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The true k nearest, int64 [Q, k]."""
    found, _ = catalogue_search(torch.from_numpy(queries), torch.from_numpy(titles), k)
    return found.numpy()


def build(case: Case, titles: np.ndarray, k: int) -> Built:
    if case.factory is not None:
        return _faiss(case.factory, titles, k)
    if case.family.startswith("ours"):
        return _ours(titles, k)
    return (_hnswlib if case.family.startswith("hnswlib") else _usearch)(titles, k, *case.graph)


def _faiss(factory: str, titles: np.ndarray, k: int) -> Built:
    index = faiss.index_factory(titles.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(titles)
    index.add(titles)

    def search(setting: str) -> Search:
        faiss.cvar.distance_compute_blas_threshold = 1 if setting == "blas" else 20  # 20 is FAISS's own
        if "=" in setting:
            faiss.ParameterSpace().set_index_parameters(index, setting)
        return lambda queries: index.search(queries, k)[1]

    return Built(faiss.serialize_index(index).nbytes / 1e6, search)


def _ours(titles: np.ndarray, k: int) -> Built:
    exact = torch.from_numpy(titles)

    def search(setting: str) -> Search:
        vectors = exact.to(getattr(torch, setting))
        return lambda queries: catalogue_search(torch.from_numpy(queries), vectors, k)[0].numpy()

    return Built(titles.nbytes / 1e6, search)


def _hnswlib(titles: np.ndarray, k: int, links: int, width: int) -> Built:
    import hnswlib  # pyright: ignore[reportMissingImports]

    index = hnswlib.Index(space="ip", dim=titles.shape[1])
    index.init_index(len(titles), ef_construction=width, M=links, random_seed=0)
    index.set_num_threads(1)
    index.add_items(titles, num_threads=1)

    def search(width: int) -> Search:
        index.set_ef(width)
        return lambda queries: index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)

    return Built(index.index_file_size() / 1e6, search)


def _usearch(titles: np.ndarray, k: int, links: int, width: int) -> Built:
    from usearch.compiled import MetricKind  # pyright: ignore[reportMissingImports]
    from usearch.index import Index, search  # pyright: ignore[reportMissingImports]

    if not links:

        def scan(queries: np.ndarray) -> np.ndarray:
            found = search(titles, queries, k, MetricKind.IP, exact=True, threads=1)
            return np.atleast_2d(found.keys).astype(np.int64)

        return Built(titles.nbytes / 1e6, lambda _: scan)
    index = Index(ndim=titles.shape[1], metric=MetricKind.IP, dtype="f32", connectivity=links, expansion_add=width)
    index.add(np.arange(len(titles)), titles, threads=1)

    def of(width: int) -> Search:
        index.expansion_search = width
        return lambda queries: np.atleast_2d(index.search(queries, k, threads=1).keys).astype(np.int64)

    return Built(index.serialized_length / 1e6, of)


def recall(found: np.ndarray, truth: np.ndarray, at: int) -> float:
    """Mean share of the true first `at` [Q, K] that are among as many first found [Q, K]."""
    at = min(at, truth.shape[1])
    hits = [len(np.intersect1d(f[:at], t[:at])) for f, t in zip(found, truth, strict=True)]
    return round(float(np.mean(hits)) / at, 4)


def timed(search: Search, queries: np.ndarray, batch: int, seconds: float) -> dict[str, float]:
    """Queries per second, and the median of milliseconds for one call of `batch` queries."""
    search(queries[:batch])
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 10 or time.perf_counter() < end:
        at = len(times) * batch % (len(queries) - batch + 1)
        started = time.perf_counter()
        search(queries[at : at + batch])
        times.append(time.perf_counter() - started)
    return {"qps": round(batch * len(times) / sum(times), 1), "ms": round(float(np.median(times)) * 1000, 4)}


def measure(
    name: str, titles: np.ndarray, queries: np.ndarray, done: dict[str, Any], seconds: float, commit: str
) -> None:
    """Adds a record for each case of a set to `done`, which is written after every index."""
    k = min(K, len(titles))
    truth = nearest(titles, queries, k)
    for case in cases(*titles.shape):
        left = [s for s in case.settings if f"{name}: {case.family} {s}".rstrip() not in done["cases"]]
        if not left:
            continue
        started = time.perf_counter()
        try:
            built = build(case, titles, k)
        except ImportError as error:
            print(f"{case.family}: {error}; pip install '.[bench]'", flush=True)
            continue
        took = round(time.perf_counter() - started, 2)
        for setting in left:
            search = built.search(setting)
            found = np.concatenate([search(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)])
            record = {
                "set": name,
                "index": case.family,
                "factory": case.factory,
                "setting": setting,
                **{f"recall@{at}": recall(found, truth, at) for at in RECALL_AT},
                "one": timed(search, queries, 1, seconds),
                f"batch_{BATCH}": timed(search, queries, BATCH, seconds),
                "build_seconds": took,
                "megabytes": round(built.megabytes, 1),
                "commit": commit,
            }
            done["cases"][f"{name}: {case.family} {setting}".rstrip()] = record
            print(json.dumps(record), flush=True)
        faiss.cvar.distance_compute_blas_threshold = 20
        done["fastest"] = fastest(list(done["cases"].values()))
        write_result("retrieval-cpu", done)


def fastest(
    records: Sequence[Mapping[str, Any]] | Any, least: Sequence[float] = (0.9, 0.95, 0.99, 0.9999)
) -> list[dict[str, Any]]:
    """For each set and least recall@400: what answers single queries fastest, of all and of what FAISS makes."""
    found = []
    for name in dict.fromkeys(r["set"] for r in records):
        for bound in BOUNDS:
            good = [r for r in records if r["set"] == name and r["recall@400"] >= bound]
            line: dict[str, Any] = {"set": name, "recall_at_least": bound}
            for who, of in (("any", good), ("faiss", [r for r in good if r["factory"]])):
                if of:
                    best = max(of, key=lambda r: r["one"]["qps"])
                    line[who] = f"{best['index']} {best['setting']}".rstrip()
                    line[f"{who}_ms"] = best["one"]["ms"]
            found.append(line)
    return found


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """recall@400 against single queries per second, a panel for each set, a line for each index."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sets = [*dict.fromkeys(r["set"] for r in records)]
    families = [*dict.fromkeys(r["index"] for r in records)]
    colours = plt.get_cmap("tab20")
    figure, axes = plt.subplots(1, len(sets), figsize=(1 + 4.6 * len(sets), 5.2), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        for i, family in enumerate(families):
            of = sorted((r for r in records if (r["set"], r["index"]) == (name, family)), key=lambda r: r["recall@400"])
            x, y = [r["recall@400"] for r in of], [r["one"]["qps"] for r in of]
            axis.plot(x, y, color=colours(i % 20), marker="os^v"[i % 4], label=family, markersize=5)
        axis.set(title=name, xlabel="recall@400", yscale="log")
        axis.grid(True, which="both", alpha=0.25)
    axes[0][0].set_ylabel("queries per second, one at a time, one core")
    handles, labels = [], []
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, fontsize=7, loc="lower center", ncols=min(6, 2 + 2 * len(sets)))
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    path = RESULTS / "retrieval-cpu.json"
    before = json.loads(path.read_bytes())["cases"] if path.is_file() and not given.overwrite else {}
    about = provenance("python -m frontrow.benchmarks.retrieval_peers " + " ".join(sys.argv[1:]))
    done: dict[str, Any] = {
        "what": f"{K} nearest titles by inner product on one core; ms is the median of a call",
        **about,
        "fastest": [],
        "cases": before,
    }
    for name in given.set:
        shape = SETS[name]
        titles, queries = clustered(*shape) if shape else of_bundle(given.bundle or newest_bundle(Path("bundles")))
        if name == "grown":
            titles = grown(titles, GROWN)
        measure(name, titles, queries, done, SECONDS, about["commit"])
    plot(list(done["cases"].values()), RESULTS / "retrieval-cpu.png")
    for line in done["fastest"]:
        print(json.dumps(line))


if __name__ == "__main__":
    with command("retrieval_peers", __doc__) as parser:
        parser.add_argument("--set", nargs="+", choices=tuple(SETS), default=tuple(SETS), help="default: all")
        parser.add_argument("--bundle", type=Path, help="of the set `demo`; default: the newest in bundles/")
        parser.add_argument("--overwrite", action="store_true", help="measure again what the result file has")
        main(parser.parse_args())
