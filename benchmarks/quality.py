"""Writes quality.md: what is known about quality, every number of it from a committed result file.

python -m frontrow.benchmarks.quality
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from .command import command
from .provenance import RESULTS

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
README.md explains HR@10, NDCG@10, MRR, coverage and novelty. Of pages:

- NDCG2D: DCG of a page over its ideal, a wanted title in row i and place j of it worth 1 / log2(i + j).
- Recall@m-by-n: share of what is wanted that stands in the first m rows and n places.
- Row-AUC, Entity-AUC: how often a row, a title, that holds or is what is wanted scores above one of the page that is
  not.
- Page value: the true chance, in the simulated world, that a visit leads to a play that is enjoyed. Oracle: the page
  made knowing the truth; logging policy: the one that made the log.
"""


def page() -> str:
    """The text of quality.md from the result files that are there."""
    parts = [HEAD]
    for heading, module, result, measured_by in SECTIONS:
        file = RESULTS / f"{result}.json"
        parts.append(f"## {heading}\n")
        if not file.is_file():
            parts.append(f"Not measured yet: `{measured_by}`.\n")
            continue
        found = json.loads(file.read_text("utf-8"))
        parts.append(importlib.import_module(f".{module}", __package__).markdown(found) + "\n")
        parts.append(f"`{found['command']}`, commit {found['commit']}, {found['date']}: `results/{file.name}`.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    with command("quality", __doc__) as parser:
        parser.parse_args()
        PAGE.write_text(page(), "utf-8")
        print(PAGE)
