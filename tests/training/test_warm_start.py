"""Warm start: weights are carried by name and by value, and until the first step old input is answered as before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from frontrow.clients.cli import app
from frontrow.foundation.model import FoundationModel
from frontrow.foundation.schema import FIRST, UNKNOWN, Field, Schema, default_schema
from frontrow.training import warm_start as warm_start_module
from frontrow.training.batches import evaluation_batch, trained_titles
from frontrow.training.data import Dataset, load_dataset, read_table, write_dataset
from frontrow.training.evaluate import ranking_metrics, ranks_of_targets
from frontrow.training.runs import best_epoch, load_run, read_earlier, read_metrics, read_run, train_run
from frontrow.training.similar_titles import mixing_weights
from frontrow.training.train import build_model, train
from frontrow.training.warm_start import Earlier, warm_start
from typer.testing import CliRunner

if TYPE_CHECKING:
    from conftest import TinyRun

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
NEW_MEMBER, NEW_TITLES = 500, (3, 8999, 9000)  # ids before and after those there are
GENRE = "Aardvarks"  # sorts before every genre there is


def newer(folder: Path, source: Path, metadata: Sequence[str] = ("year", "genres")) -> Path:
    """The tiny data with a member, titles, a genre, an action type and a locale more; old events are all there."""
    events, titles = (read_table(source / f"{name}.parquet").to_pylist() for name in ("events", "titles"))
    titles += [
        {"title_id": i, "name": f"New {i}", "year": 1990, "genres": [GENRE, "Comedy"] if i == 3 else ["Comedy"]}
        for i in NEW_TITLES
    ]
    for n, title in enumerate([*NEW_TITLES, 501, 502]):
        what = {"action_type": "abduct", "entity_id": title, "entity_type": "movie", "duration_watched_seconds": 60}
        where = {"device": "TV", "locale": "aa-AA"}
        events.append({"member_id": NEW_MEMBER, "timestamp": 1_700_000_000 + n, "what": what, "where": where})
    for title in titles:
        title |= {"studio": "A" if title["title_id"] % 2 else "B"}
        for name in ("year", "genres", "studio"):
            if name not in metadata:
                del title[name]
    write_dataset(folder, pa.Table.from_pylist(events), pa.Table.from_pylist(titles))
    return folder


@pytest.fixture(scope="module")
def earlier(tiny_run: TinyRun) -> Earlier:
    return read_earlier(tiny_run.run_dir)


@pytest.fixture(scope="module")
def newer_folder(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newer(tmp_path_factory.mktemp("newer"), tiny_run.folder, ("year", "genres", "studio"))


@pytest.fixture(scope="module")
def newer_data(newer_folder: Path) -> Dataset:
    return load_dataset(newer_folder, default_schema())


def more_fields(schema: Schema) -> Schema:
    """Two event fields and a title field more, in front of the others, and the order of the others turned round."""
    fields = (
        Field("studio", "title.studio", "category", "action", 4, loss_weight=0.1),
        Field("how long", "what.duration_watched_seconds", "number", "action", 4, edges=(100.0,)),
    )
    # One path may be read twice only as one kind; `how long` is a number as `duration` is.
    title_fields = (Field("studio", "title.studio", "category", "action", 4), *schema.title_fields[::-1])
    return Schema((*fields, *schema.fields[::-1]), title_fields)


def carried(earlier: Earlier, tiny_run: TinyRun, data: Dataset, **given: Any) -> FoundationModel:
    model = build_model(data, tiny_run.config.model)
    model.load_state_dict(warm_start(earlier, model, data, **given).weights)
    return model.eval()


def old_members(data: Dataset, tiny_run: TinyRun) -> np.ndarray:
    """Places in the newer data of the members that the older has too."""
    return np.searchsorted(data.member_ids, tiny_run.data.member_ids)


@torch.no_grad()
def vectors(model: FoundationModel, data: Dataset, members: np.ndarray) -> torch.Tensor:
    return model.encode(*evaluation_batch(data, members, "test", 16, True))[0]


@pytest.mark.parametrize("fields", [lambda s: s, more_fields], ids=["same fields", "more fields, in another order"])
def test_old_input_is_answered_as_before(earlier: Earlier, tiny_run: TinyRun, newer_folder: Path, fields: Any) -> None:
    data = load_dataset(newer_folder, fields(default_schema()))
    model = carried(earlier, tiny_run, data)
    learnt = np.flatnonzero(trained_titles(tiny_run.data))
    there = np.searchsorted(data.titles.ids, tiny_run.data.titles.ids[learnt])
    assert (there != learnt).any(), "the new titles change no place: nothing is tested"
    with torch.no_grad():
        old, new = tiny_run.model.title_vectors()[learnt], model.title_vectors()[there]
    torch.testing.assert_close(new, old, **CLOSE)
    members = vectors(tiny_run.model, tiny_run.data, np.arange(len(tiny_run.data)))
    after = vectors(model, data, old_members(data, tiny_run))
    torch.testing.assert_close(after, members, **CLOSE)
    torch.testing.assert_close(after @ new.T, members @ old.T, **CLOSE)


def test_heads_answer_as_before(earlier: Earlier, tiny_run: TinyRun, newer_data: Dataset) -> None:
    model, hidden = carried(earlier, tiny_run, newer_data), torch.randn(7, 32)
    for f, old in zip(tiny_run.model.heads.fields, tiny_run.model.heads.linear, strict=True):
        new = model.heads.linear[[g.name for g in model.heads.fields].index(f.name)]
        values = tiny_run.data.vocabularies[f.name].values if f.has_vocabulary else range(f.fixed_size() - FIRST)
        known = newer_data.vocabularies[f.name].values if f.has_vocabulary else list(values)
        at = [known.index(v) for v in values]
        torch.testing.assert_close(new(hidden)[:, at], old(hidden), **CLOSE)
        assert torch.isfinite(new(hidden)).all()
    genres = newer_data.vocabularies["genres"].values
    assert genres[0] == GENRE, "the new genre moves no other: nothing is tested"


def test_a_new_value_reads_as_an_unknown_one_did(earlier: Earlier, tiny_run: TinyRun, newer_data: Dataset) -> None:
    model, old = carried(earlier, tiny_run, newer_data), tiny_run.model
    for name, value in (("action_type", "abduct"), ("locale", "aa-AA"), ("genres", GENRE)):
        at = FIRST + newer_data.vocabularies[name].values.index(value)
        assert torch.equal(model.events.table(name)[at], old.events.table(name)[UNKNOWN])


@torch.no_grad()
def test_new_titles_begin_near_those_like_them_or_near_the_average(
    earlier: Earlier, tiny_run: TinyRun, newer_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, learnt = tiny_run.model.events.table("entity_id")[FIRST:], trained_titles(tiny_run.data)
    titles, ids = tiny_run.data.titles, newer_data.titles.ids.tolist()
    years, genres = titles.metadata["year"], titles.metadata["genres"]
    comedies = np.array([g == ["Comedy"] for g in genres]) & learnt
    of_the_time = comedies & np.array([y is not None and 1990 <= y < 1995 for y in years])
    weights = mixing_weights(tiny_run.data, np.flatnonzero(of_the_time)[:1], np.flatnonzero(learnt))[0]
    most = weights == weights.max()
    np.testing.assert_array_equal(np.flatnonzero(learnt)[most], np.flatnonzero(of_the_time))
    assert 0 < weights[comedies[learnt] & ~most].max() < weights.max()
    begun = {}
    for noise in (0.0, warm_start_module.NOISE):
        monkeypatch.setattr(warm_start_module, "NOISE", noise)
        for mix in (True, False):
            model = carried(earlier, tiny_run, newer_data, mix=mix)
            assert all(model.titles.known[ids.index(i)] for i in NEW_TITLES)
            begun[noise, mix] = [model.events.table("entity_id")[FIRST + ids.index(i)] for i in (8999, 9000)]
    mixed = torch.from_numpy(weights) @ old[learnt]
    torch.testing.assert_close(begun[0.0, True][0], mixed, **CLOSE)
    torch.testing.assert_close(begun[0.0, False][0], old[learnt].mean(0), **CLOSE)
    assert torch.equal(*begun[0.0, True])
    one, twin = begun[warm_start_module.NOISE, True]
    assert not torch.equal(one, twin), "titles of equal metadata would begin as one"
    assert float((one - mixed).norm() / old[learnt].std(0).norm()) < 0.2


def test_what_newer_data_lacks_is_kept(earlier: Earlier, tiny_run: TinyRun, tmp_path: Path) -> None:
    """A newer log of few titles: the others keep what was learnt of them, through an epoch too."""
    events = read_table(tiny_run.folder / "events.parquet").to_pylist()
    few = [e for e in events if e["what"]["entity_id"] < 520]
    write_dataset(tmp_path / "data", pa.Table.from_pylist(few), read_table(tiny_run.folder / "titles.parquet"))
    data = load_dataset(tmp_path / "data", default_schema())
    start = warm_start(earlier, build_model(data, tiny_run.config.model), data)
    config = replace(tiny_run.config, epochs=1, learning_rate=1e-9, weight_decay=0.0)
    model = train(data, config, tmp_path / "run", start=start)
    lost = trained_titles(tiny_run.data) & ~trained_titles(data)
    assert lost.sum() > 20
    with torch.no_grad():
        torch.testing.assert_close(model.title_vectors()[lost], tiny_run.model.title_vectors()[lost], **CLOSE)
    rows = FIRST + torch.from_numpy(np.flatnonzero(lost))
    old = tiny_run.model.events.table("entity_id")[rows]
    torch.testing.assert_close(model.events.table("entity_id")[rows], old, **CLOSE)


def test_a_field_that_is_gone_counts_as_absent(earlier: Earlier, tiny_run: TinyRun, tmp_path: Path) -> None:
    schema = default_schema()
    fewer = replace(schema, fields=tuple(f for f in schema.fields if f.name not in ("device", "gap")))
    data = load_dataset(tiny_run.folder, fewer)
    model = carried(earlier, tiny_run, data)
    tokens, offsets = evaluation_batch(tiny_run.data, np.arange(9), "test", 16, True)
    tokens[:, [schema.spans[name][0] for name in ("device", "gap")]] = 0
    with torch.no_grad():
        expected = tiny_run.model.encode(tokens, offsets)[0]
    torch.testing.assert_close(vectors(model, data, np.arange(9)), expected, **CLOSE)


def test_a_new_field_learns(earlier: Earlier, tiny_run: TinyRun, newer_folder: Path, tmp_path: Path) -> None:
    """Zero is where it begins, not where it stays."""
    data = load_dataset(newer_folder, more_fields(default_schema()))
    start = warm_start(earlier, build_model(data, tiny_run.config.model), data)
    train(data, replace(tiny_run.config, epochs=1), tmp_path, start=start)
    assert not start.weights["events.projection.weight"][:, :8].any()
    trained = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert trained["events.projection.weight"][:, :8].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: replace(e, config=replace(e.config, d_model=64, layers=3)), "d_model was 64, now 32; layers was 3"),
        (lambda e: replace(e, schema=field_changed(e.schema, "device", width=9)), "'device': width was 9, now 8"),
        (lambda e: replace(e, schema=field_changed(e.schema, "gap", edges=(1.0,))), r"'gap': edges was \(1.0,\), now"),
        (lambda e: replace(e, schema=renamed(e.schema, "entity_id", "film")), "field was 'film', now 'ent"),
        (lambda e: replace(e, schema=replace(e.schema, title_fields=e.schema.title_fields[:1])), None),
    ],
)
def test_what_cannot_be_carried_is_named(
    earlier: Earlier, tiny_run: TinyRun, change: Any, words: str | None
) -> None:  # fmt: skip
    model = build_model(tiny_run.data, tiny_run.config.model)
    if words is None:  # a title field more is no change
        warm_start_module._check(change(earlier), model)
        return
    with pytest.raises(ValueError, match=words):
        warm_start(change(earlier), model, tiny_run.data)


def field_changed(schema: Schema, name: str, **change: Any) -> Schema:
    return replace(schema, fields=tuple(replace(f, **change) if f.name == name else f for f in schema.fields))


def renamed(schema: Schema, name: str, other: str) -> Schema:
    return replace(schema, fields=tuple(replace(f, name=other) if f.name == name else f for f in schema.fields))


def test_a_run_remembers_where_it_began(
    tiny_run: TinyRun, newer_folder: Path, newer_data: Dataset, tmp_path: Path
) -> None:
    config, run = replace(tiny_run.config, epochs=1), tmp_path / "run"
    train_run(run, newer_folder, newer_data, config, begin_from=tiny_run.run_dir)
    source = read_run(run)["from"]
    assert source["run"] == str(tiny_run.run_dir.resolve())
    assert read_run(tiny_run.run_dir)["from"] is None
    model, _ = load_run(run)
    assert not torch.equal(
        model.events.projection.weight, build_model(newer_data, config.model).events.projection.weight
    )
    with pytest.raises(ValueError, match=r"it began from .*, not what is given now"):
        train_run(run, newer_folder, newer_data, config, resume=True)
    train_run(run, newer_folder, newer_data, config, resume=True, begin_from=tiny_run.run_dir)
    with pytest.raises(ValueError, match="cannot begin from itself"):
        train_run(run, newer_folder, newer_data, config, overwrite=True, begin_from=run)


def test_a_run_without_weights_is_no_beginning(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((tiny_run.run_dir / "run.json").read_bytes())
    with pytest.raises(ValueError, match=r"best.pt is missing"):
        read_earlier(tmp_path)


def test_a_damaged_run_is_no_beginning(tiny_run: TinyRun, tmp_path: Path) -> None:
    def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        weights = torch.load(tiny_run.run_dir / "best.pt", weights_only=True)
        change(weights)
        torch.save(weights, tmp_path / "best.pt")

    for name in ("run.json", "vocabularies.json"):
        (tmp_path / name).write_bytes((tiny_run.run_dir / name).read_bytes())
    with_weights(lambda weights: weights.pop("heads.member.weight"))
    with pytest.raises(ValueError, match=r"(?s)damaged .*heads.member.weight"):
        read_earlier(tmp_path)
    with_weights(lambda weights: weights["heads.member.weight"].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"heads.member.weight has values that are not finite"):
        read_earlier(tmp_path)
    (tmp_path / "best.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        read_earlier(tmp_path)
    (tmp_path / "vocabularies.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        read_earlier(tmp_path)


def test_a_run_of_an_older_version_reads_its_data_again(tiny_run: TinyRun, earlier: Earlier, tmp_path: Path) -> None:
    for name in ("run.json", "best.pt"):
        (tmp_path / name).write_bytes((tiny_run.run_dir / name).read_bytes())
    found = read_earlier(tmp_path)
    assert {k: v.values for k, v in found.vocabularies.items()} == {
        k: v.values for k, v in earlier.vocabularies.items()
    }


def test_the_command_line_takes_fields_and_settings_of_the_model_from_the_run(
    tiny_run: TinyRun, newer_folder: Path, tmp_path: Path
) -> None:
    given = ["train", "--data", newer_folder, "--run", tmp_path / "run", "--epochs", 1, "--from", tiny_run.run_dir]
    done = CliRunner().invoke(app, [*map(str, given), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["epoch"] in (0, 1), "the better of the two"
    assert read_run(tmp_path / "run")["config"]["model"] == asdict(tiny_run.config.model)
    assert read_run(tmp_path / "run")["from"]["run"] == str(tiny_run.run_dir)


def test_what_a_run_begins_from_is_kept_if_no_epoch_is_better(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A learning rate that destroys the weights: on the same data nothing can be better than before."""
    config = replace(tiny_run.config, epochs=2, learning_rate=5.0, warmup_steps=0, patience=2)
    model = train_run(tmp_path / "run", tiny_run.folder, tiny_run.data, config, begin_from=tiny_run.run_dir)
    lines = read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert best_epoch(tmp_path / "run")["epoch"] == 0
    assert lines[0]["validation_ndcg@10"] == pytest.approx(ranking_metrics(
        ranks_of_targets(tiny_run.model, tiny_run.data, "validation"))["ndcg@10"])  # fmt: skip
    for name, value in tiny_run.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
