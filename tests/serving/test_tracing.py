"""One trace of one request: Triton Server's spans and, within them, those of the stages, at one collector."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontrow.serving.serve import serve_bundle
from frontrow.serving.triton_server import ServerNotFound, find_tritonserver
from server_process import eventually, free_ports
from wire_cases import inputs

grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
pytest.importorskip("opentelemetry.sdk", reason="frontrow[trace] is not installed")
proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
try:
    find_tritonserver()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["wait", "prepare", "encode", "retrieve", "score", "assemble"]


@dataclass(frozen=True)
class Span:
    """Ids in hexadecimal, times in nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int

    @staticmethod
    def from_json(span: dict[str, Any]) -> Span:
        times = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        return Span(span["name"], span["traceId"], span["spanId"], span.get("parentSpanId", ""), *times)

    @staticmethod
    def from_proto(span: Any) -> Span:
        ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
        return Span(span.name, *ids, span.start_time_unix_nano, span.end_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """Its URL, and the spans that have come."""
    spans: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Type"].startswith("application/json"):  # Triton Server's
                of = [s for r in json.loads(body)["resourceSpans"] for s in r["scopeSpans"]]
                spans.extend(Span.from_json(span) for s in of for span in s["spans"])
            else:
                found = proto.ExportTraceServiceRequest.FromString(body)
                spans.extend(
                    Span.from_proto(span) for r in found.resource_spans for s in r.scope_spans for span in s.spans
                )
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.long
def test_a_callers_trace_goes_on_through_every_stage(
    tiny_bundle: Path, tmp_path: Path, collector: tuple[str, list[Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    how = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1000000", f"opentelemetry,url={url}/v1/traces"]
    how.append("opentelemetry,bsp_schedule_delay=100")
    arguments = [f"--trace-config={word}" for word in how]
    ports = free_ports()
    with (
        serve_bundle(tiny_bundle, log=tmp_path / "server.log", extra_args=arguments, **ports) as server,
        grpc.InferenceServerClient(server.address) as client,
    ):
        tensors = []
        for name, array in inputs("homepage", member_id=[1001]).items():
            dtype = {"int64": "INT64", "int32": "INT32", "object": "BYTES"}[str(np.asarray(array).dtype)]
            tensors.append(grpc.InferInput(name, list(array.shape), dtype))
            tensors[-1].set_data_from_numpy(array)
        client.infer("homepage", tensors, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        mine = lambda: {s.name: s for s in list(spans) if s.trace == TRACE}  # noqa: E731
        assert eventually(lambda: {*STAGES, "InferRequest", "homepage", "compute"} <= mine().keys()), mine().keys()
    found = mine()
    assert found["InferRequest"].parent == CALLER
    assert {found[name].parent for name in STAGES} <= {found[n].id for n in ("homepage", "compute")}
    times = [(found[name].start, found[name].end) for name in STAGES]
    assert times == sorted(times)
    whole = found["InferRequest"]
    assert whole.start <= times[0][0]
    assert times[-1][1] <= whole.end + 1_000_000
