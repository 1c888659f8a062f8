"""Fixtures shared by all tests: a tiny data set, a model trained on it, its bundle, and the real MovieLens-100K."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: the tests share two cores with others, and small tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any kernel is decorated: on a host without GPU Triton's interpreter runs them on CPU tensors.
if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pyarrow as pa
import pytest
import torch
from frontrow.foundation.model import FoundationModel, ModelConfig
from frontrow.foundation.schema import default_schema
from frontrow.serving.homepage import HomepageEngine
from frontrow.serving.store import Store
from frontrow.training.data import DataError, Dataset, load_dataset, write_dataset
from frontrow.training.export import export_bundle
from frontrow.training.movielens import fetch_movielens_100k
from frontrow.training.runs import train_run
from frontrow.training.train import TrainConfig

MEMBERS, TITLES, EVENTS = 60, 120, 25
NEVER_PLAYED = 5
FIRST_MEMBER, FIRST_TITLE = 1000, 500
GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Thriller")
DAY = 86_400


@dataclass(frozen=True)
class TinyRun:
    """A finished run directory with what went in and came out."""

    run_dir: Path
    folder: Path
    data: Dataset
    config: TrainConfig
    model: FoundationModel


@pytest.fixture(autouse=True)
def _one_thread_and_seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """events.parquet and titles.parquet: members who mostly stay with two genres, every third event at the same second
    as the one before it, device and locale in some events, the last titles never played. Rows are shuffled."""
    rng = np.random.default_rng(7)
    genres = [sorted(rng.choice(GENRES, size=1 + i % 2, replace=False).tolist()) for i in range(TITLES)]
    played = TITLES - NEVER_PLAYED
    of_genre = {g: np.array([i for i in range(played) if g in genres[i]]) for g in GENRES}
    rows = []
    for member in range(MEMBERS):
        liked = rng.choice(GENRES, size=2, replace=False)
        time = 1_700_000_000 + int(rng.integers(0, 30 * DAY))
        for step in range(EVENTS + int(rng.integers(-4, 5))):
            time += 0 if step % 3 == 2 else int(rng.integers(60, 3 * DAY))
            title = rng.choice(of_genre[liked[step % 2]]) if rng.random() < 0.8 else rng.integers(played)
            where = {"device": str(rng.choice(["TV", "phone"])), "locale": "en-US" if member % 2 else "de-DE"}
            what = {
                "action_type": str(rng.choice(["play", "like", "abandon"], p=[0.7, 0.2, 0.1])),
                "entity_id": FIRST_TITLE + int(title),
                "entity_type": "movie" if title % 2 else "show",
                "duration_watched_seconds": None if step % 4 == 0 else int(rng.integers(10, 9000)),
            }
            nowhere = {"device": None, "locale": None}
            rows.append((FIRST_MEMBER + member, time, what, where if step % 5 else nowhere))
    by_column = list(zip(*(rows[i] for i in rng.permutation(len(rows))), strict=True))
    events = pa.table(dict(zip(("member_id", "timestamp", "what", "where"), by_column, strict=True)))
    titles = pa.table(
        {
            "title_id": [FIRST_TITLE + i for i in range(TITLES)],
            "name": [f"Title {i}" for i in range(TITLES)],
            "year": [None if i % 40 == 39 else 1980 + i % 30 for i in range(TITLES)],
            "genres": genres,
        }
    )
    folder = tmp_path_factory.mktemp("tiny_data")
    write_dataset(folder, events, titles)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> Dataset:
    """60 members, 120 titles, about 25 events each."""
    return load_dataset(tiny_folder, default_schema())


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    """Two epochs of a model of 32 columns and 2 layers: about a second."""
    model = ModelConfig(d_model=32, layers=2, heads=2, dropout=0.1, max_events=16)
    return TrainConfig(epochs=2, batch_tokens=200, learning_rate=5e-3, warmup_steps=5, model=model)


@pytest.fixture(scope="session")
def tiny_run(
    tiny_folder: Path, tiny_data: Dataset, tiny_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    """`frontrow train` on the tiny data."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("tiny_run")
    model = train_run(run_dir, tiny_folder, tiny_data, tiny_config)
    return TinyRun(run_dir, tiny_folder, tiny_data, tiny_config, model)


@pytest.fixture(scope="session")
def tiny_model(tiny_run: TinyRun) -> FoundationModel:
    """The trained tiny model, in evaluation mode. Shared by the session: do not change it."""
    return tiny_run.model


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of bundle 1, exported from the tiny run. Shared by the session: copy it before damaging it."""
    torch.set_num_threads(1)
    return export_bundle(tiny_run.model, tiny_run.data, tmp_path_factory.mktemp("bundles"), {"test": {"hr@10": 0.5}})


@pytest.fixture(scope="session")
def movielens() -> Path:
    """The real MovieLens-100K, kept in data/movielens-100k (ignored by git) once it is downloaded."""
    folder = Path(__file__).parents[1] / "data" / "movielens-100k"
    try:
        return fetch_movielens_100k(folder)
    except DataError as error:
        pytest.skip(f"MovieLens-100K: {error}")


@pytest.fixture(scope="module")
def store(tiny_bundle: Path) -> Store:
    """The tiny bundle, opened to be served."""
    return Store.open(tiny_bundle)


@pytest.fixture
def engine(store: Store) -> HomepageEngine:
    """An engine of its own on that store."""
    return HomepageEngine(store)
