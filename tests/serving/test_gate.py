"""The queue in front of the engine: who is answered first, who is refused, and that nobody is forgotten."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_triton import Request, TritonError, fake_module, request
from frontrow.serving.gate import Gate
from frontrow.serving.triton_model import Row


class Engine:
    """Answers `candidate_scoring` with what was asked, and remembers the batches. Works only while `free` is set."""

    def __init__(self) -> None:
        self.free, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, rows: Sequence[Row]) -> list[Row | ValueError]:
        self.batches.append([int(row["k"][0]) for row in rows])
        self.began.set()
        assert self.free.wait(20)
        if 13 in self.batches[-1]:
            raise RuntimeError("unlucky")
        return [{"title_ids": row["title_ids"], "scores": np.zeros(1, np.float32)} for row in rows]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def counters() -> Counter[str]:
    return Counter()


@pytest.fixture
def gate(engine: Engine, counters: Counter[str]) -> Iterator[Gate]:
    """At most 3 rows a batch, at most 4 that wait; busy with request 0."""
    gate = Gate(fake_module(), "candidate_scoring", engine, counters, batch=3, limit=4)
    gate.admit([asked(0)])
    assert engine.began.wait(20)
    yield gate
    engine.free.set()
    gate.close()


def asked(*numbers: int, timeout_us: int = 0, **parameters: Any) -> Request:
    """A request of a row for each number."""
    k = np.array(numbers, np.int32)[:, None]
    arrays = {"member_vector": np.zeros((len(k), 2), np.float32), "title_ids": k.astype(np.int64), "k": k}
    return request(arrays, timeout_us, **parameters)


def test_what_waits_becomes_batches_in_order(gate: Gate, engine: Engine) -> None:
    requests = [asked(number) for number in (1, 2, 3, 4)]
    gate.admit(requests)
    engine.free.set()
    assert [r.response().value("title_ids").tolist() for r in requests] == [[[1]], [[2]], [[3]], [[4]]]
    assert engine.batches == [[0], [1, 2, 3], [4]]


def test_interactive_requests_go_first_and_background_ones_fill_their_batches(gate: Gate, engine: Engine) -> None:
    requests = [asked(1, background=True), asked(2, background=True), asked(3), asked(4)]
    gate.admit(requests)
    engine.free.set()
    assert all(r.response().error is None for r in requests)
    assert engine.batches == [[0], [3, 4, 1], [2]]


def test_as_much_work_may_wait_as_takes_a_tenth_of_a_second(engine: Engine) -> None:
    gate = Gate(fake_module(), "candidate_scoring", engine, Counter(), batch=3, limit=None)
    assert gate.limit == 3, "a batch while nothing is known"
    engine.free.set()
    for _ in range(60):  # of no work at all
        one = asked(1)
        gate.admit([one])
        assert one.response().error is None
    gate.close()
    assert gate.limit > 20


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_it_has_room(
    gate: Gate, engine: Engine, counters: Counter[str]
) -> None:
    gate.admit([waiting := asked(1), asked(2), asked(3), asked(4)])
    gate.admit([refused := asked(5)])
    error = refused.response().error  # while the engine is still busy
    assert error is not None
    assert error.code_ == TritonError.UNAVAILABLE
    assert error.message_ == "Exceeds maximum queue size: 4 interactive requests wait"
    assert counters["overloaded"] == 1
    gate.admit([background := asked(6, background=True)])  # has a queue of its own
    engine.free.set()
    assert waiting.response().error is background.response().error is None
    gate.admit([later := asked(7)])
    assert later.response().error is None


def test_a_request_larger_than_batch_and_queue_is_answered_alone(gate: Gate, engine: Engine) -> None:
    gate.admit([large := asked(1, 2, 3, 4, 5, 6), small := asked(7)])
    assert small.response().error is not None, "it is as many as may wait"
    engine.free.set()
    assert large.response().value("title_ids").ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert engine.batches == [[0], [1, 2, 3, 4, 5, 6]]


def test_who_waited_longer_than_they_would_is_refused_and_costs_nothing(
    gate: Gate, engine: Engine, counters: Counter[str]
) -> None:
    gate.admit([hasty := asked(1, timeout_us=1000), patient := asked(2)])
    time.sleep(0.01)
    engine.free.set()
    assert patient.response().error is None
    error = hasty.response().error
    assert error is not None
    assert error.code_ == TritonError.UNAVAILABLE
    assert error.message_.startswith("Request timeout expired: it waited 0.")
    assert engine.batches == [[0], [2]]
    assert counters["expired"] == 1


def test_a_request_that_cannot_be_read_is_refused_and_the_others_are_answered(gate: Gate, engine: Engine) -> None:
    gate.admit([broken := request({"k": np.array([[1]], np.int32)}), good := asked(2)])
    engine.free.set()
    error = broken.response().error
    assert error is not None
    assert error.message_ == "input 'member_vector' is missing"
    assert good.response().error is None


def test_a_batch_that_breaks_is_answered_too_and_the_next_one_comes(gate: Gate, engine: Engine) -> None:
    gate.admit([unlucky := asked(13), beside := asked(1)])
    engine.free.set()
    error = unlucky.response().error
    assert error is not None
    assert error.message_ == "RuntimeError: unlucky"
    assert beside.response().error is None
    gate.admit([later := asked(2)])
    assert later.response().error is None


def test_closing_answers_what_waits(engine: Engine) -> None:
    gate = Gate(fake_module(), "candidate_scoring", engine, Counter(), batch=1, limit=4)
    gate.admit(requests := [asked(1), asked(2), asked(3)])
    engine.free.set()
    gate.close()
    assert all(r.answered for r in requests)


def test_waits_and_answers_are_timed(gate: Gate, engine: Engine) -> None:
    gate.admit([request := asked(1)])
    time.sleep(0.03)
    engine.free.set()
    request.response()
    gate.close()
    assert gate.waited_seconds["interactive"] >= 0.03
    assert gate.waited_seconds["background"] == 0
    assert gate.took["+Inf"] == gate.took["2.0"] == 2
    assert gate.took["0.02"] == 0
