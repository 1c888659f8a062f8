"""How fast does training go, and what does a second process add? Tokens per second and utilisation, per process count.

    python -m frontrow.benchmarks.training_speed [--processes 1 2] [--d-model 512] [--batch-tokens N]
        → results/training-speed.json; of another size, results/training-speed-<d-model>.json

MovieLens-100K, the recipe's settings; one epoch a run, in turns, after one that is not counted; validation is not part
of it. On a CPU each process has one thread (or OMP_NUM_THREADS), so that two processes are two cores; on GPUs each has
one. A step of P processes learns from P batches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..foundation.schema import default_schema
from ..training.data import load_dataset
from ..training.movielens import fetch_movielens_100k
from ..training.runs import read_metrics
from ..training.train import TrainConfig, train
from .command import command, positive
from .provenance import provenance, write_result

ROUNDS = 3
FOLDER = Path("data/movielens-100k")


def one_epoch(run: Path, d_model: int, batch_tokens: int) -> None:
    """What each process does: an epoch of training in `run`."""
    config = TrainConfig()
    config = replace(config, epochs=1, batch_tokens=batch_tokens, model=replace(config.model, d_model=d_model))
    train(load_dataset(fetch_movielens_100k(FOLDER), default_schema()), config, run)


def measured(processes: int, d_model: int, batch_tokens: int) -> dict[str, float]:
    """Tokens per second of all processes together and the mean utilisation of each."""
    with tempfile.TemporaryDirectory() as scratch:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        given = ["--run", scratch, "--d-model", str(d_model), "--batch-tokens", str(batch_tokens)]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        command = [*start, "-m", "--", "frontrow.benchmarks.training_speed", *given]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        line = read_metrics(Path(scratch))[-1]
    return {"tokens_per_second": line["tokens_per_second"] * processes, "utilisation": line["utilisation"]}


def markdown(found: dict[str, Any]) -> str:
    """The section of quality.md."""
    lines = [
        f"{found['data']}, d_model {found['d_model']}, {found['batch_tokens']:,} tokens a batch, on {found['device']}; "
        f"median of {len(found['runs'][0]['rounds'])} epochs in turns. Utilisation: the share of a large matrix "
        "product's rate just before, which on shared cores may be below its best.",
        "",
        "| processes | threads each | tokens/s | utilisation | against one process |",
        "|---|---|---|---|---|",
    ]
    one = found["runs"][0]["tokens_per_second"]
    for run in found["runs"]:
        rate, share = run["tokens_per_second"], run["utilisation"]
        lines.append(
            f"| {run['processes']} | {found['threads']} | {rate:,.0f} | {share:.0%} | {rate / one:.2f} times |"
        )
    return "\n".join(lines)


def main(processes: list[int], d_model: int, batch_tokens: int) -> None:
    replace(TrainConfig().model, d_model=d_model)  # raises ValueError for one that no model has
    command = "python -m frontrow.benchmarks.training_speed --processes " + " ".join(map(str, processes))
    fetch_movielens_100k(FOLDER)
    measured(processes[0], d_model, batch_tokens)
    rounds: dict[int, list[dict[str, float]]] = {p: [] for p in processes}
    for _ in range(ROUNDS):
        for count in processes:
            rounds[count].append(measured(count, d_model, batch_tokens))
            print(count, rounds[count][-1], flush=True)
    runs = [
        {"processes": p, **{k: statistics.median(r[k] for r in found) for k in found[0]}, "rounds": found}
        for p, found in rounds.items()
    ]
    content = {
        "data": "MovieLens-100K",
        "d_model": d_model,
        "batch_tokens": batch_tokens,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "runs": runs,
        **provenance(f"{command} --d-model {d_model} --batch-tokens {batch_tokens}"),
    }
    print(markdown(content))
    usual = d_model == TrainConfig().model.d_model
    print(write_result("training-speed" if usual else f"training-speed-{d_model}", content))


if __name__ == "__main__":
    with command("training_speed", __doc__) as parser:
        parser.add_argument("--processes", nargs="+", type=positive, default=[1, 2])
        parser.add_argument("--d-model", type=positive, default=TrainConfig().model.d_model)
        parser.add_argument("--batch-tokens", type=positive, default=TrainConfig().batch_tokens)
        parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what each process is started with
        given = parser.parse_args()
        if given.run:
            one_epoch(given.run, given.d_model, given.batch_tokens)
        else:
            main(given.processes, given.d_model, given.batch_tokens)
