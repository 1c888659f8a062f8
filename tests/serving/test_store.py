"""What a bundle must be to be served, beyond whole files; and that what is exported always is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TinyRun
from frontrow.foundation.bundle import BundleError, bundle_versions, load_bundle
from frontrow.foundation.schema import FIRST, Field, Schema
from frontrow.kernels.catalogue_search import catalogue_search
from frontrow.serving.homepage import HomepageEngine, Page
from frontrow.serving.known import check_known
from frontrow.serving.requests import PageRequest
from frontrow.serving.rows import RowError
from frontrow.serving.store import Store
from frontrow.training import export
from frontrow.training.data import DataError, load_dataset, write_dataset
from frontrow.training.export import export_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Any:
    return load_bundle(tiny_bundle)


def test_an_index_that_faiss_cannot_make_is_named(bundle: Any) -> None:
    """It knows IVF, but 120 titles are too few to train 4096 cells."""
    store = Store(dataclasses.replace(bundle, manifest={**bundle.manifest, "index": "IVF4096,Flat"}))
    with pytest.raises(BundleError, match=r"manifest\.json: FAISS makes no index 'IVF4096,Flat' of 120 titles"):
        _ = store.index


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.update(embedding=w["embedding"][:, 0]),
        lambda w: w.update(embedding=w["embedding"][1:]),
        lambda w: w.update(row_ids=torch.tensor(3)),
        lambda w: w.pop("row_ids"),
        lambda w: w.pop("blend"),
        lambda w: w.update({"up.weight": w["up.weight"].T}),
    ],
)
def test_a_row_ranker_that_does_not_fit_is_named(bundle: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = dict(bundle.row_ranker)
    change(weights)
    with pytest.raises(BundleError, match=r"row_ranker\.safetensors does not fit the model"):
        Store(dataclasses.replace(bundle, row_ranker=weights))


def test_action_and_locale_are_found_by_their_paths_whatever_their_names(bundle: Any) -> None:
    """The same fields under other names: the same liked titles and the same page."""
    names = {"action_type": "did", "locale": "language"}

    def renamed(f: Field) -> Field:
        return dataclasses.replace(f, name=names.get(f.name, f.name))

    schema = Schema(tuple(map(renamed, bundle.schema.fields)), bundle.schema.title_fields)
    vocabularies = {names.get(name, name): v for name, v in bundle.vocabularies.items()}
    store, other = Store(bundle), Store(dataclasses.replace(bundle, schema=schema, vocabularies=vocabularies))
    ids = bundle.histories.member(3).ids
    assert other.member_view(ids).liked == store.member_view(ids).liked != []
    assert other.locale_column == store.locale_column is not None
    abandoned = ids.copy()
    abandoned[:, 0] = FIRST + bundle.vocabularies["action_type"].values.index("abandon")
    assert other.member_view(abandoned).liked == []
    request = PageRequest(1003, context=b'{"locale": "de-DE"}')
    page, same = (HomepageEngine(s).pages([request], 1.8e9)[0] for s in (store, other))
    assert isinstance(page, Page)
    assert isinstance(same, Page)
    np.testing.assert_array_equal(page.title_ids, same.title_ids)


def test_the_fingerprint_goes_with_every_page(bundle: Any, tiny_bundle: Path) -> None:
    (page,) = HomepageEngine(Store(bundle)).pages([PageRequest()])
    assert isinstance(page, Page)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    assert page.info["bundle_fingerprint"] == manifest["manifest_sha256"]


# --- Exports ---


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row rankers of one epoch."""
    train = export.row_ranking.train_row_ranker
    monkeypatch.setattr(export.row_ranking, "train_row_ranker", lambda *a, **k: train(*a, epochs=1, **k))


def test_a_bundle_whose_known_page_is_empty_is_served(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only row is about a liked title, which the known anonymous member lacks."""
    quick(monkeypatch)
    row = {"row_id": 1, "label": "Because you liked {title}", "where": "similar_to_liked(1)", "min_titles": 1}
    path = export_bundle(tiny_run.model, tiny_run.data, tmp_path, {}, {"liked_actions": ["play"], "rows": [row]})
    assert [] in [answer["row_scores"] for answer in json.loads((path / "known.json").read_text())["answers"]]
    check_known(HomepageEngine(Store.open(path)))


def test_known_requests_are_older_than_any_event(tiny_bundle: Path, bundle: Any) -> None:
    """A server refuses times ahead of its clock, which may be behind the newest event."""
    assert bundle.known["context"]["timestamp"] <= int(bundle.histories.timestamp.min())


def test_a_bundle_that_answers_otherwise_than_it_says_is_not_exported(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    known_answers = export.known_answers

    def wrong(*arguments: Any) -> Any:
        known = known_answers(*arguments)
        known["answers"][0]["row_scores"][0] += 1
        return known

    monkeypatch.setattr(export, "known_answers", wrong)
    with pytest.raises(BundleError, match="a known request is answered differently"):
        export_bundle(tiny_run.model, tiny_run.data, tmp_path, {})
    assert bundle_versions(tmp_path) == []


@pytest.mark.parametrize("rows", [{}, [], {"liked_actions": [], "rows": []}])
def test_wrong_rows_are_told_before_any_work(
    tiny_run: TinyRun, tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "candidate_lists", None)
    with pytest.raises(RowError):
        export_bundle(tiny_run.model, tiny_run.data, tmp_path, {}, rows)


def test_an_event_from_the_future_is_refused_with_the_file_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    events = pq.read_table(tiny_run.folder / "events.parquet")
    times = events["timestamp"].to_pylist()
    times[3] = 4_000_000_000
    events = events.set_column(events.column_names.index("timestamp"), "timestamp", [times])
    write_dataset(tmp_path, events, pq.read_table(tiny_run.folder / "titles.parquet"))
    with pytest.raises(
        DataError, match=r"events\.parquet: column 'timestamp', event 3: it is 4000000000, in the future"
    ):
        load_dataset(tmp_path, tiny_run.data.schema)


def test_the_nearest_titles_are_the_same_from_faiss_and_from_the_kernel(tiny_bundle: Path) -> None:
    store = Store.open(tiny_bundle)
    asked = np.random.default_rng(0).normal(size=(3, store.vectors.shape[1])).astype(np.float32)
    searched, _ = catalogue_search(torch.from_numpy(asked), store.vectors.cpu(), 40)
    assert store.nearest(asked, 40).tolist() == searched.tolist()
