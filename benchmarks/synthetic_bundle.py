"""A bundle of a large catalogue for measurements of speed: nothing is trained, everything is drawn from a seed.

    python -m frontrow.benchmarks.synthetic_bundle FOLDER [--titles 100000] [--members 2000] [--seed 0]

Titles have genres, a year and a popularity that falls as Zipf's law. Members have 200 events as MovieLens-100K's do:
titles of two favourite genres more than others, each once, rated in a few sittings, no device and no duration. A page
of 40 × 20 is full. Weights are those of a new model of the default schema and config: pages take the time of trained
ones, and are good for nothing else.
Shape letters: N titles, B members, G genres, C encoded columns.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..foundation.bundle import Bundle, vocabularies_by_path, write_bundle
from ..foundation.encoding import Encoded, encode
from ..foundation.events import Coded, EventColumns
from ..foundation.model import FoundationModel, ModelConfig
from ..foundation.row_ranker import RowRanker
from ..foundation.schema import Vocabulary, default_schema
from ..foundation.titles import Titles, encode_titles
from ..serving.homepage import HomepageEngine
from ..serving.known import check_known, known_answers
from ..serving.rows import RowCatalogue, RowSpec, TitleColumns, rows_to_json
from ..serving.store import Store
from ..training.baselines import NEIGHBOURS
from ..training.data import Dataset, fit_vocabularies
from ..training.export import INDEX, LIKED_ACTIONS, USER_USER_KEPT, default_rows
from .command import command, positive, seed_of

HISTORY = 200
GENRES = (
    "Action", "Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy", "History",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Sport", "Thriller", "War",
)  # fmt: skip
FAVOURITE = 8.0  # how much likelier a member takes a title of a favourite genre
ZIPF_SHIFT = 50  # popularity of the r-th title: 1 / (r + shift); the first has about 0.3 % of the plays of 10⁵ titles
NOON = 1_714_564_800  # no event is later: 2024-05-01, 12:00 UTC
SITTINGS, SITTING_DAYS = 4, 30
RATINGS = (0.06, 0.11, 0.27, 0.34, 0.22)  # share of one to five stars, about that of MovieLens-100K


def make_titles(count: int, rng: np.random.Generator) -> tuple[Titles, np.ndarray, np.ndarray]:
    """(titles, popularity int64 [N], genre bool [N, G]); 2 or 3 genres each, years 1930 to 2024, most of them late."""
    genre = rng.random((count, len(GENRES))).argsort(1).argsort(1) < rng.integers(2, 4, (count, 1))
    years = 2024 - (95 * rng.random(count) ** 1.5).astype(int)
    popularity = np.ceil(1e7 / (rng.permutation(count) + ZIPF_SHIFT)).astype(np.int64)
    titles = Titles(
        np.arange(1, count + 1, dtype=np.int64),
        [f"Title {i}" for i in range(1, count + 1)],
        {"genres": [[GENRES[g] for g in np.flatnonzero(row)] for row in genre], "year": years.tolist()},
    )
    return titles, popularity, genre


def make_rows(titles: Titles) -> list[RowSpec]:
    """The default rows and pairs of genres, each of 20 titles at least, so that 40 of them fill a page of 40 × 20."""
    pairs = [
        RowSpec(300 + i, f"{one} or {other}", f"{one!r} in genres or {other!r} in genres")
        for i, (one, other) in enumerate(zip(GENRES, GENRES[5:] + GENRES[:5], strict=True))
    ]
    return sorted((replace(r, min_titles=20) for r in (*default_rows(titles), *pairs)), key=lambda r: r.row_id)


def make_histories(
    popularity: np.ndarray, genre: np.ndarray, members: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(titles played int64 [B, 200], titles that similar members played int32 [B, 200]), no title twice in a line."""
    played = np.empty((members, HISTORY), np.int64)
    others = np.empty((members, USER_USER_KEPT), np.int32)
    both = HISTORY + USER_USER_KEPT
    for member in range(members):
        favourite = rng.choice(len(GENRES), 2, replace=False)
        weight = popularity * np.where(genre[:, favourite].any(1), FAVOURITE, 1.0)
        # The smallest of exponential variables with these rates: draws without replacement.
        drawn = rng.permutation(np.argpartition(rng.standard_exponential(len(weight)) / weight, both)[:both])
        played[member], others[member] = drawn[:HISTORY], drawn[HISTORY:]
    return played, others


def make_times(members: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [B, 200], rising: a few sittings in which a title follows the other within a minute."""
    sitting = np.sort(rng.integers(0, SITTING_DAYS * 86400, (members, SITTINGS)), axis=1)
    of_event = np.sort(rng.integers(0, SITTINGS, (members, HISTORY)), axis=1)
    within = np.cumsum(rng.geometric(1 / 20, (members, HISTORY)) - 1, axis=1)
    times = np.take_along_axis(sitting, of_event, axis=1) + within
    return NOON - times.max() + np.sort(times, axis=1)


def neighbours(popularity: np.ndarray, genre: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """item_item int32 [N, 50], −1 padded, and its scores float32, best first: titles that share a genre, popular ones
    more often, as co-occurrence has it."""
    near = np.full((len(genre), NEIGHBOURS), -1, np.int32)
    scores = np.zeros((len(genre), NEIGHBOURS), np.float32)
    of_title = (genre * rng.random(genre.shape)).argmax(1)
    for g in range(len(GENRES)):
        group = np.flatnonzero(of_title == g)
        group = group[np.argsort(-popularity[group], kind="stable")]
        others = len(group) - 1
        kept = min(NEIGHBOURS, others)
        if kept < 1:
            continue
        # One title from each of `kept` slices of the others, which grow with the square of the rank: no title twice.
        steps = np.arange(kept + 1)
        edges = np.maximum(steps, others * steps**2 // kept**2)
        at = edges[:-1] + (rng.random((len(group), kept)) * np.diff(edges)).astype(np.int64)
        at += at >= np.arange(len(group))[:, None]  # past the title itself
        near[group, :kept] = group[rng.permuted(at, axis=1)]
        scores[group, :kept] = -np.sort(-rng.uniform(0.01, 0.5, at.shape), axis=1)
    return near, scores


def make_data(titles: Titles, played: np.ndarray, rng: np.random.Generator) -> Dataset:
    """The members' events, encoded as load_dataset does it."""
    schema = default_schema()
    members, count = len(played), played.size
    stars = Coded(rng.choice(len(RATINGS), count, p=RATINGS).astype(np.int32), [f"rate_{s}" for s in range(1, 6)])
    columns = EventColumns(
        make_times(members, rng).ravel(),
        {
            "what.entity_id": titles.ids[played.ravel()],
            "what.action_type": stars,
            "what.entity_type": Coded(np.zeros(count, np.int32), ["movie"]),
        },
    )
    offsets = np.arange(0, count + 1, HISTORY, dtype=np.int64)
    vocabularies: dict[str, Vocabulary] = fit_vocabularies(schema, columns, titles)
    title_ids = encode_titles(schema, vocabularies_by_path(schema, vocabularies), titles)
    events: Encoded = encode(schema, vocabularies, columns, offsets, title_ids)
    return Dataset(schema, vocabularies, titles, title_ids, np.arange(1, members + 1), events, "synthetic")


def synthetic_bundle(folder: Path, titles: int = 100_000, members: int = 2_000, seed: int = 0) -> Path:
    """Write the next bundle under `folder`; returns its directory. Raises ValueError for too few titles or members."""
    if titles < 2 * (HISTORY + USER_USER_KEPT) or members < 1:
        raise ValueError(f"{titles} titles, {members} members; give at least {2 * (HISTORY + USER_USER_KEPT)} and 1")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    catalogue, popularity, genre = make_titles(titles, rng)
    played, others = make_histories(popularity, genre, members, rng)
    near, near_scores = neighbours(popularity, genre, rng)
    data = make_data(catalogue, played, rng)
    candidates = {
        "popularity": torch.from_numpy(popularity),
        "item_item": torch.from_numpy(near),
        "item_item_scores": torch.from_numpy(near_scores),
        "user_user": torch.from_numpy(others),
    }
    model = FoundationModel(data.schema, ModelConfig(), data.sizes, torch.from_numpy(data.title_ids)).eval()
    with torch.no_grad():
        vectors = model.title_vectors().float()
    rows = rows_to_json(make_rows(catalogue), LIKED_ACTIONS)
    columns = TitleColumns.from_metadata(titles, catalogue.metadata, popularity)
    row_ids = torch.from_numpy(RowCatalogue(rows, columns).ids)
    ranker = RowRanker(row_ids, model.config.d_model, vectors.shape[1]).eval()
    manifest: dict[str, Any] = {
        "schema": data.schema,
        "model_config": model.config.to_dict(),
        "data_fingerprint": f"synthetic, {titles} titles, {members} members, seed {seed}",
        "index": INDEX,
        "weights": "untrained",
        "data_set": f"synthetic-{titles}",
        "as_of": int(data.events.timestamp.max()),
        "metrics": {},
    }
    bundle = Bundle(
        path=folder, version=0, manifest=manifest, schema=data.schema, vocabularies=data.vocabularies,
        titles=catalogue, title_ids=data.title_ids, weights=model.state_dict(), vectors=vectors,
        member_ids=data.member_ids, histories=data.events, candidates=candidates, row_ranker=ranker.state_dict(),
        rows=rows, known=None,
    )  # fmt: skip
    some = [*data.member_ids[[0, len(data) // 2, -1]].tolist(), -1]
    documents = {
        "vocabularies.json": {name: v.values for name, v in data.vocabularies.items()},
        "rows.json": rows,
        "known.json": known_answers(HomepageEngine(Store(bundle)), some, int(data.events.timestamp.min())),
    }
    tensors: dict[str, dict[str, Tensor]] = {
        "model.safetensors": model.state_dict(),
        "vectors.safetensors": {"titles": vectors},
        "members.safetensors": {
            "member_ids": torch.from_numpy(data.member_ids),
            "offsets": torch.from_numpy(data.events.offsets),
            "ids": torch.from_numpy(data.events.ids),
            "timestamp": torch.from_numpy(data.events.timestamp),
        },
        "candidates.safetensors": candidates,
        "row_ranker.safetensors": ranker.state_dict(),
    }
    return write_bundle(
        folder,
        manifest,
        documents,
        catalogue,
        tensors,
        check=lambda path: check_known(HomepageEngine(Store.open(path))),
    )


if __name__ == "__main__":
    with command("synthetic_bundle", __doc__) as parser:
        parser.add_argument(
            "folder", type=Path, metavar="FOLDER", help="of numbered bundles; the next number is written"
        )
        parser.add_argument("--titles", type=positive, default=100_000)
        parser.add_argument("--members", type=positive, default=2_000)
        parser.add_argument("--seed", type=seed_of, default=0)
        given = parser.parse_args()
        started = time.monotonic()
        written = synthetic_bundle(given.folder, given.titles, given.members, given.seed)
        size = sum(file.stat().st_size for file in written.iterdir())
        print(f"{written}: {size / 1e6:.0f} MB, written in {time.monotonic() - started:.0f} s")
