"""Cold titles and new members: what is held out is held out, and the sections say what the results say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from frontrow.benchmarks import cold_start, history_length
from frontrow.benchmarks.cold_splits import PER_MEMBER, Split, first_plays, newest_per_member, stratified
from frontrow.foundation.schema import UNKNOWN
from frontrow.training.batches import (
    batch_before,
    evaluated_members,
    evaluation_batch,
    target_positions,
    trained_titles,
)
from frontrow.training.data import Dataset, load_dataset, read_table, write_dataset
from frontrow.training.evaluate import ranks_of_targets
from frontrow.training.train import build_model

if TYPE_CHECKING:
    from conftest import TinyRun


@pytest.fixture(scope="module")
def split(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The tiny data without the events of a tenth of its titles."""
    full, folder = tiny_run.data, tmp_path_factory.mktemp("cold") / "data"
    index = full.title_indices()
    new = stratified(np.bincount(index, minlength=len(full.titles)), 0.1, np.random.default_rng(0))
    events, titles = (read_table(tiny_run.folder / f"{name}.parquet") for name in ("events", "titles"))
    cold = pc.is_in(pc.struct_field(events["what"], "entity_id"), pa.array(full.titles.ids[new]))
    write_dataset(folder, events.filter(pc.invert(cold)), titles)
    warm = np.zeros(len(index), bool)
    warm[full.events.offsets[1:] - 1] = True
    train = load_dataset(folder, full.schema)
    asked = newest_per_member(full, new[index])
    return Split(folder, train, full, new, asked, np.flatnonzero(warm & ~new[index]))


def test_held_out_titles_are_of_every_popularity() -> None:
    plays = np.arange(200)
    new = stratified(plays, 0.1, np.random.default_rng(3))
    assert not new[0], "nobody would ask for a title without plays"
    strata = np.array_split(np.arange(199, 0, -1), 10)
    assert [int(new[s].sum()) for s in strata] == [2] * 10


def test_the_newest_few_of_each_member_are_asked_for(tiny_data: Dataset) -> None:
    wanted = np.random.default_rng(0).random(len(tiny_data.events.ids)) < 0.4
    asked = newest_per_member(tiny_data, wanted)
    expected = []
    for start, stop in zip(tiny_data.events.offsets[:-1], tiny_data.events.offsets[1:], strict=True):
        expected += [start + i for i in np.flatnonzero(wanted[start:stop])[-PER_MEMBER:]]
    assert asked.tolist() == expected


def test_a_first_play_is_a_play_and_the_first() -> None:
    events = pa.table({
        "member_id": [1, 1, 1, 1, 2], "timestamp": [1, 2, 3, 4, 5],
        "what": [{"action_type": a, "entity_id": i} for a, i in
                 (("search", 7), ("play", 7), ("play", 7), ("play", 8), ("play", 7))],
    })  # fmt: skip
    assert first_plays(events)["timestamp"].to_pylist() == [2, 4, 5]


def test_any_event_is_asked_for_as_a_held_out_one_is(tiny_data: Dataset) -> None:
    members = np.array([0, 5, 9])
    one = batch_before(tiny_data, tiny_data.events.offsets[members + 1] - 1, 16, True)
    other = evaluation_batch(tiny_data, members, "test", 16, True)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_places_among_new_titles_are_those_of_a_plain_ranking(split: Split, tiny_run: TinyRun) -> None:
    model = build_model(split.train, tiny_run.config.model).eval()
    assert not trained_titles(split.train)[split.new].any()
    found = cold_start.ranked(model, split, split.asked)
    vectors, data = model.title_vectors().detach(), split.full
    for i in (0, 7, len(split.asked) - 1):
        at = int(split.asked[i])
        member = int(np.searchsorted(data.events.offsets, at, side="right") - 1)
        target = int(data.title_indices()[at])
        seen = set(data.title_indices()[data.events.offsets[member] : at].tolist()) - {target}
        left = [t for t in np.flatnonzero(split.new).tolist() if t not in seen]
        vector = model.encode(*batch_before(data, np.array([at]), 16, True))[0].detach()[0]
        scores = {t: float(vectors[t] @ vector) for t in left}
        assert found["candidates"][i] == len(left)
        assert found["model"][i] == sorted(left, key=lambda t: (-scores[t], t)).index(target)


def test_live_popularity_knows_nothing_later(split: Split, tiny_run: TinyRun) -> None:
    """Events after the newest request about new titles change no place by it."""
    model = build_model(split.train, tiny_run.config.model).eval()
    first = split.asked[np.argsort(split.full.events.timestamp[split.asked], kind="stable")[:5]]
    before = cold_start.ranked(model, split, first)["live_popularity"]
    when = split.full.events.timestamp[first].max()
    ids = split.full.events.ids.copy()
    column, late = split.full.schema.spans["entity_id"][0], split.full.events.timestamp > when
    ids[late & split.new[split.full.title_indices()], column] = 2 + np.flatnonzero(split.new)[0]
    later = replace(split, full=replace(split.full, events=replace(split.full.events, ids=ids)))
    np.testing.assert_array_equal(cold_start.ranked(model, later, first)["live_popularity"], before)


@pytest.fixture
def result(split: Split, tiny_run: TinyRun) -> dict[str, Any]:
    model = build_model(split.train, tiny_run.config.model).eval()
    run = {"seed": 0, "epochs": 1, **cold_start.measured(split, model)}
    return json.loads(json.dumps({"id_dropout": 0.1, "ml-100k": {"0.1": [run]}}))


def test_the_section_on_cold_titles_has_the_results_figures(result: dict[str, Any]) -> None:
    text, run = cold_start.markdown(result), result["ml-100k"]["0.1"][0]
    for name, words in cold_start.RANKED_BY.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {words} |"))
        assert re.findall(r"[\d.]+", line)[-2:] == [f"{run['among_new'][name][m]:.3f}" for m in ("hr@10", "ndcg@10")]


def test_the_picture_of_cold_titles_is_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    cold_start.draw(result, tmp_path / "cold-start.png")
    assert (tmp_path / "cold-start.png").stat().st_size > 5000


@pytest.mark.parametrize("kept", ["newest", "first"])
def test_a_whole_history_is_ranked_as_in_evaluation(tiny_run: TinyRun, kept: str) -> None:
    config = replace(tiny_run.config.model, max_events=200)
    model = build_model(tiny_run.data, config).eval()
    expected = ranks_of_targets(model, tiny_run.data, "test")
    np.testing.assert_array_equal(history_length.ranks(model, tiny_run.data, 1000, kept), expected)


def test_a_title_that_the_catalogue_lacks_comes_last(tiny_run: TinyRun) -> None:
    data, (column, _) = tiny_run.data, tiny_run.data.schema.spans["entity_id"]
    ids = data.events.ids.copy()
    ids[target_positions(data, evaluated_members(data)[:2], "test"), column] = UNKNOWN
    without = replace(data, events=replace(data.events, ids=ids))
    model = build_model(data, tiny_run.config.model).eval()
    assert (history_length.ranks(model, without, 3, "newest")[:2] == len(data.titles)).all()


def test_a_shortened_history_tells_nothing_else(tiny_data: Dataset) -> None:
    """Of n events n actions are read, and the gap before the first of them is absent, as for somebody new."""
    schema, members = tiny_data.schema, evaluated_members(tiny_data)
    gap, title = schema.spans["gap"][0], schema.spans["entity_id"][0]
    for kept, of in (("newest", lambda ids, n: ids[-1 - n : -1]), ("first", lambda ids, n: ids[:n])):
        for n in (0, 1, 3):
            short = history_length.shortened(tiny_data, n, kept)
            tokens, offsets = batch_before(short, short.events.offsets[1:] - 1, 200, True)
            assert (offsets.diff() == n + 1).all()
            assert (tokens[offsets[:-1], gap] == 0).all()
            for i, member in enumerate(members[:5].tolist()):
                read = tokens[offsets[i] : offsets[i + 1], title].tolist()
                assert read == [0, *of(tiny_data.events.member(member).ids, n)[:, title].tolist()]


def test_what_is_ahead_of_popularity_is_the_difference_of_the_two(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_length, "LENGTHS", (0, 2))
    monkeypatch.setattr(history_length, "LONG", 3)
    found = history_length.measure([tiny_run.run_dir])
    of, popular = found["newest"]["2"]["all"], found["popularity"]["all"]
    assert of["ahead"]["mean"] == pytest.approx(of["hr@10"]["mean"] - popular["hr@10"]["mean"])
    text = history_length.markdown({**found, "runs": [{"seed": 0}]})
    assert f"n = 2 {of['ahead']['mean']:+.3f}" in text
