"""The queue in front of the engine: who is answered first, who is refused, and that nobody is forgotten."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_triton import InferenceResponse, Request, TritonError, execute, fake_module, request
from frontrow.serving.gate import Gate
from frontrow.serving.triton_model import Row


class Engine:
    """Answers `candidate_scoring` with what was asked, each batch in `seconds`, and remembers the batches."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.batches: list[list[int]] = []

    def __call__(self, rows: Sequence[Row]) -> list[Row | ValueError]:
        self.batches.append([int(row["k"][0]) for row in rows])
        time.sleep(self.seconds)
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
def gate(engine: Engine, counters: Counter[str]) -> Gate:
    """At most 3 rows a batch, at most 4 at once."""
    return Gate(fake_module(), "candidate_scoring", engine, counters, batch=3, limit=4)


def asked(*numbers: int, timeout_us: int = 0, **parameters: Any) -> Request:
    """A request of a row for each number."""
    k = np.array(numbers, np.int32)[:, None]
    arrays = {"member_vector": np.zeros((len(k), 2), np.float32), "title_ids": k.astype(np.int64), "k": k}
    return request(arrays, timeout_us, **parameters)


def titles(response: InferenceResponse) -> list[int]:
    return response.value("title_ids").ravel().tolist()


def test_what_comes_at_once_becomes_batches_in_order(gate: Gate, engine: Engine) -> None:
    assert [titles(r) for r in execute(gate, [asked(number) for number in (1, 2, 3, 4)])] == [[1], [2], [3], [4]]
    assert engine.batches == [[1, 2, 3], [4]]


def test_the_first_batch_is_answered_before_the_next_is_computed(gate: Gate, engine: Engine) -> None:
    requests = [asked(number) for number in (1, 2, 3, 4)]
    returned = gate.execute(requests)
    assert [r.answered for r in requests] == [True, True, True, False]
    assert returned[:3] == [None] * 3
    assert titles(returned[3]) == [4]


def test_interactive_requests_go_first_and_background_ones_fill_their_batches(gate: Gate, engine: Engine) -> None:
    requests = [asked(1, background=True), asked(2, background=True), asked(3), asked(4)]
    assert [titles(r) for r in execute(gate, requests)] == [[1], [2], [3], [4]]
    assert engine.batches == [[3, 4, 1], [2]]


def test_what_is_too_much_is_refused_background_requests_first(
    gate: Gate, engine: Engine, counters: Counter[str]
) -> None:
    requests = [asked(1, background=True), *map(asked, (2, 3, 4)), asked(5, 6), asked(7)]
    responses = execute(gate, requests)
    assert [i for i, r in enumerate(responses) if r.error] == [0, 4], "of two rows one would find no place"
    error = responses[0].error
    assert error is not None
    assert error.code_ == TritonError.UNAVAILABLE
    assert error.message_ == "Exceeds maximum queue size: 4 pages come first"
    assert engine.batches == [[2, 3, 4], [7]]
    assert counters["overloaded"] == 2
    assert titles(*execute(gate, [asked(8)])) == [8]


def test_refusals_do_not_wait_for_what_is_computed(engine: Engine, counters: Counter[str]) -> None:
    requests, answered = [asked(number) for number in range(1, 10)], []

    def compute(rows: Sequence[Row]) -> Sequence[Row | ValueError]:
        answered.append([r.answered for r in requests])
        return engine(rows)

    gate = Gate(fake_module(), "candidate_scoring", compute, counters, batch=3, limit=4)
    assert len(execute(gate, requests)) == 9
    assert answered[0] == [False] * 4 + [True] * 5


def test_as_many_are_taken_as_take_a_tenth_of_a_second(engine: Engine, counters: Counter[str]) -> None:
    gate = Gate(fake_module(), "candidate_scoring", engine, counters, batch=3, limit=None)
    assert gate.limit == 3, "a batch while nothing is known"
    for _ in range(60):  # of no work at all
        execute(gate, [asked(1)])
    assert gate.limit > 20
    engine.seconds = 0.06
    for _ in range(40):
        execute(gate, [asked(1)])
    assert gate.limit == 3


def test_a_request_larger_than_batch_and_queue_is_answered_alone(gate: Gate, engine: Engine) -> None:
    large, small = execute(gate, [asked(1, 2, 3, 4, 5, 6), asked(7)])
    assert titles(large) == [1, 2, 3, 4, 5, 6]
    assert small.error is not None, "it is as many as may wait"
    assert engine.batches == [[1, 2, 3, 4, 5, 6]]


def test_who_waited_longer_than_they_would_is_refused_and_costs_nothing(
    gate: Gate, engine: Engine, counters: Counter[str]
) -> None:
    engine.seconds = 0.01
    requests = [asked(1), asked(2), asked(3), asked(4, timeout_us=1000)]
    error = execute(gate, requests)[3].error
    assert error is not None
    assert error.code_ == TritonError.UNAVAILABLE
    assert error.message_.startswith("Request timeout expired: it waited 0.0")
    assert engine.batches == [[1, 2, 3]]
    assert counters["expired"] == 1


def test_a_request_that_cannot_be_read_is_refused_and_the_others_are_answered(gate: Gate) -> None:
    broken, good = execute(gate, [request({"k": np.array([[1]], np.int32)}), asked(2)])
    assert broken.error is not None
    assert broken.error.message_ == "input 'member_vector' is missing"
    assert titles(good) == [2]


def test_parameters_that_are_no_text_harm_nobody(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, Triton Server hands them on as they came."""
    odd = asked(1)
    monkeypatch.setattr(odd, "parameters", b'{"x":"\xff"}'.decode)
    assert [titles(r) for r in execute(gate, [odd, asked(2)])] == [[1], [2]]


def test_a_batch_that_breaks_is_answered_too_and_the_next_one_comes(gate: Gate) -> None:
    unlucky, beside = execute(gate, [asked(13), asked(1)])
    assert unlucky.error is not None
    assert unlucky.error.message_ == "RuntimeError: unlucky"
    assert titles(beside) == [1]
    assert titles(*execute(gate, [asked(2)])) == [2]


def test_whatever_breaks_nothing_is_raised_once_a_response_may_have_been_sent(
    engine: Engine, counters: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton Server 2.51 would end by signal 11, and take everybody's requests with it."""

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("no more")

    gate = Gate(fake_module(), "candidate_scoring", engine, counters, batch=1, limit=9, on_batch=broken)
    assert [titles(r) for r in execute(gate, [asked(1), asked(2)])] == [[1], [2]]
    unsent, unread, answered = asked(3), asked(4), asked(5)
    monkeypatch.setattr(unsent, "get_response_sender", broken)
    monkeypatch.setattr(unread[0], "as_numpy", broken)
    returned = gate.execute([unsent, unread, answered])
    assert returned[1].error.message_ == "MemoryError: no more"
    assert titles(returned[2]) == [5]
    assert counters["failed"] == 2
    monkeypatch.setattr("frontrow.serving.triton_model._stack", broken)
    errors = [r.error for r in execute(gate, [asked(6), asked(7)])]
    assert [e and e.message_ for e in errors] == ["MemoryError: no more"] * 2
    assert counters["failed"] == 4


def test_batches_are_counted_and_told_of(engine: Engine, counters: Counter[str]) -> None:
    told: list[float] = []
    tell = lambda gate: told.append(gate.began - gate.came)  # noqa: E731
    gate = Gate(fake_module(), "candidate_scoring", engine, counters, batch=1, limit=4, on_batch=tell)
    engine.seconds = 0.01
    execute(gate, [asked(1), asked(2)])
    assert counters["batches"] == 2
    assert told[0] < 0.01 <= told[1]
