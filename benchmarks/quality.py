"""Writes quality.md: what is known about quality, every number of it from a committed result file.

python -m frontrow.benchmarks.quality
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from .cold_start import means
from .command import command
from .provenance import RESULTS
from .reproduce import PUBLISHED

PAGE = Path(__file__).parent / "quality.md"
# (heading, module of this package whose `markdown` writes the section, result file, command that measures it)
SECTIONS = (
    ("MovieLens-1M", "reproduce", "ml-1m", "frontrow reproduce ml-1m --source FOLDER"),
    ("MovieLens-100K", "reproduce", "ml-100k", "frontrow reproduce ml-100k"),
    ("Beside other libraries", "quality_peers", "ml-100k-peers", "python -m frontrow.benchmarks.quality_peers"),
    ("What each ingredient is worth", "ablations", "ablations-ml-100k", "python -m frontrow.benchmarks.ablations"),
    ("Rows and the page", "rows", "rows", "python -m frontrow.benchmarks.rows"),
    ("Search and more like this", "surfaces", "surfaces", "python -m frontrow.benchmarks.surfaces"),
    (
        "Calibration, diversity and what they cost",
        "beyond_accuracy_report",
        "beyond-accuracy",
        "python -m frontrow.benchmarks.beyond_accuracy",
    ),
    ("New members", "history_length", "history-length", "python -m frontrow.benchmarks.history_length"),
    ("New titles", "cold_start", "cold-start", "python -m frontrow.benchmarks.cold_start"),
    ("From one training to the next", "stability", "stability", "python -m frontrow.benchmarks.stability"),
    ("Stale vectors", "stale_vectors", "stale-vectors", "python -m frontrow.benchmarks.stale_vectors"),
    ("Speed of the simulated world", "world_model", "world", "python -m frontrow.benchmarks.world_model"),
    ("Speed of training", "training_speed", "training-speed", "python -m frontrow.benchmarks.training_speed"),
)
HEAD = """# Quality

How well it ranks, measured. `python -m frontrow.benchmarks.quality` writes this page from the files in `results/`,
which name command, device, versions, commit, seeds and date. The simulated world is simulated: its figures compare
methods and say nothing about people. The recipe's learning rate, dropout and patience were chosen with test figures of
MovieLens-100K in sight, which are those of a development set; the test items of MovieLens-1M were looked at once.
Commands are those of a clone's .venv/bin; runs/demo is made by `frontrow demo`, runs/reproduce by `frontrow reproduce`.
A commit is that of the evaluation; where training had others, the result file names them by seed. README.md explains
HR@10, NDCG@10, MRR, coverage and novelty. Of pages:

- NDCG2D: DCG of a page over its ideal, a wanted title in row i and place j of it worth 1 / log2(i + j).
- Recall@m-by-n: share of what is wanted that stands in the first m rows and n places.
- Row-AUC, Entity-AUC: how often a row, a title, that holds or is what is wanted scores above one of the page that is
  not.
- Page value: the true chance, in the simulated world, that a visit leads to a play that is enjoyed. Oracle: the page
  made knowing the truth; logging policy: the one that made the log.

In short:
"""


def in_short(found: dict[str, dict[str, Any]]) -> str:
    """A line for each question that the result files, by name, answer."""
    lines = []
    if one := found.get("ml-1m"):
        mean, (model, hit, ndcg, _) = one["mean"], PUBLISHED[0]
        lines.append(
            f"Titles, MovieLens-1M: HR@10 {mean['hr@10']:.4f} and NDCG@10 {mean['ndcg@10']:.4f} "
            f"({len(one['seeds'])} of 3 seeds); the best published on that copy, {model}, {hit} and {ndcg}."
        )
    if peers := found.get("ml-100k-peers"):
        behind = "; ".join(
            f"{name.removeprefix('frontrow - ')} {of['mean']:+.3f} ({of['from']:+.3f} to {of['to']:+.3f})"
            for name, of in peers["paired"].items() if name.startswith("frontrow - ")
        )  # fmt: skip
        lines.append(f"Titles, MovieLens-100K, NDCG@10 ahead of: {behind}.")
    if rows := found.get("rows"):
        each = []
        for kind, words in (("movielens", "MovieLens-100K"), ("world", "simulated worlds")):
            if kind in rows:
                rule = rows[kind]["best_rule"]["ndcg2d"]
                each.append(f"{rows[kind]['ahead'][rule]['ndcg2d']['share']:+.1%} on {words}")
        lines.append(f"Rows: NDCG2D of the row ranker against the best rule {', '.join(each)}; the goal was +10 %.")
    if cold := found.get("cold-start"):
        for kind, words in (("ml-100k", "MovieLens-100K"), ("world", "simulated worlds")):
            if kind in cold:
                runs = cold[kind][str(cold["id_dropout"])]
                values = [means(runs, "among_new", by, "hr@10") for by in ("model", "random", "nightly_popularity")]
                lines.append(
                    "New titles, {}, HR@10 among them: {:.3f}; at random {:.3f}; by their plays until the last "
                    "midnight, which the model does not know, {:.3f}.".format(words, *values)
                )
    if stale := found.get("stale-vectors"):
        plain, *_, long = stale["methods"].values()
        day = [of["24 h, gap told"]["value"]["mean"] for of in (plain, long)]
        lines.append(
            "Vectors a day old, simulated worlds: the chance of an enjoyed play from a list of ten is "
            f"{day[0]:.3f} after training on the next title, {day[1]:.3f} with a half-life of 24 hours."
        )
    return "\n".join(f"- {line}" for line in lines)


def page() -> str:
    """The text of quality.md from the result files that are there. Raises ValueError for one of an older version."""
    results = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))}
    parts = []
    for heading, module, result, measured_by in SECTIONS:
        parts.append(f"## {heading}\n")
        if result not in results:
            parts.append(f"Not measured yet: `{measured_by}`.\n")
            continue
        found = results[result]
        try:
            parts.append(importlib.import_module(f".{module}", __package__).markdown(found) + "\n")
        except KeyError as error:
            raise ValueError(
                f"results/{result}.json is older than its benchmark (no {error}); run `{measured_by}`"
            ) from error
        parts.append(f"`{found['command']}`, commit {found['commit']}, {found['date']}: `results/{result}.json`.\n")
    return "\n".join([HEAD, in_short(results), "", *parts])


if __name__ == "__main__":
    with command("quality", __doc__) as parser:
        parser.parse_args()
        PAGE.write_text(page(), "utf-8")
        print(PAGE)
