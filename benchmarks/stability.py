"""What is a warm start worth, and do the vectors of successive trainings compare? In the simulated world.

    python -m frontrow.benchmarks.stability [--seed N …] [--epochs N] [--warm-epochs N]    → results/stability.json

A base model is trained on the first days, with the titles released by then and the default fields. Later there are more
days, members, titles and four title fields more. A model that goes on from the base one is compared with one trained
from scratch for as many epochs, and for as many as the base one had. Then the drift of the vectors: between two seeds,
to a training from scratch on the later data, and to the warm start; as they are, turned by an orthogonal map alone, and
balanced first (training/alignment.py); also over titles that the map was not fitted on.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from ..foundation.model import FoundationModel
from ..foundation.schema import default_schema
from ..training.alignment import Space, apply, drift, maps, moved, rotation, space_of
from ..training.batches import evaluated_members, target_positions, trained_titles
from ..training.data import Dataset, load_dataset, read_table, write_dataset
from ..training.evaluate import model_scorer, ranking_metrics, ranks_of_targets, score_unseen
from ..training.runs import best_epoch, read_earlier, read_metrics, train_run
from ..training.train import TrainConfig, build_model, train
from ..training.warm_start import warm_start
from ..training.world import simulate
from ..training.world_population import DAY, START
from .cold_splits import CUT_DAY, WORLD, first_plays, world_schema
from .command import command, positive, seed_of
from .provenance import provenance, write_result

RUNS = Path("runs/stability")
SEEDS = (101, 102, 103)
WARM_EPOCHS = 4
METRIC = "ndcg@10"
TURNED = {"as they are": "none", "orthogonal map": "orthogonal", "balanced, then orthogonal": "balanced"}


def days(seed: int) -> tuple[Path, Dataset, Dataset]:
    """(folder of the first days' data, that data, the data of all days) of a world."""
    world, folder = simulate(replace(WORLD, seed=seed)), RUNS / f"seed-{seed}"
    world.write(folder / "all")
    events, titles = first_plays(read_table(folder / "all" / "events.parquet")), folder / "all" / "titles.parquet"
    cut = START + CUT_DAY * DAY
    out = read_table(titles)
    released = out.filter(np.asarray(world.titles.release < cut))
    write_dataset(folder / "later", events, out)
    early = pc.less(events["timestamp"], cut)  # type: ignore[attr-defined]
    write_dataset(folder / "first", events.filter(early), released)
    first = load_dataset(folder / "first", default_schema())
    return folder / "first", first, load_dataset(folder / "later", world_schema())


def on_new_titles(model: FoundationModel, data: Dataset, old: np.ndarray) -> dict[str, float]:
    """Metrics of the test items whose title is not among `old` ids, and how many these are."""
    members = evaluated_members(data)
    target = data.titles.ids[data.title_indices()[target_positions(data, members, "test")]]
    new = ~np.isin(target, old)
    return ranking_metrics(ranks_of_targets(model, data, "test")[new]) | {"items": int(new.sum())}


def outcome(model: FoundationModel, data: Dataset, old: np.ndarray, run: Path | None) -> dict[str, Any]:
    """Test metrics of a model, over all and over new titles; its validation curve where it has a run."""
    test = ranking_metrics(ranks_of_targets(model, data, "test"))
    found: dict[str, Any] = {"test": test, "test_new_titles": on_new_titles(model, data, old)}
    if run is not None:
        lines = [line for line in read_metrics(run) if line["epoch"]]  # 0: what a warm start began from
        found |= {
            "epoch": int(best_epoch(run)["epoch"]),
            "validation": [line[f"validation_{METRIC}"] for line in lines],
            "seconds": [round(s, 1) for s in itertools.accumulate(line["seconds"] for line in lines)],
        }
    return found


def reached(curve: list[float], goal: float) -> int | None:
    """The first epoch, from 1, whose value is at least the goal."""
    return next((i for i, value in enumerate(curve, start=1) if value >= goal), None)


def turned(new: Space, reference: Space, how: str, fitted: np.ndarray | None = None) -> Space:
    """The new space by one of TURNED; fitted: the title ids that its map may see."""
    seen = new
    if fitted is not None:
        kept = np.isin(new.title_ids, fitted)
        seen = replace(new, title_ids=new.title_ids[kept], titles=new.titles[torch.from_numpy(kept)])
    if how == "none":
        return new
    return moved(new, rotation(seen, reference) if how == "orthogonal" else maps(seen, reference))


def drifts(new: Space, reference: Space) -> dict[str, Any]:
    """`drift` by each of TURNED, and the cosine over the half of the common titles that the map was not fitted on."""
    common = np.intersect1d(new.title_ids, reference.title_ids)
    half = np.random.default_rng(0).permutation(common)[: len(common) // 2]
    found = {}
    for how in TURNED.values():
        found[how] = drift(turned(new, reference, how), reference)
        apart = turned(new, reference, how, half)
        kept = ~np.isin(apart.title_ids, half)
        others = replace(apart, title_ids=apart.title_ids[kept], titles=apart.titles[torch.from_numpy(kept)])
        found[how]["titles_not_fitted"] = drift(others, reference)["titles"]
    return found


def preserved(model: FoundationModel, data: Dataset, new: Space, reference: Space) -> dict[str, float]:
    """What alignment does to float32 scores: the largest difference as a share of the largest score, and the share of
    members whose first ten are the same in the same order."""
    aligned = copy.deepcopy(model).eval()
    apply(aligned, maps(new, reference))
    members = evaluated_members(data)
    scores = [score_unseen(model_scorer(m, data, "test", True), data, "test", members)[0] for m in (model, aligned)]
    top = [np.argsort(-s, axis=1, kind="stable")[:, :10] for s in scores]
    known = np.isfinite(scores[0])
    error = np.abs(scores[0][known] - scores[1][known]).max() / np.abs(scores[0][known]).max()
    return {"largest_difference": float(error), "same_first_ten": float((top[0] == top[1]).all(1).mean())}


def measure(seed: int, epochs: int, warm_epochs: int) -> dict[str, Any]:
    """One world; what is trained already is read."""
    folder, first, later = days(seed)
    config = TrainConfig(epochs=epochs, seed=seed)
    runs = RUNS / f"seed-{seed}" / f"{epochs}-{warm_epochs}"
    base = train_run(runs / "base", folder, first, config, resume=True).eval()
    again = train_run(runs / "again", folder, first, replace(config, seed=seed + 1000), resume=True).eval()
    earlier, few = read_earlier(runs / "base"), replace(config, epochs=warm_epochs)
    empty, old = build_model(later, config.model), first.titles.ids[trained_titles(first)]
    models, found = {}, {}
    for name, mix in (("warm, mix", True), ("warm, average", False)):
        start = warm_start(earlier, empty, later, seed, mix)
        before = build_model(later, config.model)
        before.load_state_dict(start.weights)
        found[f"{name}, before any step"] = outcome(before.eval(), later, old, None)
        models[name] = train(later, few, runs / name.replace(", ", "-"), resume=True, start=start)
    models["scratch, as many epochs"] = train(later, few, runs / "scratch-few", resume=True)
    models["scratch"] = train(later, config, runs / "scratch", resume=True)
    folders = ("warm-mix", "warm-average", "scratch-few", "scratch")
    for (name, model), run in zip(models.items(), folders, strict=True):
        found[name] = outcome(model.eval(), later, old, runs / run)
    goal = max(found["scratch"]["validation"])
    for name in models:
        found[name]["epochs_to_scratch"] = reached(found[name]["validation"], goal)

    def space(model: FoundationModel, data: Dataset) -> Space:
        wanted = np.intersect1d(first.member_ids, data.member_ids)
        return space_of(model, data.titles.ids, model.title_vectors(), data.member_ids, data.events, wanted)

    reference, warm = space(base, first), space(models["warm, mix"], later)
    return {
        "seed": seed,
        "new_titles": len(later.titles) - len(first.titles),
        "titles": len(later.titles),
        "events": {"first": len(first.events.ids), "later": len(later.events.ids)},
        "trained": found,
        "drift": {
            "another seed": drifts(space(again, first), reference),
            "scratch on later data": drifts(space(models["scratch"], later), reference),
            "warm start": drifts(warm, reference),
        },
        "scores": preserved(models["warm, mix"], later, warm, reference),
    }


def markdown(found: dict[str, Any]) -> str:
    """The section on warm starts and drift, of the content of results/stability.json."""
    runs = found["seeds"]

    def mean(*path: str) -> float | None:
        values = []
        for run in runs:
            at: Any = run
            for key in path:
                at = at[key]
            values.append(at)
        return None if None in values else float(np.mean(values))

    def text(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    first = runs[0]
    table = [
        "| trained on all days | epochs | seconds | NDCG@10 | HR@10 | HR@10, new titles | epochs to scratch's best |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in first["trained"].items():
        curve, at = one.get("validation", []), ("trained", name)
        seconds = float(np.mean([run["trained"][name]["seconds"][-1] for run in runs])) if curve else 0.0
        goals = [run["trained"][name].get("epochs_to_scratch") for run in runs] if curve else ["0"]
        table.append(
            f"| {name} | {len(curve)} | {seconds:.0f} | {text(mean(*at, 'test', METRIC))} | "
            f"{text(mean(*at, 'test', 'hr@10'))} | {text(mean(*at, 'test_new_titles', 'hr@10'))} | "
            f"{', '.join('not reached' if g is None else str(g) for g in goals) if curve else ''} |"
        )
    apart = ["| vectors against the base model's | turned by | titles | not fitted on | members | distance of titles |"]
    apart.append("|---|---|---|---|---|---|")
    for what in first["drift"]:
        for words, how in TURNED.items():
            at = ("drift", what, how)
            cells = [mean(*at, part, "cosine") for part in ("titles", "titles_not_fitted", "members")]
            cells.append(mean(*at, "titles", "distance"))
            apart.append(f"| {what} | {words} | " + " | ".join(text(c) for c in cells) + " |")
    worst = max(run["scores"]["largest_difference"] for run in runs)
    same = min(run["scores"]["same_first_ten"] for run in runs)
    return "\n\n".join([
        f"Simulated world, {len(runs)} seeds: {first['events']['first']:,} events by day {CUT_DAY}, "
        f"{first['events']['later']:,} by day {WORLD.days}, {first['new_titles']} of {first['titles']:,} titles new.",
        "\n".join(table),
        "Mean cosine of the vectors of what both have, and ‖difference‖ / ‖reference‖:",
        "\n".join(apart),
        f"Alignment changes no score by more than {worst:.1e} of the largest; the first ten titles are the same in the "
        f"same order for {same:.1%} of the members.",
    ]) + "\n"  # fmt: skip


def main(seeds: list[int], epochs: int, warm_epochs: int) -> None:
    words = f"--seed {' '.join(map(str, seeds))} --epochs {epochs} --warm-epochs {warm_epochs}"
    source = provenance(f"python -m frontrow.benchmarks.stability {words}")
    runs = []
    for seed in seeds:
        runs.append(measure(seed, epochs, warm_epochs))
        print(runs[-1], flush=True)
        trial = (epochs, warm_epochs) != (TrainConfig().epochs, WARM_EPOCHS)
        print(write_result("stability", {"simulated": True, "seeds": runs, **source}, trial))


if __name__ == "__main__":
    with command("stability", __doc__) as parser:
        parser.add_argument("--seed", nargs="+", type=seed_of, default=list(SEEDS))
        parser.add_argument("--epochs", type=positive, default=TrainConfig().epochs)
        parser.add_argument("--warm-epochs", type=positive, default=WARM_EPOCHS)
        given = parser.parse_args()
        main(given.seed, given.epochs, given.warm_epochs)
