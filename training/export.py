"""From a trained model to a bundle: row catalogue, row ranker, candidate lists, known answers.

Shape letters: B members, N titles, R rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.bundle import Bundle, write_bundle
from ..foundation.model import FoundationModel
from ..foundation.row_ranker import ROW_STATISTICS, RowRanker
from ..foundation.titles import Titles
from ..serving.homepage import HomepageEngine
from ..serving.known import check_known, known_answers
from ..serving.rows import RowCatalogue, RowSpec, TitleColumns, rows_to_json
from ..serving.store import Store
from . import row_ranking
from .alignment import align
from .baselines import NEIGHBOURS, interactions, item_similarity, keep_largest, user_similarity
from .batches import training_events
from .data import Dataset
from .served_rows import blend, served_at

LIKED_ACTIONS = ("like", "love", "add", "play", "complete", "rate_4", "rate_5")
USER_USER_KEPT = 200
# All titles, in half the bytes: reading them is what a search waits for. Their scores are computed from float32.
INDEX = "SQfp16"


def default_rows(titles: Titles) -> list[RowSpec]:
    """A row catalogue from whatever metadata there is: `genres` and `year`; and rows that need none."""
    rows = [
        RowSpec(1, "Popular now", "popularity >= 0.9"),
        RowSpec(3, "Continue exploring", "popularity < 0.6"),
        RowSpec(10, "Because you liked {title}", "similar_to_liked(1)"),
        RowSpec(11, "Because you liked {title}", "similar_to_liked(2)"),
        RowSpec(12, "Because you liked {title}", "similar_to_liked(3)"),
    ]
    years = [int(y) for y in titles.metadata.get("year", ()) if isinstance(y, int | float)]
    if years:
        rows.append(RowSpec(2, "New releases", "year >= latest_year - 1"))
    for decade, count in sorted(Counter(y // 10 * 10 for y in years).items()):
        if count >= 20:
            rows.append(
                RowSpec(200 + (decade - 1900) // 10, f"From the {decade}s", f"{decade} <= year < {decade + 10}")
            )
    lists = [several for several in titles.metadata.get("genres", ()) if isinstance(several, list)]
    genres = Counter(genre for several in lists for genre in several)
    for i, (genre, count) in enumerate(sorted(genres.items())):
        if count >= 20:
            rows.append(RowSpec(100 + i, genre, f"{genre!r} in genres"))
    return sorted(rows, key=lambda r: r.row_id)


def title_lists(data: Dataset, events: np.ndarray) -> dict[str, Tensor]:
    """Of the events in bool [T]: popularity int64 [N] (members who played each title); item_item int32 [N, 50] nearest
    titles, best first, −1 padded, with item_item_scores float32."""
    matrix = interactions(data, events)
    near, scores = _largest(item_similarity(matrix), NEIGHBOURS)
    return {
        "popularity": torch.from_numpy(matrix.sum(0).astype(np.int64)),
        "item_item": torch.from_numpy(near),
        "item_item_scores": torch.from_numpy(scores),
    }


def candidate_lists(data: Dataset, events: np.ndarray) -> dict[str, Tensor]:
    """`title_lists` of the events in bool [T], and of them user_user int32 [B, 200], titles that the member has not
    played, best first, −1 padded."""
    matrix = interactions(data, events)
    taste = keep_largest(user_similarity(matrix)) @ matrix
    others, _ = _largest(np.where(matrix > 0, 0.0, taste), USER_USER_KEPT)
    return title_lists(data, events) | {"user_user": torch.from_numpy(others)}


def _largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns int32 and values float32 of the positive `count` largest of each row, ties to the smaller column."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(scores, order, axis=1)
    return np.where(values > 0, order, -1).astype(np.int32), np.maximum(values, 0.0).astype(np.float32)


def export_bundle(
    model: FoundationModel,
    data: Dataset,
    bundles: Path,
    metrics: Mapping[str, Any],
    rows: Any = None,
    weights: str = "",
    data_set: str = "",
    on_epoch: Callable[[int, int], None] = lambda done, total: None,
    align_to: Path | None = None,
) -> Path:
    """Train the row ranker and write the next bundle; returns its directory.

    rows: the content of a rows.json; None for `default_rows`. weights: what the weights came from, data_set:
    what to call the data; both are kept in the manifest. align_to: a bundle in whose space the vectors shall be; how
    far they were apart goes into the metrics. Raises RowError for a row that is wrong, TooLarge for more members or
    titles than baselines.py can take, BundleError or ValueError for a bundle that cannot be aligned to.
    """
    rows = rows_to_json(default_rows(data.titles), LIKED_ACTIONS) if rows is None else rows
    plays = np.zeros(len(data.titles))  # a wrong row is told before any work begins
    RowCatalogue(rows, TitleColumns.from_metadata(len(data.titles), data.titles.metadata, plays))
    model = model.cpu().eval()
    if align_to is not None:
        model, found = align(model, data, align_to)
        metrics = {**metrics, "alignment": found}
    candidates = candidate_lists(data, np.ones(len(data.events.ids), bool))
    # The served lists know all events. The ranker is trained and measured on rows made of training events alone: else
    # popularity and neighbours give the held-out titles away (measured: an AUC of 0.705 in place of 0.7035).
    ranker, row_table = train_rows(model, data, rows, candidate_lists(data, training_events(data)), on_epoch)
    served = in_memory(model, data, rows, candidates, ranker)
    engine = HomepageEngine(Store(served))
    documents = {"vocabularies.json": {name: v.values for name, v in data.vocabularies.items()}, "rows.json": rows}
    manifest = {
        **served.manifest,
        "data_fingerprint": data.fingerprint,
        "weights": weights,
        "data_set": data_set,
        "as_of": int(data.events.timestamp.max()),
    }
    # At the time of the first event: the clock of a host that serves it may be behind the newest.
    some = [*data.member_ids[[0, len(data) // 2, -1]].tolist(), -1]
    documents["known.json"] = known_answers(engine, some, int(data.events.timestamp.min()))
    members = {
        "member_ids": torch.from_numpy(data.member_ids),
        "offsets": torch.from_numpy(data.events.offsets),
        "ids": torch.from_numpy(data.events.ids),
        "timestamp": torch.from_numpy(data.events.timestamp),
    }
    tensors = {
        "model.safetensors": model.state_dict(),
        "vectors.safetensors": {"titles": served.vectors},
        "members.safetensors": members,
        "candidates.safetensors": candidates,
        "row_ranker.safetensors": ranker.state_dict(),
    }
    full = {**manifest, "metrics": {**metrics, "rows": row_table}}
    return write_bundle(
        bundles, full, documents, data.titles, tensors, check=lambda path: check_known(HomepageEngine(Store.open(path)))
    )


def in_memory(
    model: FoundationModel, data: Dataset, rows: Any, candidates: Mapping[str, Tensor], ranker: RowRanker | None = None
) -> Bundle:
    """What a Store needs of a bundle, unwritten; ranker None: an untrained one."""
    with torch.no_grad():
        vectors = model.title_vectors().float()
    if ranker is None:
        columns = TitleColumns.from_metadata(len(data.titles), data.titles.metadata, candidates["popularity"].numpy())
        ids = torch.from_numpy(RowCatalogue(rows, columns).ids)
        ranker = RowRanker(ids, model.config.d_model, vectors.shape[1])
    return Bundle(
        path=Path(), version=0, schema=data.schema, vocabularies=data.vocabularies, titles=data.titles,
        manifest={"schema": data.schema, "model_config": model.config.to_dict(), "index": INDEX},
        title_ids=data.title_ids, weights=model.state_dict(), vectors=vectors, member_ids=data.member_ids,
        histories=data.events, candidates=candidates, row_ranker=ranker.state_dict(), rows=rows, known=None,
    )  # fmt: skip


def train_rows(
    model: FoundationModel,
    data: Dataset,
    rows: Any,
    candidates: Mapping[str, Tensor],
    on_epoch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[RowRanker, dict[str, dict[str, float | None]]]:
    """The trained ranker and its table on the test events. candidates: lists that know training events alone."""
    store = Store(in_memory(model, data, rows, candidates))
    row_ids, features = torch.from_numpy(store.rows.ids), store.row_features
    assert features.shape[1] == store.vectors.shape[1] + ROW_STATISTICS
    train, validation = (
        row_ranking.moments(store.model, data, store.rows, store.member_view, part) for part in (None, "validation")
    )
    ranker = row_ranking.train_row_ranker(train, validation, row_ids, features, on_epoch=on_epoch)
    engine = HomepageEngine(Store(in_memory(model, data, rows, candidates, ranker)))
    seen, test = (served_at(engine, data, row_ranking.held_out_choices(data, part)) for part in ("validation", "test"))
    ranker = blend(ranker, seen)
    static = torch.from_numpy(store.rows.static).float()
    plays = static @ torch.from_numpy(store.popularity).float() / static.sum(1).clamp(min=1)
    logits = {"row_ranker": test.blended(ranker), "state_alone": test.logits}
    return ranker, row_ranking.evaluate_rows(logits, train, test.moments, features, plays)
