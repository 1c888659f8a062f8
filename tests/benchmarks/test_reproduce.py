"""`frontrow reproduce` on a small file: what it writes, and that it goes on rather than begin again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from frontrow.clients.cli import main
from frontrow.training.batches import evaluated_members
from frontrow.training.data import Dataset
from frontrow.training.evaluate import asked_again, evaluate_scorer, ranking_metrics, ranks_by


def reproduce(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "frontrow.clients.cli", "reproduce", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce")
    rng = np.random.default_rng(0)
    lines = [f"{m},{t}" for m in range(40) for t in rng.permutation(30)[:12]]
    (folder / "plays.csv").write_text("\n".join(["member,title", *lines]) + "\n")
    return folder


def test_interactions_of_ones_own_give_the_table_and_are_not_trained_twice(folder: Path) -> None:
    options = ("--interactions", "plays.csv", "--seed", "0", "--seed", "1", "--epochs", "2", "--json")
    done = reproduce(folder, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "runs/reproduce/plays/result.json").read_text())
    assert [run["seed"] for run in result["seeds"]] == [0, 1]
    assert result["members"] == 40
    values = [run["ndcg@10"] for run in result["seeds"]]
    assert result["mean"]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert set(result["baselines"]) == {"popularity", "item_item_cf", "user_user_cf"}
    assert {"command", "commit", "device", "date", "versions"} < set(result)
    assert not [k for k in result["mean"] if "request" in k], "there are no request-time fields"
    weights = folder / "runs/reproduce/plays/seed-0/best.pt"
    before = weights.stat().st_mtime_ns
    again = json.loads(reproduce(folder, *options).stdout)
    assert weights.stat().st_mtime_ns == before
    assert again["seeds"] == result["seeds"]
    assert all(run["made_by"]["commit"] == result["commit"] for run in result["seeds"])
    assert (folder / "data/interactions/plays/events.parquet").is_file(), "no name takes another data set's folder"


def test_another_run_of_that_name_is_not_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "runs/reproduce/older/seed-0"
    run.mkdir(parents=True)
    content = {"data": "elsewhere", "data_fingerprint": "", "schema": {}, "config": {}}
    (run / "run.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["frontrow", "reproduce", "older", "--interactions", "plays.csv"])
    with pytest.raises(SystemExit):
        main()
    said = "".join(capsys.readouterr().err.split("\n"))
    assert "seed-0 was trained on other data of that name; remove it, or give another name" in said
    assert not (folder / "data/interactions/older").exists(), "the data of the older run is not replaced"


def test_titles_asked_for_again_are_counted(tiny_data: Dataset) -> None:
    members = evaluated_members(tiny_data)
    targets = [tiny_data.events.member(m).ids[:, 1].tolist() for m in members.tolist()]
    assert tiny_data.schema.spans["entity_id"] == (1, 2)
    again = [titles[-1] in titles[:-1] for titles in targets]
    assert asked_again(tiny_data, "test", members).tolist() == again
    assert 0 < sum(again) < len(again)

    def score(members: np.ndarray) -> np.ndarray:
        return np.tile(np.arange(len(tiny_data.titles)), (len(members), 1)).astype(np.float32)

    found = evaluate_scorer(score, tiny_data, "test")
    first = ranking_metrics(ranks_by(score, tiny_data, "test")[~np.array(again)])
    assert {k: found[f"{k}_first_time"] for k in first} == first
    assert found["mrr"] != first["mrr"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give one of ml-100k, ml-1m, or --interactions FILE"),
        (("ml-2m",), "give one of ml-100k, ml-1m, or --interactions FILE"),
        (("ml-1m",), "give --source, a folder with ml-1m.txt"),
        (("ml-1m", "--interactions", "plays.csv"), "a name that is not one of them"),
        (("ml-100k", "--titles", "plays.csv"), "--titles goes with --interactions"),
        (("--interactions", "nowhere.csv"), "nowhere.csv"),
        (("../elsewhere", "--interactions", "plays.csv"), "'../elsewhere' names a folder"),
    ],
)
def test_what_does_not_go_together_is_one_clear_line(
    folder: Path, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["frontrow", "reproduce", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert words in said
    assert len(said.splitlines()) == 1


def test_plays_of_titles_seen_before_are_said_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    lines = [f"{m},{t}" for m in range(40) for t in rng.integers(0, 12, 12)]
    (tmp_path / "songs.csv").write_text("\n".join(["member,title", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["frontrow", "reproduce", "--interactions", "songs.csv", "--epochs", "1", "--size", "large"]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    result = json.loads((tmp_path / "runs/reproduce/songs/result.json").read_text())
    assert 0 < result["asked_again"] < 40
    assert f"{result['asked_again']} of the 40 test items had been seen before" in capsys.readouterr().out
    assert {"hr@10_first_time", "ndcg@10_first_time"} < result["mean"].keys() & result["baselines"]["popularity"].keys()
    run = json.loads((tmp_path / "runs/reproduce/songs/seed-0/run.json").read_text())
    assert [f["width"] for f in run["schema"]["fields"] if f["kind"] == "id"] == [128]
    assert run["config"]["batch_tokens"] == 8000
