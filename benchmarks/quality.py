"""How good is the demo's model on MovieLens-100K? Three seeds at the demo's settings, beside the baselines; and
the rows of the first seed.

python -m frontrow.benchmarks.quality [SEED ...]    → results/ml-100k.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ..foundation.bundle import read_manifest
from ..foundation.schema import default_schema
from ..training.data import load_dataset
from ..training.evaluate import evaluate
from ..training.export import export_bundle
from ..training.movielens import fetch_movielens_100k
from ..training.runs import best_epoch
from ..training.train import TrainConfig, train
from .provenance import provenance, write_result

PROTOCOL = (
    "leave one out: last event test, second-last validation (picks the epoch), the rest training; all 1,682 titles "
    "ranked, titles seen before filtered out, ties go to the smaller id; "
    "order (member, timestamp, file order); all members"
)


def main(seeds: list[int]) -> None:
    data = load_dataset(fetch_movielens_100k(Path("data/movielens-100k")), default_schema())
    source = provenance(f"python -m frontrow.benchmarks.quality {' '.join(map(str, seeds))}")
    runs, table, rows = [], {}, {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.monotonic()
            model = train(data, TrainConfig(seed=seed), Path(scratch))
            seconds, epoch = time.monotonic() - started, int(best_epoch(Path(scratch))["epoch"])
            rows = rows or read_manifest(export_bundle(model, data, Path(scratch) / "bundles", {}))["metrics"]["rows"]
        table = evaluate(model, data)
        without = {f"{k}_without_request_fields": v for k, v in table["model_without_request_fields"].items()}
        runs.append({"seed": seed, **table["model"], **without, "epoch": epoch, "seconds": round(seconds, 1)})
        print(runs[-1], flush=True)
    names = [k for k in runs[0] if k != "seed"]
    content = {
        "dataset": "MovieLens-100K",
        "protocol": PROTOCOL,
        "members": table["members"],
        "seeds": runs,
        "mean": {k: sum(r[k] for r in runs) / len(runs) for k in names},
        "baselines": table["baselines"],
        f"rows_of_seed_{seeds[0]}": rows,
        **source,
    }
    print(write_result("ml-100k", content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m frontrow.benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="default: 0 1 2")
    main(parser.parse_args().seeds or [0, 1, 2])
