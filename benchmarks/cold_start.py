"""Are titles ranked well that nobody has played yet? Titles held out of training entirely, only their metadata known.

    python -m frontrow.benchmarks.cold_start [--data ml-100k world] [--seed N …] [--id-dropout P …]
        → results/cold-start.json, results/cold-start.png; runs/trials/… for some data, shares or epochs only

ml-100k: a tenth of the titles, drawn at random from each tenth by popularity, loses all its training events. world: the
simulated world is cut at CUT_DAY; training ends there, the new titles are those released later. Either way the events
about new titles are then asked for, with everything the member did before as history: the newest PER_MEMBER of each
member. New titles are ranked among themselves (those the member has played before left out), then in the whole
catalogue; events about warm titles, which training did not see, are asked for in the same way. Two ways of giving a new
title a vector are compared on the same weights: the unknown id's embedding, and the mix of similar titles' embeddings.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.model import FoundationModel
from ..training.batches import batch_before, evaluated_members, trained_titles, training_events
from ..training.runs import differences, load_run, train_run
from ..training.similar_titles import metadata_vectors, mixing_weights
from ..training.train import TrainConfig
from ..training.world_population import DAY
from .cold_splits import SPLITS, Split
from .command import command, positive, seed_of
from .provenance import RESULTS, TRIALS, provenance, write_result

SEEDS = (101, 102, 103)  # of the draw of titles, or of the world, and of the training; below 100 for trying things out
ID_DROPOUTS = (0.0, 0.1, 0.3)
EPOCHS = {"ml-100k": 12, "world": 24}  # the recipe's 24 where an epoch has few events
CUTOFF = 10
RANKED_BY = {
    "model": "Frontrow",
    "mix": "Frontrow, id embedding mixed from similar titles",
    "metadata": "nearest to the mean metadata of the history",
    "similar_popularity": "popularity of similar titles",
    "nightly_popularity": "popularity since release, counted up to the last midnight",
    "live_popularity": "popularity since release, counted up to the request",
    "popularity": "popularity in the whole log, the future too",
    "random": "random",
}


def trained(split: Split, seed: int, id_dropout: float, epochs: int) -> FoundationModel:
    """The model of a split; read where it is trained already."""
    config = TrainConfig(epochs=epochs, seed=seed)
    config = replace(config, model=replace(config.model, id_dropout=id_dropout))
    run = split.folder.parent / f"id-dropout-{id_dropout}"
    if (run / "run.json").is_file() and differences(run, split.train, config):
        shutil.rmtree(run)
    train_run(run, split.folder, split.train, config, resume=True)
    return load_run(run)[0]


def similar_popularity(split: Split) -> np.ndarray:
    """float32 [N]: mean training plays of the titles most alike by metadata: known before a title's release."""
    data = split.train
    index = data.title_indices()
    plays = np.bincount(index[training_events(data)], minlength=len(data.titles)).astype(np.float32)
    known = np.flatnonzero(trained_titles(data))
    return mixing_weights(data, np.arange(len(data.titles)), known) @ plays[known]


@torch.no_grad()
def mixed_titles(model: FoundationModel, split: Split) -> torch.Tensor:
    """Title vectors [N, D] where new titles take the mix of similar titles' id embeddings in place of the unknown's."""
    vectors = model.title_vectors().clone()
    new, known = np.flatnonzero(split.new), np.flatnonzero(trained_titles(split.train))
    table = model.events.table(split.train.schema.id_field.name)
    mix = torch.from_numpy(mixing_weights(split.train, new, known)) @ table[2 + known]
    vectors[new] += mix - table[1]
    return vectors


@torch.no_grad()
def ranked(model: FoundationModel, split: Split, positions: np.ndarray) -> dict[str, np.ndarray]:
    """By ranking: the place int64 [Q] of each asked title among the unseen new ones; `candidates` [Q], how many these
    are. By the model and the mix only, in the whole catalogue: `full`, the place, `shown`, new ones of the top 10."""
    data, new = split.full, np.flatnonzero(split.new)
    index, when = data.title_indices(), data.events.timestamp
    member = np.searchsorted(data.events.offsets, positions, side="right") - 1
    vectors, mixed = model.title_vectors(), mixed_titles(model, split)
    metadata = metadata_vectors(split.train)
    metadata /= np.maximum(np.linalg.norm(metadata, axis=1, keepdims=True), 1e-12)
    similar = similar_popularity(split)
    times = {int(t): np.sort(when[index == t]) for t in new}
    total = np.array([len(times[int(t)]) for t in range(len(split.new)) if split.new[t]], np.float32)
    whole = ("model full", "mix full", "model shown", "mix shown")
    found: dict[str, list[Any]] = {name: [] for name in (*RANKED_BY, "candidates", *whole)}
    for piece in np.array_split(np.arange(len(positions)), max(1, len(positions) // 128)):
        tokens, offsets = batch_before(data, positions[piece], model.config.max_events, True)
        members, _ = model.encode(tokens, offsets)
        scores, by_mix = (members @ vectors.T).numpy(), (members @ mixed.T).numpy()
        for i, at in enumerate(positions[piece].tolist()):
            target, seen = int(index[at]), index[data.events.offsets[member[piece[i]]] : at]
            seen = seen[(seen >= 0) & (seen != target)]
            unseen = np.ones(len(split.new), bool)
            unseen[seen] = False
            for name, values in (("model", scores[i]), ("mix", by_mix[i])):
                every = np.where(unseen, values, -np.inf)
                found[f"{name} full"].append(_place(every, target))
                found[f"{name} shown"].append(int(split.new[np.argsort(-every, kind="stable")[:CUTOFF]].sum()))
            if not split.new[target]:
                continue
            left, goal = new[unseen[new]], int((new[unseen[new]] < target).sum())
            taste = metadata[seen].sum(0)
            midnight = when[at] // DAY * DAY
            live, nightly = (
                np.array([np.searchsorted(times[int(t)], until) for t in left], np.float32)
                for until in (when[at], midnight)
            )
            rankings = {
                "model": scores[i][left], "mix": by_mix[i][left], "metadata": metadata[left] @ taste,
                "similar_popularity": similar[left], "nightly_popularity": nightly, "live_popularity": live,
                "popularity": total[unseen[new]],
            }  # fmt: skip
            for name, values in rankings.items():
                found[name].append(_place(values, goal))
            found["candidates"].append(len(left))
    return {name: np.array(values) for name, values in found.items()}


def _place(scores: np.ndarray, target: int) -> int:
    """Of the target among scores [K]: 0 is best, ties go to the smaller index."""
    own = scores[target]
    return int((scores > own).sum() + (scores[:target] == own).sum())


def measured(split: Split, model: FoundationModel) -> dict[str, Any]:
    """What a trained model's result says of a split."""
    cold, warm = ranked(model, split, split.asked), ranked(model, split, split.warm)
    gains = 1 / np.log2(np.arange(CUTOFF) + 2.0)
    candidates = cold["candidates"]
    among = {
        name: {
            f"hr@{CUTOFF}": float((cold[name] < CUTOFF).mean()),
            f"ndcg@{CUTOFF}": float(np.where(cold[name] < CUTOFF, 1 / np.log2(cold[name] + 2.0), 0.0).mean()),
        }
        for name in RANKED_BY
        if name != "random"
    }
    some = np.minimum(CUTOFF, candidates)
    among["random"] = {
        f"hr@{CUTOFF}": float((some / candidates).mean()),
        f"ndcg@{CUTOFF}": float((gains.cumsum()[some - 1] / candidates).mean()),
    }
    member = np.searchsorted(split.full.events.offsets, split.asked, side="right") - 1
    ahead = {
        name: _difference(cold["model"] < CUTOFF, cold[name] < CUTOFF, member) for name in among if name != "random"
    }
    catalogue = len(split.new)
    return {
        "new_titles": int(split.new.sum()), "catalogue": catalogue, "asked": len(split.asked),
        "members": len(np.unique(member)), "training_events": int(training_events(split.train).sum()),
        "evaluated_members": len(evaluated_members(split.train)), "among_new": among,
        f"hr@{CUTOFF}_model_minus": {name: d for name, d in ahead.items() if name != "model"},
        "full": {
            "asked_warm": len(split.warm),
            **{f"hr@{CUTOFF}_new_{by}": float((cold[f"{by} full"] < CUTOFF).mean()) for by in ("model", "mix")},
            **{f"hr@{CUTOFF}_warm_{by}": float((warm[f"{by} full"] < CUTOFF).mean()) for by in ("model", "mix")},
            **{f"share_of_shown_new_{by}": float(warm[f"{by} shown"].mean() / CUTOFF) for by in ("model", "mix")},
            "share_of_catalogue_new": float(split.new.mean()),
            "share_of_events_new": _share_new(split),
        },
    }  # fmt: skip


def _share_new(split: Split) -> float:
    """Of the events at the time of those asked for, the share about new titles."""
    index, when = split.full.title_indices(), split.full.events.timestamp
    late = when >= when[split.asked].min()
    return float(split.new[index[late]].mean())


def _difference(ours: np.ndarray, theirs: np.ndarray, member: np.ndarray) -> list[float]:
    """[mean, from, to] of the difference in hits: a 95 % interval over members, whose events are not independent."""
    _, group = np.unique(member, return_inverse=True)
    count = np.bincount(group)
    each = np.bincount(group, ours.astype(float) - theirs) / count.mean()
    mean = float(ours.mean() - theirs.mean())
    half = float(1.96 * (each - mean * count / count.mean()).std(ddof=1) / len(each) ** 0.5)
    return [mean, mean - half, mean + half]


def means(runs: list[dict[str, Any]], *path: str) -> float:
    """The mean over seeds of what stands at a path in each run."""
    values = []
    for run in runs:
        at: Any = run
        for key in path:
            at = at[key]
        values.append(at)
    return float(np.mean(values))


def _parts(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, list[dict[str, Any]]]]]:
    """(key, words, runs by id dropout) of each data set in a result."""
    for name, words in (("ml-100k", "MovieLens-100K"), ("world", "Simulated world")):
        if name in found:
            yield name, words, found[name]


def markdown(found: dict[str, Any]) -> str:
    """The section on cold titles, of the content of results/cold-start.json."""
    blocks = [
        "Titles held out of training entirely: only their metadata is known. Random is the expectation. Popularity "
        "since release counts plays by the last midnight, or by the request: nothing on the day of the release, and "
        "the model knows none of them. The whole log knows the future. The popularity of similar titles is known at "
        "release.",
        "![cold titles](results/cold-start.png)",
    ]
    metric, usual = f"hr@{CUTOFF}", str(found["id_dropout"])
    for _, words, by_dropout in _parts(found):
        runs = by_dropout[usual]
        head = f"{words}, {len(runs)} seeds, {means(runs, 'new_titles'):.0f} new of {runs[0]['catalogue']:,} titles, "
        head += f"{means(runs, 'asked'):,.0f} events asked for"
        table = ["| new titles ranked by | HR@10 among them | NDCG@10 |", "|---|---|---|"]
        for name, text in RANKED_BY.items():
            values = [means(runs, "among_new", name, m) for m in (metric, f"ndcg@{CUTOFF}")]
            table.append(f"| {text} | {values[0]:.3f} | {values[1]:.3f} |")
        blocks += [head + ":", "\n".join(table)]
        table = ["| ids dropped in training | new titles: HR@10 | mixed from similar ones | warm titles, all ranked |"]
        table.append("|---|---|---|---|")
        for dropout, of in by_dropout.items():
            values = [means(of, "among_new", by, metric) for by in ("model", "mix")]
            values.append(means(of, "full", f"{metric}_warm_model"))
            table.append(f"| {dropout} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
        full = {key: means(runs, "full", key) for key in runs[0]["full"]}
        blocks += [
            "\n".join(table),
            f"In the whole catalogue new titles are {full['share_of_catalogue_new']:.1%} of the titles and "
            f"{full['share_of_events_new']:.1%} of the events of that time, and fill "
            f"{full['share_of_shown_new_model']:.1%} of the places in the first ten "
            f"({full['share_of_shown_new_mix']:.1%} mixed); HR@10 of new titles there "
            f"{full[f'{metric}_new_model']:.3f} ({full[f'{metric}_new_mix']:.3f} mixed), of warm ones "
            f"{full[f'{metric}_warm_model']:.3f}.",
        ]
    return "\n\n".join(blocks) + "\n"


def draw(found: dict[str, Any], file: Path) -> None:
    """HR@10 among new titles, by ranking, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = list(_parts(found))
    figure, axes = plt.subplots(1, len(parts), figsize=(6.5 * len(parts), 3.8), layout="constrained", squeeze=False)
    for axis, (_, words, by_dropout) in zip(axes[0], parts, strict=True):
        runs = by_dropout[str(found["id_dropout"])]
        for i, by in enumerate(RANKED_BY):
            each = [run["among_new"][by][f"hr@{CUTOFF}"] for run in runs]
            axis.barh(i, np.mean(each), color="tab:blue" if by in ("model", "mix") else "lightgrey")
            axis.plot(each, [i] * len(each), "k.", markersize=4)
        axis.set_yticks(range(len(RANKED_BY)), [text.replace(", ", ",\n") for text in RANKED_BY.values()], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("HR@10 among new titles (dots: seeds)")
        axis.set_title(words)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(names: list[str], seeds: list[int], dropouts: list[float], epochs: int | None) -> None:
    words = " ".join(
        ["--data", *names, "--seed", *map(str, seeds), "--id-dropout", *map(str, dropouts)]
        + ([] if epochs is None else ["--epochs", str(epochs)])
    )
    source = provenance(f"python -m frontrow.benchmarks.cold_start {words}")
    found: dict[str, Any] = {"id_dropout": TrainConfig().model.id_dropout}
    trial = epochs is not None or set(names) != set(SPLITS) or set(dropouts) != set(ID_DROPOUTS)
    for name in names:
        found[name] = {str(p): [] for p in dropouts}
        for seed in seeds:
            split = SPLITS[name](seed)
            for p in dropouts:
                started = time.monotonic()
                model = trained(split, seed, p, epochs or EPOCHS[name])
                run = {"seed": seed, "epochs": epochs or EPOCHS[name], **measured(split, model)}
                found[name][str(p)].append(run)
                print(name, seed, p, f"{time.monotonic() - started:.0f} s", json.dumps(run["among_new"]), flush=True)
                write_result("cold-start", {**found, **source}, trial)
    draw(found, (TRIALS if trial else RESULTS) / "cold-start.png")


if __name__ == "__main__":
    usual = TrainConfig().model.id_dropout
    with command("cold_start", __doc__) as parser:
        parser.add_argument("--data", nargs="+", choices=list(SPLITS), default=list(SPLITS))
        parser.add_argument("--seed", nargs="+", type=seed_of, default=list(SEEDS))
        parser.add_argument("--id-dropout", nargs="+", type=float, default=list(ID_DROPOUTS))
        parser.add_argument("--epochs", type=positive, help="in place of 12 for ml-100k and 24 for world")
        given = parser.parse_args()
        if usual not in given.id_dropout:
            parser.error(f"--id-dropout must include {usual}, the recipe's")
        if wrong := [p for p in given.id_dropout if not 0 <= p < 1]:
            parser.error(f"--id-dropout has {wrong[0]}; give shares from 0, below 1")
        main(given.data, list(dict.fromkeys(given.seed)), given.id_dropout, given.epochs)
