"""What a person sees of a server: counters and stage times of the homepage model beside Triton Server's own metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from ..foundation.events import Counts
from .homepage import HomepageEngine

# What is shown from the start: a rise from nothing to 1 is no rise to whoever computes rates.
_FALLBACKS = ("unknown_member", "empty_history", "unknown_titles", "nothing_left", "no_match")
_COUNTED = (
    "pages",
    "ranking_kept",
    "refused",
    "failed",
    "overloaded",
    "expired",
    "batches",
    *(f"fallback_{name}" for name in _FALLBACKS),
    *Counts().numbers(),
)
EVERY_SECONDS = 0.2
STAGES = ("prepare", "encode", "retrieve", "score", "assemble")


class MetricsExport:
    """Publishes an engine's counters, stage times and bundle on Triton Server's metrics endpoint, every now and then
    from a thread of its own until `close`: each value is a call to another process."""

    def __init__(self, pb_utils: Any, engine: HomepageEngine) -> None:
        self._engine = engine
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        what = "Pages, batches, requests refused, failed or too many, fallbacks by name, and values not perfect"
        pages = pb_utils.MetricFamily(name="frontrow_homepage_total", description=what, kind=counter)
        self._pages = _Rising(pages, "what", _COUNTED)
        what = "Time that whole batches took in each stage"
        stages = pb_utils.MetricFamily(name="frontrow_stage_seconds_total", description=what, kind=counter)
        self._stages = _Rising(stages, "stage", STAGES)
        self._bundle = pb_utils.MetricFamily(
            name="frontrow_bundle_timestamp_seconds",
            description="When the served bundle was exported, and its newest event; seconds since 1970",
            kind=gauge,
        )
        self._times = []  # kept: a metric that is let go disappears, with its family
        for of, seconds in engine.store.bundle.times.items():
            labels = {"version": str(engine.store.version), "of": of}
            self._times.append(self._bundle.Metric(labels=labels))
            self._times[-1].set(seconds)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and takes this bundle's times away."""
        self._closed.set()
        self._thread.join()
        self._times.clear()
        del self._bundle

    def _work(self) -> None:
        while not self._closed.wait(EVERY_SECONDS):
            self._stages.publish(self._engine.stage_seconds)
            self._pages.publish(self._engine.counters)


class _Rising:
    """Counters of one family, by the value of their label."""

    def __init__(self, family: Any, label: str, names: Iterable[str]) -> None:
        self._family, self._label = family, label
        self._metrics: dict[str, Any] = {}
        self._sent: Mapping[str, float] = {}
        self.publish(dict.fromkeys(names, 0))

    def publish(self, values: Mapping[str, float]) -> None:
        values = dict(values)  # another thread may count meanwhile
        for name, value in values.items():
            if name not in self._metrics:
                self._metrics[name] = self._family.Metric(labels={self._label: name})
            if more := value - self._sent.get(name, 0):
                self._metrics[name].increment(more)
        self._sent = values
