"""The queue in front of the engine: bounded, in order of priority, answered in batches.

While a batch is computed Triton Server collects what comes, and then hands all of it over. Here as many pages of it as
take QUEUE_SECONDS are made, in batches of a size that a processor likes, and what comes on top is refused first. Triton
Server's own queue policy cannot be used: in 2.51 a batcher that has one does not notice that an instance becomes free,
and sleeps until it accepts another request or half a second has passed.

Nothing may be raised here: where a response has been sent already, an exception ends Triton Server (2.51, signal 11).
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .requests import RequestError
from .triton_model import Compute, Row, answered, error_response, rows_of

CPU_BATCH, GPU_BATCH = 16, 64
"""Pages computed together. On a CPU a larger batch saves little time, and its first member waits for the last."""
QUEUE_FULL = "Exceeds maximum queue size"  # in Triton Server's own words
QUEUE_SECONDS = 0.1  # of work may wait, and a batch always, unless the launcher says how many requests may


@dataclass(frozen=True)
class _Waiting:
    at: int  # among the requests
    request: Any
    rows: Sequence[Row]


class Gate:
    """Answers what Triton Server hands over, at most `batch` rows at a time, interactive requests first.

    At most `limit` rows are taken at once, or without it as many as take QUEUE_SECONDS by what rows took of late; a
    request that is larger than that is taken alone. `counters` rises by `overloaded` and `expired` requests, which
    both get UNAVAILABLE, and by `batches`. on_batch: called after each. tracing: keep for it what traces of the last
    batch go on with, `traced`, when the batch `began`, and when its requests `came`.
    """

    def __init__(
        self, pb_utils: Any, model: str, compute: Compute, counters: Counter[str], batch: int,
        limit: int | None, on_batch: Callable[[Gate], None] = lambda gate: None, tracing: bool = False,
    ) -> None:  # fmt: skip
        self._pb, self._model, self._compute, self._counters = pb_utils, model, compute, counters
        self._batch, self._limit, self._on_batch, self._tracing = batch, limit, on_batch, tracing
        self._row_seconds: float | None = None  # that a row takes, smoothed
        self.traced: list[str] = []
        self.came = self.began = 0.0
        counters.update(dict.fromkeys(("overloaded", "expired", "batches"), 0))  # the metrics' thread reads: no new key

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order; None where it has been sent already."""
        self.came = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        waiting = self._admitted(requests, responses)
        while waiting:
            batch, waiting = self._parted(waiting)
            for one, response in zip(batch, self._answers(batch), strict=True):
                if waiting:
                    self._send(one.request, response)  # need not wait for the next batch
                else:
                    responses[one.at] = response
        return responses

    @property
    def limit(self) -> int:
        """How many rows may wait now."""
        return self._limit or max(self._batch, int(QUEUE_SECONDS / (self._row_seconds or QUEUE_SECONDS)))

    def _admitted(self, requests: Sequence[Any], responses: list[Any]) -> list[_Waiting]:
        """What has a place in the queue. What has none is refused, and what cannot be read gets its response."""
        limit, rows = self.limit, 0
        waiting: list[_Waiting] = []
        for at, request in sorted(enumerate(requests), key=lambda of: _is_background(of[1])):
            mine: Sequence[Row] = ()
            if rows < limit:  # else it is refused unread, which is most of the time that it takes
                try:
                    mine = rows_of(self._pb, self._model, request)
                except Exception as error:
                    responses[at] = error_response(self._pb, error)
                    if not isinstance(error, RequestError):
                        self._failed(1, "a request could not be read")
                    continue
            if rows and rows + max(len(mine), 1) > limit:
                self._counters["overloaded"] += 1
                self._refuse(request, f"{QUEUE_FULL}: {rows} pages come first")
            else:
                waiting.append(_Waiting(at, request, mine))
                rows += len(mine)
        return waiting

    def _parted(self, waiting: Sequence[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        """The next batch, and who waits on. Who would not have waited so long is refused."""
        waited = time.perf_counter() - self.came
        batch: list[_Waiting] = []
        rows = 0
        for number, one in enumerate(waiting):
            if 0 < one.request.timeout() < waited * 1e6:
                self._counters["expired"] += 1
                self._refuse(one.request, f"Request timeout expired: it waited {waited:.2f} s")
            elif batch and rows + len(one.rows) > self._batch:
                return batch, list(waiting[number:])
            else:
                batch.append(one)
                rows += len(one.rows)
        return batch, []

    def _answers(self, batch: Sequence[_Waiting]) -> list[Any]:
        if not batch:
            return []
        self.began = began = time.perf_counter()
        try:
            responses = answered(self._pb, self._model, [one.rows for one in batch], self._compute, self._counters)
        except Exception as error:
            self._failed(len(batch), "a batch was not answered")
            return [error_response(self._pb, error) for _ in batch]
        self._counters["batches"] += 1
        took = (time.perf_counter() - began) / max(1, sum(len(one.rows) for one in batch))
        self._row_seconds = took if self._row_seconds is None else self._row_seconds + (took - self._row_seconds) / 10
        try:
            if self._tracing:
                self.traced = [context for one in batch if (context := one.request.trace().get_context())]
            self._on_batch(self)
        except Exception:
            self._failed(0, "a batch was not told of")
        return responses

    def _refuse(self, request: Any, words: str) -> None:
        error = self._pb.TritonError(words, self._pb.TritonError.UNAVAILABLE)
        self._send(request, self._pb.InferenceResponse(error=error))

    def _send(self, request: Any, response: Any) -> None:
        try:
            request.get_response_sender().send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:  # no shared memory left; the sender counts as closed and takes no other
            self._failed(1, "a response was not sent")

    def _failed(self, requests: int, what: str) -> None:
        """Of the exception that is being handled."""
        self._counters["failed"] += requests
        logging.getLogger(__name__).exception(what)


def _is_background(request: Any) -> bool:
    try:
        return bool(json.loads(request.parameters() or "{}").get("background"))
    except Exception:  # over HTTP parameters may be no UTF-8; those handed over with it are not to blame
        return False


def queue_limit(parameters: Mapping[str, Any]) -> int | None:
    """How many rows may wait: the parameter `queue` of a model's config, if it has one."""
    return int(parameters["queue"]["string_value"]) if "queue" in parameters else None
