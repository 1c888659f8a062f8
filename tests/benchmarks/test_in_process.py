"""Pages a second without a server: what is counted, and that nothing kept is taken for work."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest
from frontrow.benchmarks.in_process import ALL, measured, opened, together, work
from frontrow.serving.homepage import HomepageEngine


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> HomepageEngine:
    return opened(tiny_bundle, True)[0]


@pytest.mark.parametrize("mode", ALL)
def test_only_members_who_come_again_get_what_was_kept(engine: HomepageEngine, mode: str) -> None:
    measured(engine, (mode, 3, 0.01))
    engine.counters.clear()
    found = measured(engine, (mode, 3, 0.05))
    assert found["pages"] == 3 * len(found["times"])
    kept, pages = engine.counters["ranking_kept"], engine.counters["pages"]
    assert kept >= found["pages"] if mode == "again" else kept == 0 < pages


def test_all_processes_count_together() -> None:
    one = {"pages": 100, "seconds": 2.0, "times": [10.0] * 50, "stages": {"encode": 4.0}}
    other = {"pages": 30, "seconds": 1.0, "times": [30.0] * 50, "stages": {"encode": 6.0}}
    found = together([one, other])
    assert (found["pages_per_second"], found["batches"], found["stages_ms"]) == (80.0, 100, {"encode": 5.0})
    assert found["batch_ms"]["p99"] == 30.0


def test_a_process_says_how_long_it_took_to_open_and_then_what_it_found(tiny_bundle: Path) -> None:
    answers: queue.Queue[dict[str, object]] = queue.Queue()
    work(tiny_bundle, False, 0, [("events", 2, 0.01), ("again", 1, 0.01)], threading.Barrier(1), answers)
    opening, first, second = (answers.get_nowait() for _ in range(3))
    assert {"bundle", "store", "first_pages"} <= set(opening)
    assert isinstance(first["pages"], int)
    assert isinstance(second["pages"], int)
    assert first["pages"] % 2 == 0 < first["pages"]
