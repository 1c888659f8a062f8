"""How good is the page of somebody new? Quality as a function of how much of a member's history the model may read.

    python -m frontrow.benchmarks.history_length [--run RUN …]    → results/history-length.json, .png

No training: runs on MovieLens-100K are read. Everybody's held-out test title is ranked again and again, by the model
that reads only the newest (or only the first) n events and nothing at n = 0, the anonymous page. The titles that the
member has seen are left out at every n, as for popularity, so that all rank the same candidates. The request's time is
known at every n; how long ago the newest event known was is told too, as serving would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.encoding import Encoded, encode_time
from ..foundation.model import FoundationModel
from ..training.baselines import popularity_scores
from ..training.batches import batch_before, evaluated_members, target_positions
from ..training.data import Dataset
from ..training.evaluate import ranks_by
from ..training.runs import load_run, read_run
from .command import command
from .provenance import RESULTS, provenance, write_result
from .reproduce import check_ml_100k, ml_100k_runs

LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
CUTOFF, LONG = 10, 200
GROUPS = {"all": "all members", "long": f"members with {LONG} events or more"}
KEPT = {"newest": "the newest n events", "first": "the first n events"}


def shortened(data: Dataset, length: int, kept: str) -> Dataset:
    """Every evaluated member with only the newest or the first `length` events before the test event, and that event.

    Gaps are those of the shortened history."""
    members = evaluated_members(data)
    targets = target_positions(data, members, "test")
    starts = data.events.offsets[members]
    count = np.minimum(targets - starts, length)
    begin = targets - count if kept == "newest" else starts
    pieces = [[*range(b, b + n), t] for b, n, t in zip(begin.tolist(), count.tolist(), targets.tolist(), strict=True)]
    rows = np.concatenate(pieces)
    offsets = np.concatenate([[0], np.cumsum(count + 1)])
    ids, times = data.events.ids[rows].copy(), data.events.timestamp[rows]
    for f in data.schema.fields:
        if f.kind == "gap":
            ids[:, data.schema.spans[f.name][0]] = encode_time(f, times, offsets)
    return replace(data, member_ids=data.member_ids[members], events=Encoded(ids, times, offsets))


@torch.no_grad()
def ranks(model: FoundationModel, data: Dataset, length: int, kept: str) -> np.ndarray:
    """The place int64 [B] of each test title among those that the member has not seen."""
    short, members = shortened(data, length, kept), evaluated_members(data)
    vectors, longest = model.title_vectors(), model.config.max_events

    def score(wanted: np.ndarray) -> np.ndarray:
        at = np.searchsorted(members, wanted)
        vector, _ = model.encode(*batch_before(short, short.events.offsets[at + 1] - 1, longest, True))
        return (vector @ vectors.T).numpy()

    return ranks_by(score, data, "test")


def band(hits: np.ndarray) -> dict[str, float]:
    """Of hits [runs, B]: the mean with its 95 % interval over members, of each member's mean over runs."""
    each = hits.mean(0)
    half = 1.96 * each.std(ddof=1) / len(each) ** 0.5
    return {"mean": float(each.mean()), "from": float(each.mean() - half), "to": float(each.mean() + half)}


def measure(runs: list[Path]) -> dict[str, Any]:
    """By how histories are shortened, group of members and n: HR@10 and NDCG@10 with their bands."""
    models = [load_run(run) for run in runs]
    data = models[0][1]
    assert all(other.fingerprint == data.fingerprint for _, other in models), "the runs are of different data"
    members = evaluated_members(data)
    history = target_positions(data, members, "test") - data.events.offsets[members]
    groups = {"all": np.ones(len(members), bool), "long": history >= LONG}

    def summary(places: np.ndarray) -> dict[str, Any]:
        gain = np.where(places < CUTOFF, 1 / np.log2(places + 2.0), 0.0)
        return {
            g: {f"hr@{CUTOFF}": band((places < CUTOFF)[:, some]), f"ndcg@{CUTOFF}": band(gain[:, some])}
            for g, some in groups.items()
        }

    popular = ranks_by(popularity_scores(data, "test"), data, "test")[None]
    found: dict[str, Any] = {kept: {} for kept in KEPT}
    for kept in KEPT:
        for n in LENGTHS:
            places = np.stack([ranks(model.eval(), data, n, kept) for model, _ in models])
            ahead = (places < CUTOFF) * 1.0 - (popular < CUTOFF)
            paired = {g: {"ahead": band(ahead[:, some])} for g, some in groups.items()}
            found[kept][str(n)] = {g: of | paired[g] for g, of in summary(places).items()}
            print(kept, n, found[kept][str(n)]["all"], flush=True)
    sizes = {g: int(some.sum()) for g, some in groups.items()}
    return {"members": sizes, "shortest_history": int(history.min()), **found, "popularity": summary(popular)}


def markdown(found: dict[str, Any]) -> str:
    """The section on new members, of the content of results/history-length.json."""
    metric = f"hr@{CUTOFF}"

    def cell(of: dict[str, Any]) -> str:
        value = of[metric]
        return f"{value['mean']:.3f} ({value['from']:.3f} to {value['to']:.3f})"

    def paired(kept: str, lengths: Sequence[int]) -> str:
        each = ((n, found[kept][str(n)]["all"]["ahead"]) for n in lengths)
        return ", ".join(f"n = {n} {of['mean']:+.3f} ({of['from']:+.3f} to {of['to']:+.3f})" for n, of in each)

    heads = [f"{KEPT[kept]}, {GROUPS[g]}" for kept in KEPT for g in GROUPS]
    table = ["| n | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for n in LENGTHS:
        table.append(f"| {n} | " + " | ".join(cell(found[kept][str(n)][g]) for kept in KEPT for g in GROUPS) + " |")
    table.append("| popularity | " + " | ".join(cell(found["popularity"][g]) for _ in KEPT for g in GROUPS) + " |")
    return "\n\n".join([
        f"HR@10 of the same test titles when the model reads at most n events of a member, {found['members']['all']} "
        f"members, of whom {found['members']['long']} have {LONG} or more; the shortest history has "
        f"{found['shortest_history']}, and is read whole where n is larger. n = 0 is the anonymous page. The "
        "first n events are old when the test item comes, the older the longer a history is; for every n the titles of "
        "the whole history are left out. In brackets: "
        f"95 % over members. Training seeds: {', '.join(str(run['seed']) for run in found['runs'])}.",
        f"HR@10 less that of popularity, all members, paired: {paired('newest', LENGTHS)}; the first n events: "
        f"{paired('first', LENGTHS[1:])}.",
        "![quality against history length](results/history-length.png)",
        "\n".join(table),
    ]) + "\n"  # fmt: skip


def draw(found: dict[str, Any]) -> None:
    """results/history-length.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric, x = f"hr@{CUTOFF}", range(len(LENGTHS))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for axis, (g, words) in zip(axes, GROUPS.items(), strict=True):
        for kept, text in KEPT.items():
            values = [found[kept][str(n)][g][metric] for n in LENGTHS]
            (line,) = axis.plot(x, [v["mean"] for v in values], marker="o", label=f"Frontrow, {text}")
            low, high = [v["from"] for v in values], [v["to"] for v in values]
            axis.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        popular = found["popularity"][g][metric]
        axis.axhline(popular["mean"], color="grey", linestyle="dashed", label="popularity")
        axis.axhspan(popular["from"], popular["to"], color="grey", alpha=0.12)
        axis.set_xticks(x, [str(n) for n in LENGTHS])
        axis.set(title=f"{words} ({found['members'][g]})", xlabel="events known, at most", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("HR@10 of the test title")
    axes[0].legend(frameon=False, loc="upper left", fontsize=9)
    figure.suptitle("MovieLens-100K: quality against history length (bands: 95 % over members)")
    figure.savefig(RESULTS / "history-length.png", dpi=120)
    plt.close(figure)


def main(runs: list[Path]) -> None:
    for run in runs:
        check_ml_100k(run)
    source = provenance(f"python -m frontrow.benchmarks.history_length --run {' '.join(map(str, runs))}")
    found = {"dataset": "ml-100k", "runs": [{"run": r.name, "seed": _seed(r)} for r in runs], **measure(runs), **source}
    print(write_result("history-length", found))
    draw(found)


def _seed(run: Path) -> int:
    return int(read_run(run)["config"]["seed"])


if __name__ == "__main__":
    with command("history_length", __doc__) as parser:
        parser.add_argument("--run", nargs="+", type=Path, default=ml_100k_runs())
        main(parser.parse_args().run)
