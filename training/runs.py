"""A run directory: what was trained, on what, with which settings, and what came out.

run.json: data folder, its fingerprint, schema and settings. metrics.csv and curves.png: a line per epoch. best.pt:
the weights of the best validation epoch. evaluation.json: the table of `frontrow evaluate`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..foundation.model import FoundationModel, ModelConfig
from ..foundation.schema import Schema
from .data import Dataset, load_dataset
from .train import Progress, TrainConfig, build_model, is_first_process, load_best, train


def start_run(run_dir: Path, folder: Path, data: Dataset, config: TrainConfig) -> None:
    """Write run.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "data": str(folder.resolve()),
        "data_fingerprint": data.fingerprint,
        "schema": data.schema.to_dict(),
        "config": asdict(config),
    }
    (run_dir / "run.json").write_text(json.dumps(content, indent=1))


def read_run(run_dir: Path) -> dict[str, Any]:
    """run.json. Raises ValueError if there is none."""
    try:
        return json.loads((run_dir / "run.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{run_dir} is not a training run ({error}); train first (`frontrow train`)") from error


def train_run(
    run_dir: Path,
    folder: Path,
    data: Dataset,
    config: TrainConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    resume: bool = False,
) -> FoundationModel:
    """Train in a run directory and draw its curves. Raises ValueError where there is a checkpoint to resume, but of
    other data, schema or settings; without `resume` what an older run left is removed."""
    if resume and (run_dir / "checkpoint.pt").is_file() and not _is_of(run_dir, data, config):
        raise ValueError(f"{run_dir} was trained on other data, schema or settings; train without --resume")
    for name in ("finished", "evaluation.json", *(() if resume else ("checkpoint.pt", "best.pt"))):
        (run_dir / name).unlink(missing_ok=True)
    start_run(run_dir, folder, data, config)
    model = train(data, config, run_dir, on_progress, resume)
    if is_first_process():
        draw_curves(run_dir)
        (run_dir / "finished").touch()
    return model


def is_finished(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    """Whether the run was trained to its end on this data with this schema and these settings."""
    return (run_dir / "finished").is_file() and _is_of(run_dir, data, config)


def can_resume(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    """Whether the run stopped midway with this data, schema and settings."""
    return (run_dir / "checkpoint.pt").is_file() and _is_of(run_dir, data, config)


def _is_of(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    if not (run_dir / "run.json").is_file():
        return False
    run = read_run(run_dir)
    wanted = json.loads(json.dumps([data.fingerprint, data.schema.to_dict(), asdict(config)]))
    return [run["data_fingerprint"], run["schema"], run["config"]] == wanted


def load_run(run_dir: Path) -> tuple[FoundationModel, Dataset]:
    """The best model of a run and its data. Raises ValueError naming what is missing or has changed."""
    run = read_run(run_dir)
    data = load_dataset(Path(run["data"]), Schema.from_dict(run["schema"]))
    if data.fingerprint != run["data_fingerprint"]:
        raise ValueError(f"{run['data']} has changed since {run_dir} was trained on it; train again")
    config = ModelConfig(**run["config"]["model"])
    return load_best(build_model(data, config), run_dir), data


def weights_fingerprint(run_dir: Path) -> str:
    """sha256 of the best weights, which ties a bundle to its run."""
    return hashlib.sha256((run_dir / "best.pt").read_bytes()).hexdigest()


def draw_curves(run_dir: Path) -> None:
    """curves.png: training loss per head and the validation metrics, by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(r["epoch"]) for r in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for column in rows[0]:
        values = [float(r[column]) for r in rows]
        if column.startswith("loss_") and any(values):
            left.plot(epochs, values, label=column.removeprefix("loss_"))
        elif column.startswith("validation_"):
            right.plot(epochs, values, label=column.removeprefix("validation_"))
    left.set(xlabel="epoch", ylabel="training loss per head", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, None))
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    figure.savefig(run_dir / "curves.png", dpi=120)
    plt.close(figure)
