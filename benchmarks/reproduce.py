"""How well are titles ranked on a public data set, or on interactions of your own? Several seeds, beside baselines.

    frontrow reproduce ml-100k                  → results/ml-100k.json and -curves.png
    frontrow reproduce ml-1m --source FOLDER    → results/ml-1m.json and -curves.png
    frontrow reproduce --interactions FILE      → runs/reproduce/<name>/result.json

Leave one out: a member's last event is the test item, looked at once, the one before picks the epoch. A seed that was
stopped goes on where it was; one that is finished is not trained again.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.bundle import read_manifest
from ..foundation.schema import Schema, default_schema
from ..training.batches import evaluated_members
from ..training.data import Dataset, event_count, fingerprint
from ..training.evaluate import asked_again, evaluate
from ..training.export import export_bundle
from ..training.interactions import Interactions, read_ml_1m
from ..training.movielens import fetch_movielens_100k
from ..training.runs import best_epoch, differences, load_run, read_metrics, read_run, train_run
from ..training.train import Progress, TrainConfig
from .provenance import RESULTS, provenance, write_result

RUNS = Path("runs/reproduce")
SEEDS = {"ml-100k": [0, 1, 2, 3, 4], "ml-1m": [0, 1, 2]}
_OTHER_NAME = "give another name (frontrow reproduce NAME --interactions FILE)"
ML_100K = 100_000  # events
ML_1M = [999_611, 6_040, 3_416]  # events, members, titles of the SASRec copy; another version is another data set
PUBLISHED = (
    ("SASRec+ with 3,000 negatives", 0.3159, 0.1857, "Klenitskiy and Vasilev, RecSys 2023, arXiv 2309.07602"),
    ("SASRec+", 0.3152, 0.1821, "the same"),
    ("gSASRec", 0.3003, 0.1726, "asash/gSASRec-pytorch"),
    ("BERT4Rec", 0.2843, 0.1537, "Klenitskiy and Vasilev, their runs"),
    ("SASRec", 0.2500, 0.1341, "Klenitskiy and Vasilev, their runs"),
)
"""HR@10 and NDCG@10 of others on that copy, all titles ranked, as they report them; none was run here."""
PROTOCOL = (
    "leave one out: last event test, second-last validation (picks the epoch), the rest training; all {titles:,} "
    "titles ranked, titles seen before filtered out unless asked for again, ties go to the smaller id; order {order}; "
    "all members with three events or more"
)


def prepare(name: str, source: Path | None, interactions: Interactions | None) -> tuple[Path, Schema, str]:
    """(folder of the data set, its schema, the order of a member's events). Raises DataError or ValueError."""
    if interactions is None and name == "ml-100k":
        folder = fetch_movielens_100k(Path("data/movielens-100k"), source)
        return folder, default_schema(), "(member, timestamp, file order)"
    if interactions is None:
        if name != "ml-1m":
            raise ValueError(f"{name!r} is not one of {', '.join(SEEDS)}; give a file of your own with --interactions")
        if source is None:
            raise ValueError("ml-1m must not be shipped: give --source, a folder with ml-1m.txt of the SASRec code")
        interactions = read_ml_1m(source)
        found = [
            len(interactions.member_id),
            *(len(np.unique(a)) for a in (interactions.member_id, interactions.title_id)),
        ]
        if found != ML_1M:
            words = "{:,} events of {:,} members and {:,} titles"
            raise ValueError(
                f"{source} has {words.format(*found)}, and the copy of the published tables {words.format(*ML_1M)}; "
                "give another data set with --interactions"
            )
    order = "(member, file order)" if interactions.timestamp is None else "(member, timestamp, file order)"
    if name not in SEEDS and not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} names a folder; give letters, digits, '-' and '_' alone")
    # One's own data in a folder of their own: a file called movielens-100k must not pass for that data set.
    folder = Path("data") / name if name in SEEDS else Path("data") / "interactions" / name
    _write(interactions, name, folder)
    return folder, interactions.schema(), order


def _write(interactions: Interactions, name: str, folder: Path) -> None:
    """The data set in its folder, unless a run of that name was trained on another: that run's data stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        made = interactions.write(Path(scratch) / name)
        now = fingerprint(made)
        for file in sorted((RUNS / name).glob("*/run.json")):
            if read_run(file.parent)["data_fingerprint"] != now:
                raise ValueError(f"{file.parent} was trained on other data of that name; remove it, or {_OTHER_NAME}")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def reproduce(
    name: str,
    folder: Path,
    data: Dataset,
    order: str,
    seeds: list[int],
    config: TrainConfig,
    command: str,
    bar: Callable[[int], AbstractContextManager[Callable[[Progress], None]]],
    trial: bool = False,
) -> dict[str, Any]:
    """Trains and evaluates each seed; the result so far is written after each. bar(seed) yields what takes its
    progress. trial: of another recipe, which is no published result."""
    source, runs_of, published = provenance(command), _runs_of(name, trial), name in SEEDS and not trial
    runs: list[dict[str, Any]] = []
    content: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for seed in dict.fromkeys(seeds):
        run = runs_of / f"seed-{seed}"
        before, own = _epochs(run), replace(config, seed=seed)
        if (run / "run.json").is_file() and (changed := differences(run, data, own)):
            other = "" if name in SEEDS else f", or {_OTHER_NAME}"
            raise ValueError(f"{run} is there already, and {', '.join(changed)}; remove it{other}")
        with bar(seed) as on_progress:
            train_run(run, folder, data, own, on_progress, resume=True)
        model, _ = load_run(run)
        table = evaluate(model, data)
        if seed == seeds[0] and name == "ml-100k":
            rows = {"rows": read_manifest(export_bundle(model, data, run / "bundles", {}))["metrics"]["rows"]}
        without = {f"{k}_without_request_fields": v for k, v in table["model_without_request_fields"].items()}
        found = table["model"] | (without if data.schema.request_columns.size else {})
        made = _made_by(run, source, _epochs(run) > before)
        epoch = int(best_epoch(run)["epoch"])
        runs.append({"seed": seed, **found, "epoch": epoch, "seconds": _seconds(run), "made_by": made})
        names = [k for k in runs[0] if k not in ("seed", "made_by")]
        content = {
            "dataset": f"{name}: {len(data.events.ids):,} events, {len(data):,} members, {len(data.titles):,} titles",
            "protocol": PROTOCOL.format(titles=len(data.titles), order=order),
            "members": table["members"],
            "asked_again": int(asked_again(data, "test", evaluated_members(data)).sum()),
            "seeds": runs,
            "mean": {k: statistics.fmean(r[k] for r in runs) for k in names},
            "standard_deviation": {k: statistics.stdev(r[k] for r in runs) for k in names} if len(runs) > 1 else {},
            "baselines": table["baselines"],
            "left_out": table["left_out"],
            **rows,
            **source,
        }
        if published:
            write_result(name, content)
            shutil.copy(runs_of / f"seed-{seeds[0]}" / "curves.png", RESULTS / f"{name}-curves.png")
        else:
            result_file(name, trial).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return content


def ml_100k_runs() -> list[Path]:
    """Runs of MovieLens-100K that there are: those of `frontrow reproduce ml-100k`, else the demo's."""
    finished = [file.parent for file in sorted((RUNS / "ml-100k").glob("seed-*/finished"))]
    return finished or [Path("runs/demo")]


def _runs_of(name: str, trial: bool) -> Path:
    return RUNS / (f"{name}-trial" if trial and name in SEEDS else name)


def result_file(name: str, trial: bool) -> Path:
    """Where the result stands: among the published ones, or beside the runs."""
    return RESULTS / f"{name}.json" if name in SEEDS and not trial else _runs_of(name, trial) / "result.json"


def check_ml_100k(run: Path) -> None:
    """Raises ValueError if a run was not trained on MovieLens-100K, which a published figure says it was."""
    data = Path(read_run(run)["data"])
    if event_count(data) != ML_100K:
        raise ValueError(
            f"{run} was trained on {data}, which is not MovieLens-100K; give a run of `frontrow reproduce ml-100k` or "
            "of `frontrow demo`"
        )


def markdown(found: dict[str, Any]) -> str:
    """The section of quality.md."""
    seeds, mean, spread = found["seeds"], found["mean"], found["standard_deviation"]
    minutes = sum(r["seconds"] for r in seeds) / len(seeds) / 60
    name = found["dataset"].split(":")[0]
    lines = [
        f"{found['dataset']}. {found['protocol'][0].upper()}{found['protocol'][1:]}. {_seeds(seeds)}, {minutes:.0f} "
        f"minutes of training each with validation, on {found['device']}.",
        "",
        "| ranked by | HR@10 | NDCG@10 | MRR | coverage | novelty, bits |",
        "|---|---|---|---|---|---|",
        f"| Frontrow | {_spread(mean, spread, '')} | {mean['coverage']:.2f} | {mean['novelty_bits']:.2f} |",
    ]
    if "hr@10_without_request_fields" in mean:
        cells = _spread(mean, spread, "_without_request_fields")
        rest = f"{mean['coverage_without_request_fields']:.2f} | {mean['novelty_bits_without_request_fields']:.2f}"
        lines.append(f"| Frontrow, not told when the request comes | {cells} | {rest} |")
    for baseline, row in sorted(found["baselines"].items(), key=lambda item: -item[1]["ndcg@10"]):
        cells = " | ".join(f"{row[k]:.4f}" for k in ("hr@10", "ndcg@10", "mrr"))
        label = baseline.replace("_cf", " CF").replace("_", "-")
        lines.append(f"| {label} | {cells} | {row['coverage']:.2f} | {row['novelty_bits']:.2f} |")
    lines += [f"| {baseline} | left out: {why} | | | | |" for baseline, why in found["left_out"].items()]
    if name == "ml-1m":
        lines += [
            "",
            "Published for the same copy and split, all titles ranked, as reported; none of them was run here:",
            "",
        ]
        lines += ["| published | HR@10 | NDCG@10 | by |", "|---|---|---|---|"]
        lines += [f"| {model} | {hit:.4f} | {ndcg:.4f} | {who} |" for model, hit, ndcg, who in PUBLISHED]
    lines += ["", f"![losses per head and validation, {_seeds(seeds[:1])}](results/{name}-curves.png)"]
    return "\n".join(lines)


def _seeds(seeds: list[dict[str, Any]]) -> str:
    each = ", ".join(str(r["seed"]) for r in seeds)
    return f"seed {each}" if len(seeds) == 1 else f"{len(seeds)} seeds ({each}), ± their standard deviation"


def _spread(mean: dict[str, float], spread: dict[str, float], which: str) -> str:
    names = [f"{k}{which}" for k in ("hr@10", "ndcg@10", "mrr")]
    return " | ".join(f"{mean[k]:.4f}" + (f" ± {spread[k]:.4f}" if spread else "") for k in names)


def _epochs(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.csv").is_file() else 0


def _made_by(run: Path, source: dict[str, Any], trained: bool) -> dict[str, str]:
    """Commit, device and date of a seed's training, of each sitting if it had several: the file's own are those of the
    evaluation. Kept in the run; empty for one that was trained elsewhere."""
    file = run / "made-by.json"
    made: dict[str, str] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for name in ("commit", "device", "date") if trained else ():
        sittings = made[name].split(" + ") if name in made else []
        made[name] = " + ".join(dict.fromkeys([*sittings, source[name]]))
    file.write_text(json.dumps(made), "utf-8")
    return made


def _seconds(run: Path) -> float:
    """Of training and of validation after each epoch, however often the run was stopped."""
    with (run / "metrics.csv").open() as file:
        return round(sum(float(row["seconds"]) for row in csv.DictReader(file)), 1)
