"""The open-loop load generator: requests on time, outcomes told apart, and when a server has recovered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from frontrow.benchmarks.open_loop import Outcomes, at_times, in_flight, poisson, serialized
from frontrow.benchmarks.overload import figures, recovery_seconds
from frontrow.foundation.schema import WIRE
from frontrow.serving.requests import PageRequest

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers after 10 ms; members 1 and 2 are refused, 3 fails."""

    def __init__(self) -> None:
        self.requests: list = []

    def ModelInfer(self, request, context):
        self.requests.append(request)
        member = int.from_bytes(request.raw_input_contents[0], "little")
        if member in (1, 2):
            words = "Exceeds maximum queue size: 9 wait" if member == 1 else "Request timeout expired: it waited"
            context.abort(grpc.StatusCode.UNAVAILABLE, words)
        if member == 3:
            context.abort(grpc.StatusCode.INTERNAL, "broken")
        time.sleep(0.01)
        return service_pb2.ModelInferResponse()


@pytest.fixture
def served() -> Iterator[tuple[str, Servicer]]:
    server, servicer = grpc.server(ThreadPoolExecutor(4)), Servicer()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def test_requests_are_sent_on_time_and_outcomes_told_apart(served: tuple[str, Servicer]) -> None:
    address, servicer = served
    requests = [serialized(PageRequest(member, [b"{}", b"[]"])) for member in (0, 1, 2, 3)]
    found = at_times(address, requests, np.array([0.0, 0.05, 0.1, 0.15]))
    assert found.accepted.tolist() == [True, False, False, False]
    assert found.refused.tolist() == [False, True, True, False]
    assert found.failed == ["INTERNAL: broken"]
    assert found.latency[0] >= 0.01
    assert found.latency.max() < 0.15, "none waits for the one before"
    sent = servicer.requests[-1]
    assert [(i.name, list(i.shape)[1:]) for i in sent.inputs][:2] == [("member_id", [1]), ("events", [2])]
    assert [i.name for i in sent.inputs] == [t.name for t in WIRE["homepage"][0]]
    assert sent.raw_input_contents[1] == b"\2\0\0\0{}\2\0\0\0[]"


def test_so_many_are_always_in_flight(served: tuple[str, Servicer]) -> None:
    found = in_flight(served[0], [serialized(PageRequest(5))], 2, 0.3)
    assert found.accepted.all()
    assert 0.24 * 2 / np.median(found.latency) * 0.5 < len(found.sent) <= 0.24 * 2 / 0.01 + 2


def test_latency_counts_from_when_a_request_was_due() -> None:
    times = poisson(100, 50)
    assert len(times) == pytest.approx(5000, rel=0.1)
    assert np.std(np.diff(times)) == pytest.approx(0.01, rel=0.1), "as far apart as their mean: Poisson"
    said = ["" if i % 2 else "maximum queue size" for i in range(len(times))]
    found = figures(Outcomes(times, np.full(len(times), 0.02), said))
    assert found["refused_share"] == pytest.approx(0.5, abs=0.01)
    assert found["accepted_ms"] == {"p50": 20.0, "p99": 20.0} == found["refused_ms"]


def test_a_server_has_recovered_when_answers_are_as_fast_as_before() -> None:
    sent = np.arange(0, 10, 0.01)
    slow = (sent > 3) & (sent < 6.3)
    latency = np.where(slow, 0.5, 0.02)
    assert recovery_seconds(Outcomes(sent, latency, [""] * len(sent)), 3, 5) == 1.75
    refused = ["maximum queue size" if 3 < s < 7.1 else "" for s in sent]
    assert recovery_seconds(Outcomes(sent, latency, refused), 3, 5) == 2.5
    assert recovery_seconds(Outcomes(sent, np.where(sent > 3, 0.5, 0.02), [""] * len(sent)), 3, 5) is None
