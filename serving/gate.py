"""The queue in front of the engine: bounded, in order of priority, answered in batches.

Triton Server hands over at once whatever comes, and it waits here. Its own queue policy cannot be used: in 2.51 a
batcher that has one does not notice that an instance becomes free, and sleeps until it accepts another request or half
a second has passed. Here what finds no place is refused in the time that it takes to say so, even while a batch is
computed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .requests import RequestError
from .triton_model import Compute, Row, answered, error_response, rows_of

CPU_BATCH, GPU_BATCH = 16, 64
"""Pages computed together. On a CPU a larger batch saves little time, and its first member waits for the last."""
QUEUE_SECONDS = 0.1  # of work may wait, and a batch always, unless the launcher says how many requests may
WAIT_SECONDS = {"interactive": 1.0, "background": 10.0}
"""How long a request waits at most, by priority. Interactive ones go first."""
_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 10.0)
BOUNDS = (*map(str, _SECONDS), "+Inf")
"""Upper bounds, in seconds, of the histogram of how long answers take."""


@dataclass(frozen=True)
class _Waiting:
    sender: Any
    rows: Sequence[Row]
    priority: str
    came: float
    until: float
    trace: str | None


class Gate:
    """Takes Triton Server's requests and answers them from a thread of its own, at most `batch` rows at a time.

    At most `limit` rows wait of each priority, or without it as many as take QUEUE_SECONDS by what rows took of late; a
    request that is larger than that waits alone. `counters` rises by
    `overloaded` and `expired` requests, which both get UNAVAILABLE, and by `batches`. on_batch: called after each.
    tracing: keep for it what traces of the last batch go on with, `traced`, and when the batch `began`.
    """

    def __init__(
        self, pb_utils: Any, model: str, compute: Compute, counters: Counter[str], batch: int,
        limit: int | None,
        on_batch: Callable[[Gate], None] = lambda gate: None, tracing: bool = False,
    ) -> None:  # fmt: skip
        self._pb, self._model, self._compute, self._counters = pb_utils, model, compute, counters
        self._batch, self._limit, self._on_batch = batch, limit, on_batch
        self._row_seconds: float | None = None  # that a row takes, smoothed
        self._queues: dict[str, deque[_Waiting]] = {priority: deque() for priority in WAIT_SECONDS}
        self._changed = threading.Condition()
        self._closing, self._tracing = False, tracing
        self.traced: list[tuple[str, float]] = []  # context for spans, and when the request came
        self.began = 0.0
        self.waited_seconds = dict.fromkeys(WAIT_SECONDS, 0.0)
        self.took = dict.fromkeys(BOUNDS, 0)  # requests answered within so many seconds
        counters.update(dict.fromkeys(("overloaded", "expired", "batches"), 0))  # two threads count: no key may be new
        self._thread = threading.Thread(target=self._work, name="gate", daemon=True)
        self._thread.start()

    def admit(self, requests: Sequence[Any]) -> None:
        """Each request into the queue, or its refusal sent."""
        for request in requests:
            sender = request.get_response_sender()
            priority = "background" if json.loads(request.parameters() or "{}").get("background") else "interactive"
            queue = self._queues[priority]
            with self._changed:
                waiting = sum(len(w.rows) for w in queue)
            rows: list[Row] = []
            if waiting < self.limit:  # else it is refused unread, which is most of the time that it takes
                try:
                    rows = rows_of(self._pb, self._model, request)
                except RequestError as error:
                    self._send(sender, error_response(self._pb, error))
                    continue
            if waiting and waiting + max(len(rows), 1) > self.limit:
                self._counters["overloaded"] += 1
                self._refuse(sender, f"Exceeds maximum queue size: {waiting} {priority} requests wait")
                continue
            patience = min(request.timeout() / 1e6 or float("inf"), WAIT_SECONDS[priority])
            trace = request.trace().get_context() if self._tracing else None
            now = time.perf_counter()
            with self._changed:
                queue.append(_Waiting(sender, rows, priority, now, now + patience, trace))
                self._changed.notify()

    @property
    def limit(self) -> int:
        """How many rows of a priority may wait now."""
        return self._limit or max(self._batch, int(QUEUE_SECONDS / (self._row_seconds or QUEUE_SECONDS)))

    def close(self) -> None:
        """Answers what waits, then ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._answer(batch)
                self._on_batch(self)
            except Exception:  # the next batch must not wait for ever
                logging.getLogger(__name__).exception("answering a batch failed")

    def _take(self) -> list[_Waiting]:
        """The next batch, interactive requests first; empty when the gate is closed and nothing waits."""
        while True:
            expired, batch, rows = [], [], 0
            with self._changed:
                self._changed.wait_for(lambda: self._closing or any(self._queues.values()))
                now = time.perf_counter()
                for queue in self._queues.values():
                    while queue and (queue[0].until < now or not batch or rows + len(queue[0].rows) <= self._batch):
                        waiting = queue.popleft()
                        if waiting.until < now:
                            expired.append(waiting)
                        else:
                            batch.append(waiting)
                            rows += len(waiting.rows)
            for waiting in expired:
                self._counters["expired"] += 1
                self._refuse(waiting.sender, f"Request timeout expired: it waited {now - waiting.came:.2f} s")
            if batch or self._closing:
                return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        self.began = began = time.perf_counter()
        self.traced = [(waiting.trace, waiting.came) for waiting in batch if waiting.trace]
        responses = answered(self._pb, self._model, [w.rows for w in batch], self._compute, self._counters)
        self._counters["batches"] += 1
        for waiting, response in zip(batch, responses, strict=True):
            self._send(waiting.sender, response)
        now = time.perf_counter()
        took = (now - began) / sum(len(waiting.rows) for waiting in batch)
        self._row_seconds = took if self._row_seconds is None else self._row_seconds + (took - self._row_seconds) / 10
        for waiting in batch:
            self.waited_seconds[waiting.priority] += began - waiting.came
            for bound in BOUNDS[bisect_left(_SECONDS, now - waiting.came) :]:
                self.took[bound] += 1

    def _refuse(self, sender: Any, words: str) -> None:
        error = self._pb.TritonError(words, self._pb.TritonError.UNAVAILABLE)
        self._send(sender, self._pb.InferenceResponse(error=error))

    def _send(self, sender: Any, response: Any) -> None:
        sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def queue_limit(parameters: Mapping[str, Any]) -> int | None:
    """How many rows may wait: the parameter `queue` of a model's config, if it has one."""
    return int(parameters["queue"]["string_value"]) if "queue" in parameters else None
