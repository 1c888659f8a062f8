"""A run directory: what was trained, on what, with which settings, and what came out.

run.json: data folder, its fingerprint, schema and settings, and the run that it began from. vocabularies.json: the
values of each field, for runs that begin from this one. metrics.csv and curves.png: a line per epoch, 0 for what a warm
start began from. best.pt: the weights of the best validation epoch. evaluation.json: the table of `frontrow evaluate`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..foundation.model import FoundationModel, ModelConfig
from ..foundation.schema import Schema, Vocabulary
from .data import Dataset, load_dataset
from .train import Progress, TrainConfig, build_model, changed_settings, is_first_process, load_best, train
from .warm_start import Earlier, warm_start


def start_run(
    run_dir: Path, folder: Path, data: Dataset, config: TrainConfig, source: Mapping[str, str] | None = None
) -> None:
    """Write run.json and vocabularies.json. source: of a warm start, the run it begins from and its weights' sha256."""
    run_dir.mkdir(parents=True, exist_ok=True)
    content = {
        "data": str(folder.resolve()),
        "data_fingerprint": data.fingerprint,
        "schema": data.schema.to_dict(),
        "config": asdict(config),
        "from": source,
    }
    values = {name: v.values for name, v in data.vocabularies.items()}
    (run_dir / "vocabularies.json").write_text(json.dumps(values, ensure_ascii=False), "utf-8")
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
    overwrite: bool = False,
    begin_from: Path | None = None,
) -> FoundationModel:
    """Train in a run directory and draw its curves. A finished run that is resumed is left as it is.

    begin_from: another run whose weights this one begins with. Raises ValueError if they cannot be carried, or where
    there is a run already: without `resume` or `overwrite`, or with `resume` but of other data, schema, settings or
    beginning. What an older run left is replaced when the first step of the new one is done.
    """
    there = (run_dir / "run.json").is_file()
    resume = resume and (there or (run_dir / "checkpoint.pt").is_file())
    if there and not (resume or overwrite):
        raise ValueError(
            f"{run_dir} holds a run already; go on with it (--resume), train in another folder (--run), or give "
            "--overwrite"
        )
    start = None
    if begin_from is not None:
        if begin_from.resolve() == run_dir.resolve():
            raise ValueError(f"{run_dir} cannot begin from itself; train in another folder (--run)")
        start = warm_start(read_earlier(begin_from), build_model(data, config.model), data, config.seed)
    source = start and start.source
    if resume and (changed := differences(run_dir, data, config, source)):
        raise ValueError(f"{run_dir} cannot be resumed: {', '.join(changed)}; give what it had, or another --run")
    begun = False

    def report(progress: Progress) -> None:
        nonlocal begun
        if not begun and is_first_process():
            for name in ("finished", "evaluation.json", *(() if resume else ("checkpoint.pt", "best.pt"))):
                (run_dir / name).unlink(missing_ok=True)
            start_run(run_dir, folder, data, config, source)
        begun = True
        on_progress(progress)

    model = train(data, config, run_dir, report, resume, start)
    if is_first_process() and begun:
        draw_curves(run_dir)
        (run_dir / "finished").touch()
    return model


def differences(
    run_dir: Path, data: Dataset, config: TrainConfig, source: Mapping[str, str] | None = None
) -> list[str]:
    """What a run was trained on, with or from that is not what is asked for, by name."""
    run = read_run(run_dir)
    found = [] if run["data_fingerprint"] == data.fingerprint else [f"the data is not what {run['data']} was"]
    if run["schema"] != json.loads(json.dumps(data.schema.to_dict())):
        found.append("the schema is another one")
    before, now = (given and given["weights"] for given in (run.get("from"), source))
    if before != now:
        found.append(f"it began from {run['from']['run'] if before else 'random weights'}, not what is given now")
    return found + changed_settings(run["config"], config)


def best_epoch(run_dir: Path) -> dict[str, float]:
    """The line of metrics.csv whose weights are in best.pt: epoch, losses and validation metrics."""
    return max(read_metrics(run_dir), key=lambda row: row["validation_ndcg@10"])  # the first of equals, as in `train`


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def is_finished(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    """Whether the run was trained to its end on this data with this schema and these settings."""
    return (run_dir / "finished").is_file() and _is_of(run_dir, data, config)


def can_resume(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    """Whether the run stopped midway with this data, schema and settings."""
    return (run_dir / "checkpoint.pt").is_file() and _is_of(run_dir, data, config)


def _is_of(run_dir: Path, data: Dataset, config: TrainConfig) -> bool:
    return (run_dir / "run.json").is_file() and not differences(run_dir, data, config)


def load_run(run_dir: Path) -> tuple[FoundationModel, Dataset]:
    """The best model of a run and its data. Raises ValueError naming what is missing or has changed."""
    run = read_run(run_dir)
    data = load_dataset(Path(run["data"]), Schema.from_dict(run["schema"]))
    if data.fingerprint != run["data_fingerprint"]:
        raise ValueError(f"{run['data']} has changed since {run_dir} was trained on it; train again")
    config = ModelConfig(**run["config"]["model"])
    return load_best(build_model(data, config), run_dir), data


def read_earlier(run_dir: Path) -> Earlier:
    """A run to begin from. Its data may be another by now: what is needed of it stands in the run. Raises ValueError
    naming what is missing or damaged."""
    run = read_run(run_dir)
    if not (run_dir / "best.pt").is_file():
        raise ValueError(f"{run_dir / 'best.pt'} is missing: that run has no weights to begin from yet")
    try:
        schema, config = Schema.from_dict(run["schema"]), ModelConfig(**run["config"]["model"])
        if (file := run_dir / "vocabularies.json").is_file():
            vocabularies = {name: Vocabulary(values) for name, values in json.loads(file.read_text("utf-8")).items()}
        else:  # a run of an older version
            vocabularies = load_run(run_dir)[1].vocabularies
        weights = torch.load(run_dir / "best.pt", weights_only=True, map_location="cpu")
        sizes = {name: v.size for name, v in vocabularies.items()}
        columns = sum(f.slots for f in schema.title_fields)
        rows = sizes[schema.id_field.name]
        FoundationModel(schema, config, sizes, torch.zeros(rows, columns, dtype=torch.int32)).load_state_dict(weights)
    except (AttributeError, EOFError, KeyError, RuntimeError, TypeError, UnpicklingError) as error:
        raise ValueError(f"{run_dir} is damaged ({type(error).__name__}: {error}); begin from another run") from error
    if wrong := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{run_dir / 'best.pt'}: {wrong[0]} has values that are not finite; begin from another run")
    return Earlier(run_dir.resolve(), schema, vocabularies, config, weights, weights_fingerprint(run_dir))


def weights_fingerprint(run_dir: Path) -> str:
    """sha256 of the best weights, which ties a bundle to its run."""
    return hashlib.sha256((run_dir / "best.pt").read_bytes()).hexdigest()


def draw_curves(run_dir: Path) -> None:
    """curves.png: training loss per head and the validation metrics, by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows, best = read_metrics(run_dir), best_epoch(run_dir)["epoch"]
    epochs = [row["epoch"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for column in rows[-1]:
        values = [row.get(column, math.nan) for row in rows]  # what a run began from has no losses
        if column.startswith("loss_") and rows[-1][column]:
            left.plot(epochs, values, label=column.removeprefix("loss_"))
        elif column.startswith("validation_"):
            right.plot(epochs, values, label=column.removeprefix("validation_"))
    left.set(title="training loss per head", xlabel="epoch", ylabel="cross-entropy, nats", ylim=(0, None))
    right.set(title="validation items, full catalogue", xlabel="epoch", ylabel="mean over members", ylim=(0, None))
    for axis in (left, right):
        axis.axvline(best, color="grey", linestyle="dashed", linewidth=1, label=f"kept: epoch {best:.0f}")
        axis.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    name = " ".join(run_dir.resolve().parts[-2:])
    figure.suptitle(f"{name}: {rows[-1]['epoch']:.0f} epochs")
    figure.savefig(run_dir / "curves.png", dpi=120)
    plt.close(figure)
