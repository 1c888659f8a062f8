"""Do scores mean what they say, and what does variety cost? Reliability of every head, and the trade-off of the dial
`diversity` of rows.json, on MovieLens-100K and in simulated worlds.

    python -m frontrow.benchmarks.beyond_accuracy [--run RUN …] [--world SEED …]
        → results/beyond-accuracy.json, results/reliability.png, results/trade-off.png

RUN: run directories of MovieLens-100K; the finished ones of `frontrow reproduce ml-100k` without it, or the demo's.
Pages are served by the engine from a bundle that ends before the test events, each at the time of its member's test
event. In a world there is no held-out event: pages are asked for at its end, and their true value is known. What was
measured at the same commit already is kept. Shape letters: B members, R rows, C titles per row, N titles, K candidates.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.bundle import load_bundle
from ..foundation.encoding import Encoded
from ..foundation.model import FoundationModel
from ..foundation.schema import FIRST
from ..serving import probability
from ..serving.diversity import POOL, unit_vectors, varied
from ..serving.homepage import CANDIDATES, HomepageEngine, Page
from ..serving.probability import Normaliser
from ..serving.requests import PageRequest
from ..serving.retrieval import QUOTAS
from ..serving.store import Store
from ..training.batches import evaluated_members, evaluation_batch, target_positions, training_events
from ..training.beyond_accuracy import dissimilarities, of_lists, of_pages, primitive_lists
from ..training.calibration import before_and_after, head_claims, heads_report, row_claims
from ..training.data import Dataset
from ..training.evaluate import CUTOFF, chunks, model_scorer, score_unseen
from ..training.export import candidate_lists, export_bundle
from ..training.runs import load_run
from ..training.world import World
from ..training.world_population import DEVICES, LOCALES
from .beyond_accuracy_report import draw_reliability, draw_trade_off
from .command import command, seed_of
from .provenance import RESULTS, provenance, write_result
from .reproduce import check_ml_100k, ml_100k_runs
from .world_model import EVALUATION_SEEDS, trained_on, world_of

DIALS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
ROWS, COLUMNS = 10, 8
VISIBLE = (3, 4)  # rows and titles that a screen shows at first
VISITS = 500  # of a world
NAME = "beyond-accuracy"


def exported(model: FoundationModel, data: Dataset, scratch: Path) -> HomepageEngine:
    """The engine of a bundle of this model and data."""
    return HomepageEngine(Store(load_bundle(export_bundle(model, data, scratch, {}))))


def reliability(model: FoundationModel, data: Dataset, served: HomepageEngine) -> dict[str, Any]:
    """`before_and_after` by head, rows among them. The rows that are asked about are made of training events alone."""
    found = heads_report(head_claims(model, data, "validation"), head_claims(model, data, "test"))
    bundle = served.store.bundle
    lists = candidate_lists(data, training_events(data))
    engine = HomepageEngine(Store(replace(bundle, candidates=lists)))
    rows = before_and_after(row_claims(engine, data, "validation"), row_claims(engine, data, "test"))
    return found | ({"rows": rows} if rows else {})


def before_test(data: Dataset) -> Dataset:
    """The data without the test events."""
    members, lengths = evaluated_members(data), np.diff(data.events.offsets)
    kept = np.ones(len(data.events.ids), bool)
    kept[target_positions(data, members, "test")] = False
    lengths[members] -= 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return replace(data, events=Encoded(data.events.ids[kept], data.events.timestamp[kept], offsets))


def ways(engine: HomepageEngine, requests: Sequence[PageRequest], times: Sequence[float]) -> dict[float, np.ndarray]:
    """Pages of title indices int64 [B, ROWS, COLUMNS], −1 is none, by the value of the dial."""
    found = {}
    for dial in DIALS:
        engine.store.rows.diversity = dial
        pages = np.full((len(requests), ROWS, COLUMNS), -1, np.int64)
        for i, (request, now) in enumerate(zip(requests, times, strict=True)):
            page = engine.pages([request], now)[0]
            assert isinstance(page, Page), page
            ids = np.where(page.title_ids >= 0, engine.store.title_indices(page.title_ids), -1)
            pages[i, : len(ids)] = ids
        found[dial] = pages
    return found


def beside(values: np.ndarray, at_0: np.ndarray) -> dict[str, float]:
    """Mean difference of members or visits float64 [B] from diversity 0, with its 95 % interval."""
    each = values - at_0
    half = 1.96 * each.std(ddof=1) / len(each) ** 0.5
    return {"mean": float(each.mean()), "from": float(each.mean() - half), "to": float(each.mean() + half)}


def lists_trade_off(model: FoundationModel, data: Dataset) -> list[dict[str, Any]]:
    """Of each member's ten titles out of the whole catalogue, a line per value of the dial."""
    score, unlike = model_scorer(model, data, "test", True), dissimilarities(data)
    with torch.no_grad():
        units = unit_vectors(model.title_vectors().numpy())
    best, own, targets = [], [], []
    for members in chunks(data):
        scores, target = score_unseen(score, data, "test", members)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : POOL * CUTOFF]
        best.append(order)
        own.append(np.take_along_axis(scores, order, axis=1))
        targets.append(target)
    pools, scores, target = np.concatenate(best), np.concatenate(own), np.concatenate(targets)
    primitive, at_0, found = primitive_lists(data, "test"), np.empty(0), []
    for dial in DIALS:
        every, lists = np.arange(pools.shape[1]), pools[:, :CUTOFF]
        if dial:
            each = zip(scores, pools, strict=True)
            lists = np.stack([p[varied(s, units[p], dial)(every, 0, CUTOFF)] for s, p in each])
        hit = lists == target[:, None]
        gain = (hit / np.log2(np.arange(CUTOFF) + 2.0)).sum(1)
        at_0 = at_0 if at_0.size else gain
        found.append({
            "diversity": dial, f"hr@{CUTOFF}": float(hit.any(1).mean()), f"ndcg@{CUTOFF}": float(gain.mean()),
            "beside_0": beside(gain, at_0), **of_lists(data, lists, target, primitive, unlike),
        })  # fmt: skip
    return found


def pages_trade_off(model: FoundationModel, data: Dataset, scratch: Path) -> list[dict[str, Any]]:
    """Of each member's page at the time of the test event, a line per value of the dial."""
    engine, unlike = exported(model, before_test(data), scratch), dissimilarities(data)
    members = evaluated_members(data)
    at = target_positions(data, members, "test")
    times, target = data.events.timestamp[at].tolist(), data.title_indices()[at]
    requests = [
        PageRequest(int(data.member_ids[m]), context=_context(data, p), rows=ROWS, titles=COLUMNS)
        for m, p in zip(members, at, strict=True)
    ]
    found, at_0 = [], np.empty(0)
    for dial, pages in ways(engine, requests, times).items():
        hit = pages == target[:, None, None]
        on_page = hit.any((1, 2)).astype(np.float64)
        at_0 = at_0 if at_0.size else on_page
        visible = hit[:, : VISIBLE[0], : VISIBLE[1]].any((1, 2))
        found.append({
            "diversity": dial, "page_hit": float(on_page.mean()), "visible_hit": float(visible.mean()),
            "beside_0": beside(on_page, at_0), **of_pages(data, pages, unlike),
        })  # fmt: skip
    return found


def _context(data: Dataset, position: int) -> bytes:
    """What is known of an event before it happens: its time, device and locale."""
    context: dict[str, Any] = {"timestamp": int(data.events.timestamp[position])}
    for name in ("device", "locale"):
        field = data.schema.category(f"where.{name}")
        value = 0 if field is None else int(data.events.ids[position, data.schema.spans[field.name][0]])
        if field is not None and value >= FIRST:
            context[name] = data.vocabularies[field.name].values[value - FIRST]
    return json.dumps(context).encode()


def world_trade_off(world: World, data: Dataset, engine: HomepageEngine) -> dict[str, Any]:
    """Of pages asked for at the end of a world by some members, on the device of their last visit: a line per value of
    the dial, with the pages' true value; beside them the oracle's pages and random ones."""
    unlike = dissimilarities(data)
    last = len(world.visits) - 1 - np.unique(world.visits.member[::-1], return_index=True)[1]
    last = np.random.default_rng(0).permutation(last)[:VISITS]
    some = world.visits.take(last)
    visits = replace(some, time=np.full(len(some), world.end))
    requests = []
    for member, device, locale in zip(visits.member, visits.device, visits.locale, strict=True):
        context = {"timestamp": world.end, "device": DEVICES[device], "locale": LOCALES[locale]}
        there = world.titles.available[locale] & (world.titles.release <= world.end)
        requests.append(
            PageRequest(int(member), context=json.dumps(context).encode(), rows=ROWS, titles=COLUMNS,
                        exclude=np.flatnonzero(~there))
        )  # fmt: skip
    lines, at_0 = [], np.empty(0)
    for dial, pages in ways(engine, requests, [float(world.end)] * len(requests)).items():
        value = world.page_value(visits, pages)
        at_0 = at_0 if at_0.size else value
        lines.append({
            "diversity": dial, "page_value": float(value.mean()), "beside_0": beside(value, at_0),
            **of_pages(data, pages, unlike),
        })  # fmt: skip
    oracle, rng = world.oracle_page(visits, ROWS, COLUMNS), np.random.default_rng(1)
    chance = world.random_page(visits, rng, ROWS, COLUMNS)
    return {
        "visits": len(visits),
        "lines": lines,
        "oracle_page_value": float(world.page_value(visits, oracle).mean()),
        "random_page_value": float(world.page_value(visits, chance).mean()),
    }


@torch.no_grad()
def levels(model: FoundationModel, data: Dataset) -> dict[str, Any]:
    """Of the log normalisers that make scores probabilities: how they differ between members; and their time and error
    in large catalogues, for members of the data and titles drawn from a Gaussian with the mean and covariance of the
    trained vectors."""
    score, found = model_scorer(model, data, "test", True), []
    for members in chunks(data):
        scores, _ = score_unseen(score, data, "test", members)
        found.append(torch.from_numpy(scores).logsumexp(1).numpy())
    level, vectors = np.concatenate(found), model.title_vectors()
    tokens, offsets = evaluation_batch(data, chunks(data)[0], "test", model.config.max_events, True)
    members, _ = model.encode(tokens, offsets)
    covariance = torch.from_numpy(np.cov(vectors.numpy().T)).float()
    spread = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance)))
    generator, catalogues = torch.Generator().manual_seed(0), [_catalogue(vectors, members)]
    for count in (20_000, 100_000):
        drawn = torch.randn(count, vectors.shape[1], generator=generator) @ spread
        catalogues.append(_catalogue(vectors.mean(0) + drawn, members))
    return {
        "mean": float(level.mean()), "deviation": float(level.std(ddof=1)), "least": float(level.min()),
        "greatest": float(level.max()), "sample": probability.SAMPLE, "catalogues": catalogues,
    }  # fmt: skip


def _catalogue(vectors: Tensor, members: Tensor) -> dict[str, float]:
    """Milliseconds of one member's log normaliser, and how far it is off, in nats: as it is served; and if only the
    candidates were summed up. Of the candidates 40 % are the best titles, as in retrieval, the others any."""
    served, draw = Normaliser(vectors), np.random.default_rng(0)
    products = members @ vectors.T
    exact = products.logsumexp(1).numpy()
    best = products.topk(round(QUOTAS["embedding"] * CANDIDATES)).indices.numpy()
    candidates = np.full((len(members), CANDIDATES), -1, np.int64)
    for line, near in zip(candidates, best, strict=True):
        some = np.unique(np.concatenate([near, draw.choice(len(vectors), CANDIDATES - len(near), replace=False)]))
        line[: len(some)] = some
    scores = np.where(candidates >= 0, np.take_along_axis(products.numpy(), candidates.clip(0), 1), -np.inf)
    none, off, took = np.zeros(len(vectors), bool), [], []
    for i in range(len(members)):
        started = time.perf_counter()
        level = served(members[i : i + 1], [none], candidates[i : i + 1], scores[i : i + 1])[0]
        took.append((time.perf_counter() - started) * 1000)
        off.append(abs(level - exact[i]))
    missing = exact - torch.from_numpy(scores).logsumexp(1).numpy()
    return {
        "titles": len(vectors), "milliseconds": float(np.median(took)), "off_mean": float(np.mean(off)),
        "off_greatest": float(np.max(off)), "candidates_only_off_mean": float(missing.mean()),
        "candidates_only_off_greatest": float(missing.max()),
    }  # fmt: skip


def latency(engine: HomepageEngine, rows: int = 40, columns: int = 20, requests: int = 300) -> dict[str, Any]:
    """Median milliseconds of a page in this process, and of its assembly, by the value of the dial, in turn."""
    taken: dict[float, list[tuple[float, float]]] = {dial: [] for dial in (0.0, 0.5, 1.0)}
    ids = engine.store.bundle.member_ids
    for i in range(requests + 20):
        for dial, times in taken.items():
            engine.store.rows.diversity = dial
            started = time.perf_counter()
            page = engine.pages([PageRequest(int(ids[i % len(ids)]), rows=rows, titles=columns)])[0]
            assert isinstance(page, Page), page
            times.append(((time.perf_counter() - started) * 1000, page.info["stages_ms"]["assemble"]))
    lines = []
    for dial, times in taken.items():
        whole, assembly = np.median(times[20:], axis=0)
        lines.append({"diversity": dial, "page_ms": float(whole), "assemble_ms": float(assembly)})
    return {"rows": rows, "titles": columns, "requests": requests, "lines": lines}


def main(runs: Sequence[Path], worlds: Sequence[int]) -> None:
    asked = "".join(f" --run {run}" for run in runs) + "".join(f" --world {seed}" for seed in worlds)
    source = provenance(f"python -m frontrow.benchmarks.beyond_accuracy{asked}")
    content: dict[str, Any] = {"pages": [ROWS, COLUMNS], "ml-100k": {}, "world": {}}
    for run in runs:
        check_ml_100k(run)
    file = RESULTS / f"{NAME}.json"
    before = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if before.get("commit") == source["commit"] and not source["commit"].endswith("-dirty"):
        content |= {name: before[name] for name in content}

    def keep(kind: str, name: str, piece: dict[str, Any]) -> None:
        content[kind][name] = piece
        write_result(NAME, content | source)
        draw_reliability(content, RESULTS / "reliability.png")
        draw_trade_off(content, RESULTS / "trade-off.png")
        print(kind, name, flush=True)

    for run in (run for run in runs if run.name not in content["ml-100k"]):
        model, data = load_run(run)
        with tempfile.TemporaryDirectory() as scratch:
            engine = exported(model, data, Path(scratch))
            keep("ml-100k", run.name, {
                "members": len(evaluated_members(data)),
                "reliability": reliability(model, data, engine),
                "lists": lists_trade_off(model, data),
                "pages": pages_trade_off(model, data, Path(scratch)),
                "levels": levels(model, data),
                "latency": latency(engine),
            })  # fmt: skip
    for seed in (seed for seed in worlds if f"seed-{seed}" not in content["world"]):
        world = world_of(seed)
        model, data = trained_on(world)
        with tempfile.TemporaryDirectory() as scratch:
            engine = exported(model, data, Path(scratch))
            found = {"reliability": reliability(model, data, engine), **world_trade_off(world, data, engine)}
            keep("world", f"seed-{seed}", found)


if __name__ == "__main__":
    with command("beyond_accuracy", __doc__) as parser:
        parser.add_argument("--run", nargs="+", type=Path, default=[])
        parser.add_argument("--world", nargs="*", type=seed_of, default=list(EVALUATION_SEEDS))
        given = parser.parse_args()
        main(given.run or ml_100k_runs(), given.world)
