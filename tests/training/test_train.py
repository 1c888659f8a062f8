"""Training: it learns, it resumes as if never stopped, it stops early, and several processes train one model."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from frontrow.foundation.encoding import Encoded
from frontrow.foundation.heads import Heads
from frontrow.foundation.schema import ABSENT, FIRST, UNKNOWN, Schema, default_schema
from frontrow.training import runs as runs_module
from frontrow.training import train as train_module
from frontrow.training.batches import evaluation_batch, trained_titles, trained_values
from frontrow.training.data import Dataset
from frontrow.training.runs import (
    best_epoch,
    can_resume,
    is_finished,
    load_run,
    read_run,
    train_run,
    weights_fingerprint,
)
from frontrow.training.train import Progress, TrainConfig, build_model, load_best, schedule, train

if TYPE_CHECKING:
    from conftest import TinyRun


class Stopped(Exception):
    """Stands for a crash."""


def rows(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without how fast each epoch went."""
    speed = ("seconds", "tokens_per_second", "utilisation")
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in speed} for row in csv.DictReader(file)]


def weights(run_dir: Path, name: str = "best.pt") -> dict[str, torch.Tensor]:
    content = torch.load(run_dir / name, weights_only=True)
    return content["model"] if name == "checkpoint.pt" else content


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def stop_at(epoch: int, step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step) and progress.validation is None:
            raise Stopped

    return on_progress


@pytest.fixture
def validation(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The NDCG@10 of each epoch, as the test sets it."""
    values: list[float] = []
    queue = iter(values)
    monkeypatch.setattr(train_module, "_validate", lambda *_: {"ndcg@10": next(queue)})
    return values


def test_the_losses_fall(tiny_run: TinyRun) -> None:
    first, last = rows(tiny_run.run_dir)
    names = [n for n in first if n.startswith("loss_")]
    assert len(names) == 5
    assert all(float(last[n]) < float(first[n]) for n in names)
    assert 0 < float(last["validation_hr@10"]) <= 1


def test_a_run_directory_says_what_was_trained(tiny_run: TinyRun) -> None:
    run = read_run(tiny_run.run_dir)
    assert run["data_fingerprint"] == tiny_run.data.fingerprint
    assert run["config"] == json.loads(json.dumps(asdict(tiny_run.config)))
    assert (tiny_run.run_dir / "curves.png").stat().st_size > 1000
    model, data = load_run(tiny_run.run_dir)
    assert equal(model.state_dict(), tiny_run.model.state_dict())
    assert data.fingerprint == tiny_run.data.fingerprint
    assert is_finished(tiny_run.run_dir, tiny_run.data, tiny_run.config)
    assert not is_finished(tiny_run.run_dir, tiny_run.data, replace(tiny_run.config, seed=9))
    assert len(weights_fingerprint(tiny_run.run_dir)) == 64


def test_what_training_never_read_means_no_more_than_the_unknown(tiny_run: TinyRun) -> None:
    """Titles never played stand for an unknown title, and an unknown canvas, of data without any, for none."""
    model, schema, data = tiny_run.model, tiny_run.data.schema, tiny_run.data
    tokens, offsets = evaluation_batch(data, np.array([3]), "test", 16, True)

    def vector(column: int, value: int) -> torch.Tensor:
        changed = tokens.clone()
        changed[-1, column] = value
        with torch.no_grad():
            return model.encode(changed, offsets)[0]

    title, canvas, device = (schema.spans[name][0] for name in ("entity_id", "canvas", "device"))
    unplayed = FIRST + int(np.flatnonzero(~trained_titles(data))[0])
    assert torch.equal(vector(title, unplayed), vector(title, UNKNOWN))
    assert not torch.equal(vector(title, FIRST), vector(title, UNKNOWN))
    assert torch.equal(vector(canvas, UNKNOWN), vector(canvas, ABSENT))
    assert not torch.equal(vector(device, UNKNOWN), vector(device, ABSENT))


def test_an_unknown_value_reads_as_the_mean_of_the_known(tiny_run: TinyRun) -> None:
    trained, tables = trained_values(tiny_run.data), tiny_run.model.events
    for name in ("device", "locale", "action_type", "genres"):
        table = tables.table(name).detach()
        known = table[FIRST:][torch.from_numpy(trained[name][FIRST:])]
        assert len(known) > 1
        torch.testing.assert_close(table[UNKNOWN], known.mean(0))
    title = tables.table("entity_id").detach()
    assert not torch.allclose(title[UNKNOWN], title[FIRST:].mean(0), atol=1e-3), (
        "that row is trained by the title tower"
    )


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run.data, tiny_run.config, tmp_path / "same")
    train(tiny_run.data, replace(tiny_run.config, seed=1), tmp_path / "other")
    assert rows(tmp_path / "same") == rows(tiny_run.run_dir)
    assert equal(weights(tmp_path / "same"), weights(tiny_run.run_dir))
    assert not equal(weights(tmp_path / "other"), weights(tiny_run.run_dir))


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 4), (0, 3)])
def test_a_resumed_run_is_an_uninterrupted_one(tiny_run: TinyRun, tmp_path: Path, epoch: int, step: int) -> None:
    with pytest.raises(Stopped):
        train(tiny_run.data, tiny_run.config, tmp_path, stop_at(epoch, step))
    assert (tmp_path / "checkpoint.pt").is_file() == (epoch > 0)
    torch.manual_seed(1234)
    train(tiny_run.data, tiny_run.config, tmp_path, resume=True)
    assert rows(tmp_path) == rows(tiny_run.run_dir)
    assert equal(weights(tmp_path), weights(tiny_run.run_dir))
    assert equal(weights(tmp_path, "checkpoint.pt"), weights(tiny_run.run_dir, "checkpoint.pt"))


def test_a_checkpoint_of_other_settings_is_refused_by_name(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny_run.data, tiny_run.config, tmp_path, stop_at(1, 1))
    with pytest.raises(ValueError, match=r"other settings: learning_rate was 0\.005, now 0\.1;"):
        train(tiny_run.data, replace(tiny_run.config, learning_rate=0.1), tmp_path, resume=True)


def test_a_run_of_other_settings_or_data_is_refused_and_left_as_it_was(tiny_run: TinyRun, tmp_path: Path) -> None:
    data, config, run = tiny_run.data, tiny_run.config, tmp_path / "run"
    with pytest.raises(Stopped):
        train_run(run, tiny_run.folder, data, config, stop_at(1, 1))
    assert can_resume(run, data, config)
    before = (run / "run.json").read_text()
    wider = replace(config, epochs=4, model=replace(config.model, d_model=64))
    fewer_fields = Schema((data.schema.id_field,), ())
    others = [
        (data, replace(config, seed=5), "seed was 0, now 5;"),
        (data, wider, "epochs was 2, now 4, model d_model was 32, now 64;"),
        (Dataset(**{**vars(data), "fingerprint": "other"}), config, "the data is not what .*tiny_data"),
        (Dataset(**{**vars(data), "schema": fewer_fields}), config, "the schema is another one"),
    ]
    for other_data, other_config, said in others:
        assert not can_resume(run, other_data, other_config)
        with pytest.raises(ValueError, match=said):
            train_run(run, tiny_run.folder, other_data, other_config, resume=True)
        assert (run / "run.json").read_text() == before


def content(run_dir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run_dir.iterdir()}


@pytest.fixture
def short_run(tiny_run: TinyRun, tmp_path: Path) -> tuple[Path, TrainConfig]:
    """A finished and evaluated run of one epoch, of its own."""
    config, run_dir = replace(tiny_run.config, epochs=1), tmp_path / "short"
    train_run(run_dir, tiny_run.folder, tiny_run.data, config)
    (run_dir / "evaluation.json").write_text("{}")
    return run_dir, config


def test_a_finished_run_is_not_overwritten_unasked(tiny_run: TinyRun, short_run: tuple[Path, TrainConfig]) -> None:
    run_dir, config = short_run
    before = content(run_dir)
    with pytest.raises(ValueError, match=r"short holds a run already; .*--resume.*--run.*--overwrite"):
        train_run(run_dir, tiny_run.folder, tiny_run.data, replace(config, seed=1))
    assert content(run_dir) == before


def test_resuming_a_finished_run_changes_nothing(tiny_run: TinyRun, short_run: tuple[Path, TrainConfig]) -> None:
    run_dir, config = short_run
    before = content(run_dir)
    model = train_run(run_dir, tiny_run.folder, tiny_run.data, config, resume=True)
    assert content(run_dir) == before
    assert equal(model.state_dict(), weights(run_dir))


def test_a_new_run_that_cannot_begin_leaves_the_old_one(
    tiny_run: TinyRun, short_run: tuple[Path, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = short_run
    before = content(run_dir)
    monkeypatch.setattr(Heads, "total", lambda self, losses: torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError):
        train_run(run_dir, tiny_run.folder, tiny_run.data, replace(config, seed=1), overwrite=True)
    assert content(run_dir) == before


def test_a_process_that_is_not_the_first_writes_nothing(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "is_first_process", lambda: False)
    monkeypatch.setattr(runs_module, "train", lambda *given: given[3](Progress(0, 1, 1, {})))  # one step, reported
    train_run(tmp_path, tiny_run.folder, tiny_run.data, tiny_run.config)
    assert content(tmp_path) == {}


def test_the_best_epoch_is_the_one_whose_weights_are_kept(
    tiny_run: TinyRun, tmp_path: Path, validation: list[float]
) -> None:
    validation += [0.1, 0.3, 0.2, 0.3]
    train(tiny_run.data, replace(tiny_run.config, epochs=4), tmp_path)
    best = best_epoch(tmp_path)
    assert (best["epoch"], best["validation_ndcg@10"]) == (2, 0.3)
    assert best["loss_entity_id"] == float(rows(tmp_path)[1]["loss_entity_id"])


def test_a_checkpoint_of_more_processes_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    train(tiny_run.data, replace(tiny_run.config, epochs=1), tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"generators": saved["generators"] * 2}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="by 2 processes, not 1; resume with as many"):
        train(tiny_run.data, replace(tiny_run.config, epochs=1), tmp_path, resume=True)


def test_each_process_takes_its_own_gpu_before_the_group_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    group = train_module.dist
    monkeypatch.setattr(group, "init_process_group", lambda backend, device_id: calls.append((backend, device_id)))
    monkeypatch.setattr(group, "get_rank", lambda: 1)
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    own = torch.device("cuda", 1)
    assert train_module._processes() == (1, 2, own)
    assert calls == [("device", own), ("nccl", own)]


def test_an_overwritten_run_leaves_nothing_of_the_old_one(
    tiny_run: TinyRun, short_run: tuple[Path, TrainConfig]
) -> None:
    tmp_path, config = short_run
    other = replace(config, seed=1)
    with pytest.raises(Stopped):
        train_run(tmp_path, tiny_run.folder, tiny_run.data, other, stop_at(0, 1), overwrite=True)
    assert not can_resume(tmp_path, tiny_run.data, other)
    assert not is_finished(tmp_path, tiny_run.data, other)
    with pytest.raises(ValueError, match=r"best\.pt is missing"):
        load_run(tmp_path)


def test_it_stops_after_patience_epochs_without_a_better_one(
    tiny_run: TinyRun, tmp_path: Path, validation: list[float]
) -> None:
    validation += [0.1, 0.3, 0.2, 0.3, 0.9]
    config = replace(tiny_run.config, epochs=5, patience=2)
    kept: list[dict[str, torch.Tensor]] = []

    def on_progress(progress: Progress) -> None:
        if progress.validation is not None:
            kept.append(weights(tmp_path))

    model = train(tiny_run.data, config, tmp_path, on_progress)
    assert [float(r["validation_ndcg@10"]) for r in rows(tmp_path)] == [0.1, 0.3, 0.2, 0.3]
    assert equal(model.state_dict(), kept[1])  # the best epoch, not the last
    assert not equal(weights(tmp_path, "checkpoint.pt"), kept[1])


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Heads.total
    monkeypatch.setattr(Heads, "total", lambda self, losses: real(self, losses) * float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train(tiny_run.data, tiny_run.config, tmp_path)
    assert not (tmp_path / "best.pt").exists()


def test_data_without_anyone_to_validate_on_is_refused(tiny_data: Dataset, tmp_path: Path) -> None:
    events = Encoded(
        tiny_data.events.ids[:4], tiny_data.events.timestamp[:4], tiny_data.events.offsets[:3] * 0 + [0, 2, 4]
    )
    few = Dataset(**{**vars(tiny_data), "events": events, "member_ids": tiny_data.member_ids[:2]})
    with pytest.raises(ValueError, match="three events"):
        train(few, TrainConfig(), tmp_path)


def test_best_weights_of_another_model_are_refused(tiny_run: TinyRun) -> None:
    wider = replace(tiny_run.config.model, d_model=64)
    with pytest.raises(ValueError, match=r"best\.pt was trained on other data or settings"):
        load_best(build_model(tiny_run.data, wider), tiny_run.run_dir)


def test_a_built_model_knows_which_titles_training_sees(tiny_data: Dataset, tiny_config: TrainConfig) -> None:
    assert build_model(tiny_data, tiny_config.model).titles.known.tolist() == trained_titles(tiny_data).tolist()


def test_the_learning_rate_rises_then_falls_to_five_percent() -> None:
    rates = [schedule(step, warmup=10, total=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] or max(rates) == rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)
    assert schedule(500, 10, 100) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"batch_tokens": 0}, {"patience": 0}, {"learning_rate": 0.0}, {"seed": -1}], ids=str
)
def test_wrong_settings_are_refused_by_name_and_value(settings: dict[str, Any]) -> None:
    (name, value), *_ = settings.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
        TrainConfig(**settings)


WORKER = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from frontrow.foundation.schema import Schema, default_schema
from frontrow.foundation.model import ModelConfig
from frontrow.training import runs as runs_module
from frontrow.training import train as train_module
from frontrow.training.data import load_dataset
from frontrow.training.runs import train_run
from frontrow.training.train import TrainConfig

torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
model = ModelConfig(d_model=32, layers=1, heads=2, max_events=16)
config = TrainConfig(epochs=2, batch_tokens=200, warmup_steps=5, model=model)
batches, last, load_best = [], {}, train_module.load_best

def keep_last(model, run_dir):
    last.update({k: v.clone() for k, v in model.state_dict().items()})
    return load_best(model, run_dir)

train_module.load_best = keep_last
best = train_run(out / "run", folder, load_dataset(folder, default_schema()), config, batches.append).state_dict()
steps = max(p.step for p in batches)
torch.save({"last": last, "best": best, "steps": steps}, out / f"rank{os.environ['RANK']}.pt")
"""


def test_two_processes_train_one_model(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "worker.py"), str(tiny_folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    assert equal(one["last"], other["last"])  # what each process trained, before the best epoch is read from the file
    assert equal(one["best"], other["best"])
    assert one["steps"] == other["steps"] > 1
    run = tmp_path / "run"
    assert [r["epoch"] for r in rows(run)] == ["1", "2"]
    assert equal(weights(run), one["best"])
    assert len(torch.load(run / "checkpoint.pt", weights_only=True)["generators"]) == 2
    assert read_run(run)["schema"] == json.loads(json.dumps(default_schema().to_dict()))
    assert (run / "finished").is_file()
