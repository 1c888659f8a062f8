"""Which row comes first, and what is the page then worth? On MovieLens-100K and in simulated worlds.

    python -m frontrow.benchmarks.rows [--run RUN …] [--world SEED …]    → results/rows.json, page-heat-map.png

RUN: run directories of MovieLens-100K; the finished ones of `frontrow reproduce ml-100k` without it, or the demo's.
MovieLens: pages at each member's test event, as the server would have made them (training/served_rows.py); relevant is
the title that came next. World: the model of the whole log is asked, through the engine, for the visits of the last day
again a day later, when nothing of what it must not know has happened yet: held-out events of a world are mostly about
the title just played, and a homepage is no place for them. Relevant is what the member would choose if everything was
in view, a chance for each title; page_value is what the page itself leads to. Every order of rows has the same titles.
Finished pieces of the same commit are kept in runs/rows. Shape letters: P pages, R rows, C titles per row, N titles.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.model import FoundationModel
from ..serving.homepage import HomepageEngine, Ranked
from ..serving.page import FIRST_TITLES, first_mass, log_mass, ordered_places
from ..serving.rows import rows_to_json
from ..serving.store import Store
from ..training.batches import training_events
from ..training.export import LIKED_ACTIONS, candidate_lists, default_rows, in_memory, train_rows
from ..training.page_metrics import entity_auc, ndcg2d, relevance_of, row_auc
from ..training.row_ranking import held_out_choices
from ..training.runs import load_run, weights_fingerprint
from ..training.served_rows import served_at
from ..training.world_log import WorldConfig
from ..training.world_population import GENRES
from .command import command, seed_of
from .page_optimum import shortfalls
from .paired import difference, over_worlds
from .provenance import RESULTS, provenance, write_result
from .reproduce import check_ml_100k, ml_100k_runs
from .row_orders import ORDERS, RULES, TRUTH, UNBOUND, pages_of, worths
from .world_model import CONFIG, EPOCHS, EVALUATION_SEEDS, trained_on, world_of
from .world_visits import chosen_freely, chunks, ranked_at, visits_after, world_rows

PIECES = Path("runs/rows")
SHAPES = {"movielens": (10, 8), "world": (8, 8)}  # the default page; that of the world's log
VISIBLE = (3, 4)
Piece = dict[str, np.ndarray]  # arrays by "order/measure", or by the name of what has no order


def measured(store: Store, ranked: Sequence[Ranked], chance: np.ndarray, shape: tuple[int, int]) -> Piece:
    """Of every order, by page: NDCG2D, Recall@3-by-4 and Recall@m-by-4 for every m, and where on the page the wanted
    title stands; of all pages together: Row-AUC and Entity-AUC. chance: [P, N], that a title is the one wanted."""
    pages, scores = pages_of(store, ranked, chance, *shape)
    found: Piece = {}
    for name, page in pages.items():
        wanted = relevance_of(page, chance)
        found[f"{name}/page"] = page
        found[f"{name}/ndcg2d"] = ndcg2d(page, np.log2(1 + chance))  # a title's gain is its chance
        found[f"{name}/recall"] = wanted[:, : VISIBLE[0], : VISIBLE[1]].sum((1, 2))
        found[f"{name}/sweep"] = wanted[:, :, : VISIBLE[1]].sum(2).cumsum(1).mean(0)
        found[f"{name}/map"] = wanted.mean(0)
    found |= {f"{name}/row_auc": np.array(auc) for name, auc in row_aucs(store, ranked, chance).items()}
    found["entity_auc"] = np.array(entity_auc(scores, pages["row ranker"], chance))
    return found


def row_aucs(store: Store, ranked: Sequence[Ranked], chance: np.ndarray) -> dict[str, float]:
    """Row-AUC of each order: a row is relevant by the chance that what is wanted is among its first titles."""
    specs = store.rows.specs
    most = np.array([s.max_titles for s in specs])
    scores: dict[str, list[np.ndarray]] = {name: [] for name in ORDERS}
    held, shown = [], []
    for one, wanted in zip(ranked, chance, strict=True):
        order = ordered_places(specs, one.eligible, store.bundle.titles.ids[one.titles])
        own, true = np.append(one.worth.chance, 0.0), np.append(wanted[one.titles], 0.0)
        mass = log_mass(first_mass(order, most, own))
        held.append(first_mass(order, most, true))
        shown.append(one.eligible.sum(1) >= [min(s.min_titles, FIRST_TITLES) for s in specs])
        for name, worth in worths(store, one, wanted).items():
            if name in scores:
                scores[name].append(worth.base + worth.slope * mass)
    share, there = np.stack(held), np.stack(shown)
    return {name: row_auc(np.stack(values), share, there) for name, values in scores.items()}


def movielens(run: Path) -> Piece:
    """The pieces of one run at every frozen layer, the configured one in full."""
    model, data = load_run(run)
    rows = rows_to_json(default_rows(data.titles), LIKED_ACTIONS)
    lists = candidate_lists(data, training_events(data))
    found: Piece = {}
    for layer in range(model.config.layers + 1):
        at_layer = _at_layer(model, layer)
        ranker, _ = train_rows(at_layer, data, rows, lists)
        engine = HomepageEngine(Store(in_memory(at_layer, data, rows, lists, ranker)))
        served = served_at(engine, data, held_out_choices(data, "test"))
        chance = np.zeros((len(served.targets), len(data.titles)))
        chance[np.arange(len(chance)), served.targets] = 1.0
        piece = measured(engine.store, served.ranked, chance, SHAPES["movielens"])
        found |= _of_layer(piece, layer, layer == model.config.state_layer)
        if layer == model.config.state_layer:
            owner = np.searchsorted(data.events.offsets, held_out_choices(data, "test"), side="right") - 1
            found["member"] = data.member_ids[owner]
    return found


def _at_layer(model: FoundationModel, layer: int) -> FoundationModel:
    """The same weights with another layer's state; the model is left as it is."""
    other = copy.copy(model)
    other.config = replace(model.config, state_layer=layer)
    return other


def _of_layer(piece: Piece, layer: int, whole: bool) -> Piece:
    """What is kept of a layer; all of it if it is the configured one."""
    found = {
        f"layer {layer}/{of}/{what}": piece[f"{of}/{what}"].mean()
        for of in ("row ranker", "state alone")
        for what in ("ndcg2d", "recall", "row_auc", *(["value"] if f"{of}/value" in piece else []))
    } | {f"layer {layer}/entity_auc": piece["entity_auc"]}
    return found | ({k: v for k, v in piece.items() if not k.endswith("/page")} if whole else {})


def world_piece(seed: int, config: WorldConfig = CONFIG, epochs: int = EPOCHS) -> Piece:
    """The piece of one world, as `movielens`, with page values."""
    world = world_of(seed, config)
    model, data = trained_on(world, epochs=epochs)
    known = rows_to_json(world_rows(GENRES), LIKED_ACTIONS)
    lists = candidate_lists(data, training_events(data))
    served_lists = candidate_lists(data, np.ones(len(data.events.ids), bool))
    visits = visits_after(world, data.member_ids)
    chance = np.concatenate([chosen_freely(world, visits.take(piece)) for piece in chunks(len(visits))])
    found: Piece = {"member": visits.member}
    for layer in range(model.config.layers + 1):
        at_layer = _at_layer(model, layer)
        ranker, _ = train_rows(at_layer, data, known, lists)
        engine = HomepageEngine(Store(in_memory(at_layer, data, known, served_lists, ranker)))
        ranked = ranked_at(engine, world, visits)
        piece = measured(engine.store, ranked, chance, SHAPES["world"])
        for name in (*ORDERS, TRUTH, UNBOUND):
            if layer == model.config.state_layer or name in ("row ranker", "state alone"):
                piece[f"{name}/value"] = world.page_value(visits, piece[f"{name}/page"])
        found |= _of_layer(piece, layer, layer == model.config.state_layer)
    rng = np.random.default_rng(seed)
    for name, page in (
        ("oracle", world.oracle_page(visits, *SHAPES["world"])),
        ("random", world.random_page(visits, rng, *SHAPES["world"])),
        ("logging policy", world.logging_page(visits, rng)),
    ):
        found[f"{name}/value"] = world.page_value(visits, page)
        found[f"{name}/ndcg2d"] = ndcg2d(page, np.log2(1 + chance))
        found[f"{name}/recall"] = relevance_of(page, chance)[:, : VISIBLE[0], : VISIBLE[1]].sum((1, 2))
    return found


def ahead(pieces: Sequence[Piece], name: str, measure: str, worlds: bool) -> dict[str, Any]:
    """How much the row ranker has above another order: the mean difference with its 95 % interval, and as a share of
    the other, over all and in each piece. Worlds have members of their own; runs of MovieLens share them."""
    ours, theirs = ([p[f"{of}/{measure}"] for p in pieces] for of in ("row ranker", name))
    if worlds:
        found = over_worlds([a - b for a, b in zip(ours, theirs, strict=True)], [p["member"] for p in pieces])
    else:
        found = difference(np.stack(ours), np.stack(theirs))
    shares = [float(a.mean() / b.mean() - 1) for a, b in zip(ours, theirs, strict=True)]
    return {**found, "share": found["mean"] / float(np.concatenate(theirs).mean()), "by_seed": shares}


def summary(kind: str, pieces: dict[str, Piece]) -> dict[str, Any]:
    """What results/rows.json says of one data set, from the pieces of its seeds."""
    names = [
        n for n in (*ORDERS, TRUTH, UNBOUND, "oracle", "random", "logging policy") if f"{n}/ndcg2d" in _any(pieces)
    ]
    measures = [m for m in ("ndcg2d", "recall", "value") if f"row ranker/{m}" in _any(pieces)]

    def joined(key: str) -> np.ndarray:
        return np.concatenate([np.atleast_1d(p[key]) for p in pieces.values()])

    values = {m: {n: joined(f"{n}/{m}") for n in names} for m in measures}
    orders = {n: {m: float(values[m][n].mean()) for m in measures} for n in names}
    for name in ORDERS:
        orders[name]["row_auc"] = float(joined(f"{name}/row_auc").mean())
    best = {m: max(RULES, key=lambda n: orders[n][m]) for m in measures}
    layers = sorted({key.split("/")[0] for key in _any(pieces) if key.startswith("layer ")})
    return {
        "seeds": sorted(pieces),
        "pages": len(joined("member")),
        "shape": list(SHAPES[kind]),
        "orders": orders,
        "entity_auc": float(joined("entity_auc").mean()),
        "best_rule": best,
        "ahead": {
            n: {m: ahead(list(pieces.values()), n, m, kind == "world") for m in measures}
            for n in names if n != "row ranker"
        },
        "recall_by_rows": {n: np.mean([p[f"{n}/sweep"] for p in pieces.values()], 0).tolist() for n in ORDERS},
        "layers": {
            layer: {key.removeprefix(layer + "/"): float(joined(key).mean())
                    for key in _any(pieces) if key.startswith(layer + "/")}
            for layer in layers
        },
        "map": {n: np.mean([p[f"{n}/map"] for p in pieces.values()], 0).tolist() for n in ("row ranker", *RULES)},
    }  # fmt: skip


def _any(pieces: dict[str, Piece]) -> Piece:
    return next(iter(pieces.values()))


def assembly(pages: int = 1000) -> dict[str, Any]:
    """How far pages assembled from the top down are below the best page."""
    below = shortfalls(pages)
    return {
        "pages": pages, "catalogue_rows": 5, "candidates": 9, "shape": [2, 3], "mean": float(below.mean()),
        "best": float((below < 1e-9).mean()), "p90": float(np.quantile(below, 0.9)), "most": float(below.max()),
    }  # fmt: skip


def heat_maps(found: dict[str, Any], file: Path) -> None:
    """Where on the page stands what is wanted: the row ranker, the best rule, and the difference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [(k, t) for k, t in (("movielens", "MovieLens-100K"), ("world", "simulated world")) if k in found]
    figure, axes = pyplot.subplots(len(kinds), 3, figsize=(13, 4.2 * len(kinds)), squeeze=False)
    for line, (kind, title) in zip(axes, kinds, strict=True):
        rule = found[kind]["best_rule"]["ndcg2d"]
        ours, theirs = (100 * np.array(found[kind]["map"][name]) for name in ("row ranker", rule))
        top, far = max(ours.max(), theirs.max()), np.abs(ours - theirs).max()
        for axis, values, name, scale in (
            (line[0], ours, "row ranker", {"cmap": "Blues", "vmin": 0, "vmax": top}),
            (line[1], theirs, f"rows by {rule}", {"cmap": "Blues", "vmin": 0, "vmax": top}),
            (line[2], ours - theirs, "difference", {"cmap": "RdBu", "vmin": -far, "vmax": far}),
        ):
            shown = axis.imshow(values, aspect="auto", **scale)
            for (r, c), value in np.ndenumerate(values):
                dark = abs(value) > 0.6 * (far if name == "difference" else top)
                axis.text(
                    c,
                    r,
                    f"{round(value, 1) + 0.0:.1f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="w" if dark else "k",
                )
            axis.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
            axis.set_yticks(range(values.shape[0]), range(1, values.shape[0] + 1))
            axis.set(title=f"{title}: {name}", xlabel="title of the row", ylabel="row of the page")
            figure.colorbar(shown, ax=axis, label="% of pages")
    figure.suptitle("Where on the page the wanted title stands")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def markdown(found: dict[str, Any]) -> str:
    """The section of quality.md."""
    parts = [
        "Every order of rows has the same rows and the same titles, each title once per page; only what stands above "
        "what differs. NDCG2D and Recall count the one title that is wanted. Rules: the mean popularity of a row's "
        "titles, how many they are, their mean and their best score. State alone and titles alone: parts of the row "
        "ranker; rows by themselves: it, without regard to what rows above show. Knowing the truth: rows by "
        "the true chance of their first titles, the titles of a row in the model's order. Intervals: 95 %, paired, by "
        "member.",
    ]
    for kind in ("movielens", "world"):
        if kind in found:
            parts += _section(kind, found[kind])
    below = found["assembly"]
    parts.append(
        f"**Assembly.** Pages made from the top down against the best page there is, {below['pages']} random pages of "
        f"{below['shape'][0]} × {below['shape'][1]} from {below['catalogue_rows']} rows that overlap and "
        f"{below['candidates']} titles: {below['mean']:.1%} below it on average, {below['p90']:.1%} at the 90th "
        f"percentile, {below['most']:.1%} at most; {below['best']:.0%} are the best page."
    )
    parts.append("![where on the page the wanted title stands](results/page-heat-map.png)")
    return "\n\n".join(parts) + "\n"


def _section(kind: str, of: dict[str, Any]) -> list[str]:
    world, (rows, columns) = kind == "world", of["shape"]
    name = "Simulated world" if world else "MovieLens-100K"
    seeds = f"seeds {', '.join(of['seeds'])}" if world else f"runs {', '.join(of['seeds'])}"
    heads = ["NDCG2D", "Recall@3-by-4", *(["page value"] if world else []), "Row-AUC"]
    lines = [f"| rows by | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for order, m in of["orders"].items():
        values = [m["ndcg2d"], m["recall"], *([m["value"]] if world else []), m.get("row_auc")]
        lines.append(f"| {order} | {' | '.join('' if v is None else f'{v:.3f}' for v in values)} |")
    rule, recall = of["best_rule"]["ndcg2d"], of["best_rule"]["recall"]
    free, true = (of["orders"][n]["ndcg2d"] / of["orders"][rule]["ndcg2d"] - 1 for n in (UNBOUND, TRUTH))
    each = ", ".join(f"{share:+.1%}" for share in of["ahead"][rule]["ndcg2d"]["by_seed"])
    shown = [m for m in (1, 2, 3, 5, 10) if m <= len(of["recall_by_rows"][recall])]
    sweep = (
        f"m = {m} " + " and ".join(f"{of['recall_by_rows'][n][m - 1]:.3f}" for n in ("row ranker", recall))
        for m in shown
    )
    text = (
        f"NDCG2D of the row ranker less that of rows by {rule}, the best of the four rules: "
        f"{_gap(of, rule, 'ndcg2d')}; in each {'world' if world else 'run'} {each}. Against the same rule, the best "
        f"titles by score, placed without regard to rows, have {free:+.1%}, and rows in the order of the truth "
        f"{true:+.1%}. Less that of its part titles alone: {_gap(of, 'titles alone', 'ndcg2d')}. Recall@3-by-4 less "
        f"that of rows by {recall}, the best rule there: {_gap(of, recall, 'recall')}. Recall@m-by-4, row ranker and "
        f"rows by {recall}: {', '.join(sweep)}."
    )
    if world:
        rule, oracle = of["best_rule"]["value"], of["orders"]["oracle"]["value"]
        text += (
            f" Page value, the chance of an enjoyed play, less that of rows by {rule}: {_gap(of, rule, 'value')}. It "
            f"is {of['orders']['row ranker']['value'] / oracle:.0%} of the oracle's, which also knows the titles' "
            "truth, and places them from the top down."
        )
    layers = [f"| frozen layer | {' | '.join(heads)} | NDCG2D, state alone | Row-AUC, state alone |",
              "|---" * (len(heads) + 3) + "|"]  # fmt: skip
    for layer, m in of["layers"].items():
        shown = ["ndcg2d", "recall", *(["value"] if world else []), "row_auc"]
        values = [*(m[f"row ranker/{w}"] for w in shown), m["state alone/ndcg2d"], m["state alone/row_auc"]]
        lines_of = " | ".join(f"{v:.3f}" for v in values)
        layers.append(f"| {layer.removeprefix('layer ')} | {lines_of} |")
    return [f"**{name}**, {of['pages']:,} pages of {rows} × {columns}, {seeds}. Entity-AUC {of['entity_auc']:.3f}.",
            "\n".join(lines), text, "\n".join(layers)]  # fmt: skip


def _gap(of: dict[str, Any], name: str, measure: str) -> str:
    gap = of["ahead"][name][measure]
    return f"{gap['mean']:+.4f} ({gap['from']:+.4f} to {gap['to']:+.4f}), which is {gap['share']:+.1%}"


def main(runs: Sequence[Path], worlds: Sequence[int], command: str) -> None:
    source = provenance(command)
    PIECES.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, dict[str, Piece]] = {"movielens": {}, "world": {}}
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"several of {', '.join(map(str, runs))} have one name; give runs of different names")
    for run in runs:
        check_ml_100k(run)
    work = [("movielens", run.name, run) for run in runs] + [("world", str(seed), seed) for seed in worlds]
    content: dict[str, Any] = {"assembly": assembly()}
    for kind, name, of in work:
        made_of = f"-{weights_fingerprint(of)[:12]}" if isinstance(of, Path) else ""
        file = PIECES / f"{kind}-{name}{made_of}-{source['commit']}.npz"
        if not file.is_file() or file.stem.endswith("-dirty"):
            np.savez(file, **(movielens(of) if isinstance(of, Path) else world_piece(of)))  # type: ignore[arg-type]
        with np.load(file) as stored:
            pieces[kind][name] = dict(stored)
        content[kind] = summary(kind, pieces[kind])
        print(kind, name, {n: round(m["ndcg2d"], 4) for n, m in content[kind]["orders"].items()}, flush=True)
        write_result("rows", content | source)
        heat_maps(content, RESULTS / "page-heat-map.png")


if __name__ == "__main__":
    with command("rows", __doc__) as parser:
        parser.add_argument("--run", nargs="*", type=Path, default=ml_100k_runs())
        parser.add_argument("--world", nargs="*", type=seed_of, default=list(EVALUATION_SEEDS))
        given = parser.parse_args()
        asked = [*(["--run", *map(str, given.run)]), *(["--world", *map(str, given.world)])]
        main(
            list(dict.fromkeys(given.run)),
            list(dict.fromkeys(given.world)),
            f"python -m frontrow.benchmarks.rows {' '.join(asked)}",
        )
