"""What is each ingredient of the recipe worth on MovieLens-100K? Each variant changes one; the base has them all.

    python -m frontrow.benchmarks.ablations [--variant NAME …] [--seed 0 …] [--epochs N] [--workers N]
                                                      → results/ablations-ml-100k.json and .png

Judged on the validation item; the test item is never looked at. Seeds come one after the other, all variants of each.
A run that is there (runs/ablations) is not made again; results are written after each. Differences to the base are
paired by seed and member. On a host without GPU give OMP_NUM_THREADS=1 and as many workers as cores.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.schema import Schema, default_schema
from ..training.data import Dataset, load_dataset
from ..training.evaluate import ranking_metrics, ranks_of_targets
from ..training.movielens import fetch_movielens_100k
from ..training.runs import best_epoch, read_metrics
from ..training.train import TrainConfig, train
from .ablation_variants import BASE, VARIANTS, Variant
from .command import command, positive, seed_of
from .paired import difference, gain
from .provenance import provenance, write_result

RUNS = Path("runs/ablations")
NAME = "ablations-ml-100k"
EPOCHS, BATCH_TOKENS, WARMUP = 10, 1000, 100  # a short schedule: smaller batches make up for fewer epochs
SEEDS = [0, 1, 2, 3, 4]
CLEAR = 5  # seeds from which a difference may be called one
PROTOCOL = (
    "leave one out; the second-last event of each member, the validation item, picks the epoch and is judged; it is "
    "ranked among all titles, those seen before filtered out; the request's own fields are known"
)

Task = tuple[str, int, int]  # name of a variant, seed, epochs


@cache
def dataset(schema: Schema) -> Dataset:
    return load_dataset(fetch_movielens_100k(Path("data/movielens-100k")), schema)


def run_file(name: str, seed: int, epochs: int) -> Path:
    return RUNS / f"{epochs}-epochs" / name / f"seed-{seed}.json"


def run(name: str, seed: int, epochs: int, source: dict[str, Any]) -> dict[str, Any]:
    """Train one variant with one seed and keep the ranks of the validation items in its file. source: where from."""
    variant = next(v for v in VARIANTS if v.name == name)
    data = dataset(variant.schema(default_schema()))
    short = TrainConfig(seed=seed, epochs=epochs, patience=epochs, warmup_steps=WARMUP, batch_tokens=BATCH_TOKENS)
    config = variant.config(short)
    with tempfile.TemporaryDirectory() as scratch:
        model = train(data, config, Path(scratch), build=variant.build, batches_of=variant.batches_of)
        lines, best = read_metrics(Path(scratch)), best_epoch(Path(scratch))
    ranks = ranks_of_targets(model, data, "validation")
    content = {
        "seed": seed,
        "epoch": int(best["epoch"]),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ranks": ranks.tolist(),
        "ranks_without_request": ranks_of_targets(model, data, "validation", with_request=False).tolist(),
        **{key: source[key] for key in ("device", "commit", "date")},
    }
    file = run_file(name, seed, epochs)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(content), "utf-8")
    scratch.replace(file)
    return content


def measures(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Of each member, float64 [B]. log_rank: natural logarithm of the place, from 1; lower is better."""
    return {"ndcg@10": gain(ranks), "mrr": 1 / (ranks + 1.0), "log_rank": np.log(ranks + 1.0)}


def summary(epochs: int) -> dict[str, Any]:
    """What the finished runs say: every variant's seeds, and its differences to the base over the seeds of both."""
    runs = {v.name: dict(_runs(v, epochs)) for v in VARIANTS}
    base, found = runs[BASE.name], []
    for v in (v for v in VARIANTS if runs[v.name]):
        own = runs[v.name]
        seeds = [
            {"seed": seed, **ranking_metrics(np.array(r["ranks"])),
             "ndcg@10_without_request": float(gain(np.array(r["ranks_without_request"])).mean()),
             **{key: r[key] for key in ("epoch", "seconds", "device", "commit", "date")}}
            for seed, r in own.items()
        ]  # fmt: skip
        entry = {"name": v.name, "ingredient": v.ingredient, "change": v.change, "seeds": seeds}
        entry["parameters"] = next(iter(own.values()))["parameters"]
        entry["mean"] = {key: float(np.mean([s[key] for s in seeds])) for key in ("hr@10", "ndcg@10", "mrr")}
        if v is not BASE and (shared := sorted(own.keys() & base.keys())):
            ours, theirs = ([measures(np.array(of[s]["ranks"])) for s in shared] for of in (own, base))
            entry["difference"] = {"seeds": shared} | {
                key: difference(np.stack([m[key] for m in ours]), np.stack([m[key] for m in theirs])) for key in ours[0]
            }
        found.append(entry)
    return {
        "epochs": epochs,
        "batch_tokens": BATCH_TOKENS,
        "warmup_steps": WARMUP,
        "clear_from_seeds": CLEAR,
        "variants": found,
    }


def _runs(variant: Variant, epochs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    folder = run_file(variant.name, 0, epochs).parent
    for file in sorted(folder.glob("seed-*.json"), key=lambda f: int(f.stem.removeprefix("seed-"))):
        content = json.loads(file.read_text("utf-8"))
        yield content["seed"], content


def verdict(entry: dict[str, Any], clear_from: int) -> str:
    """What a variant's difference in NDCG@10 says."""
    of = entry["difference"]
    if len(of["seeds"]) < clear_from:
        return f"open: {len(of['seeds'])} of {clear_from} seeds"
    low, high = of["ndcg@10"]["from"], of["ndcg@10"]["to"]
    return "worse" if high < 0 else "better" if low > 0 else "no clear difference"


def markdown(found: dict[str, Any]) -> str:
    """The section's text, from the result alone."""
    base = next(v for v in found["variants"] if v["name"] == BASE.name)
    lines = [
        f"{found['dataset']}. {found['protocol'][0].upper()}{found['protocol'][1:]}. A short schedule of "
        f"{found['epochs']} epochs in batches of {found['batch_tokens']:,} tokens, on which the base reaches HR@10 "
        f"{base['mean']['hr@10']:.3f} and NDCG@10 {base['mean']['ndcg@10']:.3f} (mean of {len(base['seeds'])} seeds). "
        "Differences are variant minus base, paired by seed and member, with 95 % intervals over both; a verdict on "
        f"NDCG@10 from {found['clear_from_seeds']} seeds on. One variant in twenty would seem to differ by chance.",
        "",
        "| ingredient | variant | seeds | NDCG@10 | difference | MRR, difference | log rank, difference | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for v in found["variants"]:
        if "difference" in v:
            of = v["difference"]
            cells = [f"{of[k]['mean']:+.{d}f} ({of[k]['from']:+.{d}f} to {of[k]['to']:+.{d}f})" for k, d in
                     (("ndcg@10", 4), ("mrr", 4), ("log_rank", 3))]  # fmt: skip
            lines.append(
                f"| {v['ingredient']} | {v['change']} | {len(of['seeds'])} | {v['mean']['ndcg@10']:.4f} | "
                f"{' | '.join(cells)} | {verdict(v, found['clear_from_seeds'])} |"
            )
    shown = {v["name"] for v in found["variants"]}
    left = [f"{v.ingredient}: {v.change}" for v in VARIANTS if v.name not in shown]
    note = "Log rank is the mean natural logarithm of the title's place: lower is better, and less noisy than NDCG@10."
    if left:
        note += f" Written and not run: {'; '.join(left)}."
    return "\n".join([*lines, "", note, "", f"![differences in NDCG@10](results/{NAME}.png)", ""])


def draw(found: dict[str, Any], path: Path) -> None:
    """Bars of the difference in NDCG@10 with intervals, an ingredient after the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [v for v in found["variants"] if "difference" in v]
    if not shown:
        return
    base = next(v for v in found["variants"] if v["name"] == BASE.name)
    colours = {"worse": "tab:red", "better": "tab:green", "no clear difference": "tab:blue"}
    figure, axis = plt.subplots(figsize=(9, 1.5 + 0.27 * len(shown)), layout="constrained")
    for place, v in enumerate(shown):
        of = v["difference"]["ndcg@10"]
        error = [[of["mean"] - of["from"]], [of["to"] - of["mean"]]]
        colour = colours.get(verdict(v, found["clear_from_seeds"]), "silver")
        axis.barh(place, of["mean"], xerr=error, color=colour, ecolor="black", capsize=2, height=0.7)
    labels = [f"{v['ingredient']}: {v['change']} ({len(v['difference']['seeds'])})" for v in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=9)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(f"NDCG@10 of the validation item, variant − base ({base['mean']['ndcg@10']:.3f}); 95 % intervals")
    axis.set_title(f"MovieLens-100K, {found['epochs']} epochs; in brackets: seeds", fontsize=10)
    for name, colour in (colours | {"too few seeds": "silver"}).items():
        axis.barh(0, 0, color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(names: Sequence[str], seeds: Sequence[int], epochs: int, workers: int) -> None:
    chosen = [v.name for v in VARIANTS if v.name in names or not names]
    todo = [(name, seed, epochs) for seed in seeds for name in chosen if not run_file(name, seed, epochs).is_file()]
    data = dataset(default_schema())
    command = "python -m frontrow.benchmarks.ablations" + (f" --epochs {epochs}" if epochs != EPOCHS else "")
    about = {
        "dataset": f"MovieLens-100K: {len(data.events.ids):,} events of {len(data)} members",
        "protocol": PROTOCOL,
    }
    source = provenance(command)

    def write() -> None:
        content = {**about, **summary(epochs), **source}
        if not any(v["name"] == BASE.name for v in content["variants"]):
            return  # nothing to compare with yet
        file = write_result(NAME, content, trial=epochs != EPOCHS)
        print(file, flush=True)
        draw(content, file.with_suffix(".png"))

    write()
    for task, found in finished(todo, workers, source):
        metrics = ranking_metrics(np.array(found["ranks"]))
        print(*task, *(f"{k} {v:.4f}" for k, v in metrics.items()), found["seconds"], "s", flush=True)
        write()


def finished(todo: Sequence[Task], workers: int, source: dict[str, Any]) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Runs as they are done; by one worker in this process."""
    if workers == 1:
        yield from ((task, run(*task, source)) for task in todo)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run, *task, source): task for task in todo}
        for done in as_completed(running):
            yield running[done], done.result()


if __name__ == "__main__":
    with command("ablations", __doc__) as parser:
        parser.add_argument("--variant", nargs="+", default=[], choices=[v.name for v in VARIANTS], metavar="NAME")
        parser.add_argument("--seed", nargs="+", type=seed_of, default=SEEDS)
        parser.add_argument("--epochs", type=positive, default=EPOCHS)
        parser.add_argument("--workers", type=positive, default=1)
        given = parser.parse_args()
        main(given.variant, given.seed, given.epochs, given.workers)
