"""Is the model ahead of RecTools' SASRec and HSTU, and of CF, and how long does each train? One split, run and measure.

    python -m frontrow.benchmarks.quality_peers [--seed 0 …] [--epochs N]    → results/ml-100k-peers.json

Needs `pip install '.[bench]'`: RecTools (an Apache-2.0 library; its own defaults but histories of 200 events). Every
model stops when its validation NDCG@10 has not risen for twelve epochs and keeps its best epoch; the test item is
looked at once. A difference counts as one if its 95 % interval excludes 0. CF and SASRec are not told when a page is
asked for, so that Frontrow is compared with and without it; HSTU is told the time. A run that is there (runs/peers) is
not made again; each says by which commit it was made.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.schema import default_schema
from ..training.baselines import item_item_scores, popularity_scores, user_user_scores
from ..training.batches import Part, evaluated_members, target_positions, training_ends
from ..training.data import Dataset, load_dataset
from ..training.evaluate import ranking_metrics, ranks_by, ranks_of_targets
from ..training.movielens import fetch_movielens_100k
from ..training.runs import best_epoch, read_metrics
from ..training.train import TrainConfig, train
from .command import command, positive, seed_of
from .paired import CUTOFF, difference, gain
from .provenance import provenance, write_result

EPOCHS, PATIENCE = 100, 12
GOAL = 0.156  # HR@10 of a validation item, whose time is noted: what RecTools' SASRec reached in a first trial
RUNS = Path("runs/peers")
BASELINES = {"popularity": popularity_scores, "item-item CF": item_item_scores, "user-user CF": user_user_scores}
OURS = ("frontrow", UNTOLD := "frontrow, not told when")
# By model: (ranks int64 [B] of the test items, epochs and seconds taken, seconds to GOAL or None)
Trained = dict[str, tuple[np.ndarray, dict[str, Any]]]


def frontrow(data: Dataset, seed: int, epochs: int) -> Trained:
    config = replace(TrainConfig(), seed=seed, epochs=min(epochs, TrainConfig().epochs), patience=PATIENCE)
    with tempfile.TemporaryDirectory() as scratch:
        model = train(data, config, Path(scratch))
        lines, epoch = read_metrics(Path(scratch)), int(best_epoch(Path(scratch))["epoch"])
    clock = np.cumsum([line["seconds"] for line in lines])
    how = _summary(epoch, clock, [line["validation_hr@10"] for line in lines])
    untold = ranks_of_targets(model, data, "test", with_request=False)
    return {"frontrow": (ranks_of_targets(model, data, "test"), how), UNTOLD: (untold, how)}


def peer(kind: str, data: Dataset, seed: int, epochs: int) -> Trained:
    """RecTools' model of that name, an epoch at a time, with its best epoch's weights at the end."""
    import pytorch_lightning  # pyright: ignore[reportMissingImports]
    from rectools.models import HSTUModel, SASRecModel  # pyright: ignore[reportMissingImports]

    pytorch_lightning.seed_everything(seed, verbose=False)
    if kind == "sasrec":
        model = SASRecModel(session_max_len=200, deterministic=True)
    else:
        model = HSTUModel(session_max_len=200, deterministic=True, relative_time_attention=True)
    trained, best, kept, epoch = _rectools(data, training_ends(data)), -1.0, None, 0
    clock, hits = [], []
    started = time.monotonic()
    for number in range(1, epochs + 1):
        model.fit_partial(trained, 1, 1)
        found = ranking_metrics(_ranks(model, data, "validation"))
        clock.append(time.monotonic() - started)
        hits.append(found["hr@10"])
        if found["ndcg@10"] > best:
            best, epoch, kept = found["ndcg@10"], number, copy.deepcopy(model.torch_model.state_dict())
        if number - epoch >= PATIENCE:
            break
    assert kept is not None
    model.torch_model.load_state_dict(kept)
    return {f"rectools {kind}": (_ranks(model, data, "test"), _summary(epoch, np.array(clock), hits))}


def _summary(epoch: int, clock: np.ndarray, hits: list[float]) -> dict[str, Any]:
    reached = np.flatnonzero(np.array(hits) >= GOAL)
    return {
        "epoch": epoch,
        "seconds": round(float(clock[-1]), 1),
        f"seconds_to_validation_hr_{GOAL}": round(float(clock[reached[0]]), 1) if len(reached) else None,
    }


def _frame(data: Dataset, rows: np.ndarray) -> Any:
    """Events as RecTools reads them. It orders by time alone: a nanosecond per event keeps the order of ties."""
    import pandas  # pyright: ignore[reportMissingImports]

    member = np.repeat(data.member_ids, np.diff(data.events.offsets))
    times = data.events.timestamp.astype(np.int64) * 10**9 + np.arange(len(data.events.timestamp))
    return pandas.DataFrame(
        {
            "user_id": member[rows],
            "item_id": data.title_indices()[rows],
            "weight": 1.0,
            "datetime": pandas.to_datetime(times[rows]),
        }
    )


def _rectools(data: Dataset, ends: np.ndarray) -> Any:
    """Each member's events up to `ends` int64 [B]."""
    from rectools.dataset import Dataset as RecToolsDataset  # pyright: ignore[reportMissingImports]

    rows = np.concatenate([np.arange(a, b) for a, b in zip(data.events.offsets[:-1], ends, strict=True)])
    return RecToolsDataset.construct(_frame(data, rows))


def _ranks(model: Any, data: Dataset, part: Part) -> np.ndarray:
    """Place int64 [B] of each held-out title among the CUTOFF that the model recommends; N where it is not there."""
    from rectools.dataset.context import get_context  # pyright: ignore[reportMissingImports]

    members = evaluated_members(data)
    positions = target_positions(data, members, part)
    ends = training_ends(data)
    ends[members] = positions
    wanted = dict(zip(data.member_ids[members].tolist(), data.title_indices()[positions].tolist(), strict=True))
    context = get_context(_frame(data, positions)) if model.require_recommend_context else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = model.recommend(
            list(wanted), _rectools(data, ends), k=CUTOFF, filter_viewed=True, context=context,
            on_unsupported_targets="ignore",
        )  # fmt: skip
    hits = shown[shown["item_id"] == shown["user_id"].map(wanted)]
    place = dict(zip(hits["user_id"].tolist(), (hits["rank"] - 1).tolist(), strict=True))
    return np.array([place.get(m, len(data.titles)) for m in wanted])


def markdown(found: dict[str, Any]) -> str:
    """The section of quality.md."""
    by: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"]:
        by.setdefault(run["model"], []).append(run)
    goal = f"seconds_to_validation_hr_{GOAL}"
    seeds = len({run["seed"] for run in found["runs"] if "seed" in run})
    lines = [
        f"MovieLens-100K, one split, one evaluation, one machine, {found['device']}; RecTools "
        f"{found['versions']['rectools']} with its defaults. Means of the seeds; NDCG@10 less the other's, paired by "
        f"seed and member, with 95 % intervals over {'both' if seeds > 1 else 'members, as there is one seed'}. HR@10 "
        f"{GOAL} is what RecTools' SASRec reached on a validation item in a first trial. CF and SASRec are not told "
        "when a page is asked for, HSTU is told the time.",
        "",
        f"| ranked by | seeds | HR@10 | NDCG@10 | seconds of training | until validation HR@10 {GOAL} |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in sorted(by.items(), key=lambda item: -statistics.fmean(r["ndcg@10"] for r in item[1])):
        hit, ndcg, seconds = (statistics.fmean(r[k] for r in runs) for k in ("hr@10", "ndcg@10", "seconds"))
        times = [r[goal] for r in runs if r.get(goal) is not None]
        reached = f"{statistics.fmean(times):.0f} s" if len(times) == len(runs) else "not every seed" if times else "–"
        lines.append(f"| {name} | {len(runs)} | {hit:.4f} | {ndcg:.4f} | {seconds:.0f} | {reached} |")
    lines += ["", "| NDCG@10 less that of | Frontrow | Frontrow, not told when |", "|---|---|---|"]
    for name in (name for name in by if f"{OURS[0]} - {name}" in found["paired"]):
        gaps = (found["paired"][f"{ours} - {name}"] for ours in OURS)
        lines.append(
            f"| {name} | {' | '.join('{mean:+.4f} ({from:+.4f} to {to:+.4f})'.format(**gap) for gap in gaps)} |"
        )
    return "\n".join(lines)


def main(seeds: list[int], epochs: int) -> None:
    data = load_dataset(fetch_movielens_100k(Path("data/movielens-100k")), default_schema())
    source = provenance(
        f"python -m frontrow.benchmarks.quality_peers --epochs {epochs} --seed {' '.join(map(str, seeds))}"
    )
    source["versions"]["rectools"] = importlib.metadata.version("rectools")
    training: dict[str, Callable[[int], Trained]] = {
        "frontrow": lambda seed: frontrow(data, seed, epochs),
        "sasrec": lambda seed: peer("sasrec", data, seed, epochs),
        "hstu": lambda seed: peer("hstu", data, seed, epochs),
    }
    gains: dict[str, list[np.ndarray]] = {}
    runs: list[dict[str, Any]] = []
    for name, scores in BASELINES.items():
        started = time.monotonic()
        ranks = ranks_by(scores(data, "test"), data, "test")
        gains[name] = [gain(ranks)]
        runs.append({"model": name, **_quality(ranks), "seconds": round(time.monotonic() - started, 1)})
    for seed in seeds:
        for kind, once in training.items():
            made_by = {"epochs": epochs, "patience": PATIENCE, **_made_by(kind, source)}
            found = _kept(RUNS / f"{kind}-{seed}.json", made_by, source, lambda once=once, seed=seed: once(seed))
            for name, (ranks, how) in found.items():
                gains.setdefault(name, []).append(gain(ranks))
                runs.append({"model": name, "seed": seed, **_quality(ranks), **how})
                print(runs[-1], flush=True)
            done = [n for n in gains if n in BASELINES or (n not in OURS and len(gains[n]) == len(gains[OURS[0]]))]
            paired = {
                f"{ours} - {name}": difference(np.stack(gains[ours]), np.stack(gains[name]))
                for ours in OURS for name in done
            }  # fmt: skip
            print(write_result("ml-100k-peers", {"runs": runs, "paired": paired, **source}, epochs != EPOCHS))


def _made_by(kind: str, source: dict[str, Any]) -> dict[str, Any]:
    """What a kept run of a model depends on beside its seed and epochs."""
    if kind == "frontrow":
        return {"recipe": repr(TrainConfig())}
    return {"rectools": source["versions"]["rectools"], "torch": source["versions"]["torch"]}


def _quality(ranks: np.ndarray) -> dict[str, float]:
    metrics = ranking_metrics(ranks)
    return {"hr@10": metrics["hr@10"], "ndcg@10": metrics["ndcg@10"]}


def _kept(file: Path, made_by: dict[str, Any], source: dict[str, Any], once: Callable[[], Trained]) -> Trained:
    """What a run gave, and by which commit, from `file` if it was finished before and made by the same."""
    kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if kept.get("made_by") != made_by:
        found = {name: (ranks.tolist(), how) for name, (ranks, how) in once().items()}
        kept = {"made_by": made_by, "found": found, "source": {k: source[k] for k in ("commit", "device", "date")}}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept), "utf-8")
    made = kept.get("source", {})
    return {name: (np.array(ranks), {**how, **made}) for name, (ranks, how) in kept["found"].items()}


if __name__ == "__main__":
    with command("quality_peers", __doc__) as parser:
        parser.add_argument("--seed", nargs="+", type=seed_of, default=[0, 1, 2])
        parser.add_argument("--epochs", type=positive, default=EPOCHS)
        given = parser.parse_args()
        main(given.seed, given.epochs)
