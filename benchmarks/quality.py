"""How good is the demo's model on MovieLens-100K? Three seeds at the demo's settings, beside the baselines.

python -m frontrow.benchmarks.quality [SEED ...]    → results/ml-100k.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from ..foundation.schema import default_schema
from ..training.data import load_dataset
from ..training.evaluate import evaluate
from ..training.movielens import fetch_movielens_100k
from ..training.train import Progress, TrainConfig, train
from .provenance import provenance, write_result

PROTOCOL = (
    "leave one out: last event test, second-last validation (picks the epoch), the rest training; all 1,682 titles "
    "ranked, titles seen before filtered out, ties count against; order (member, timestamp, file order); all members"
)


def main(seeds: list[int]) -> None:
    data = load_dataset(fetch_movielens_100k(Path("data/movielens-100k")), default_schema())
    source = provenance(f"python -m frontrow.benchmarks.quality {' '.join(map(str, seeds))}")
    runs, table = [], {}
    for seed in seeds:
        best = {"epoch": 0, "ndcg@10": -1.0}

        def note(p: Progress, best: dict = best) -> None:
            if p.validation and p.validation["ndcg@10"] > best["ndcg@10"]:
                best.update(epoch=p.epoch + 1, **p.validation)

        with tempfile.TemporaryDirectory() as scratch:
            started = time.monotonic()
            model = train(data, TrainConfig(seed=seed), Path(scratch), note)
            seconds = time.monotonic() - started
        table = evaluate(model, data)
        without = {f"{k}_without_request_fields": v for k, v in table["model_without_request_fields"].items()}
        runs.append({"seed": seed, **table["model"], **without, "epoch": best["epoch"], "seconds": round(seconds, 1)})
        print(runs[-1], flush=True)
    names = [k for k in runs[0] if k != "seed"]
    content = {
        "dataset": "MovieLens-100K",
        "protocol": PROTOCOL,
        "members": table["members"],
        "seeds": runs,
        "mean": {k: sum(r[k] for r in runs) / len(runs) for k in names},
        "baselines": table["baselines"],
        **source,
    }
    print(write_result("ml-100k", content))


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [0, 1, 2])
