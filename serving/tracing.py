"""The stages of a traced request as OpenTelemetry spans within Triton Server's own, sent to the same collector.

On where OTEL_EXPORTER_OTLP_ENDPOINT is set, which the exporter reads as it does its other variables, and the SDK is
installed (`frontrow[trace]`). Which requests are traced is Triton Server's choice, or the caller's `traceparent`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from .gate import Gate
from .homepage import HomepageEngine
from .metrics import STAGES


class Tracing:
    """Sends the spans of traced requests; does nothing where it is not on."""

    def __init__(self, engine: HomepageEngine) -> None:
        self._engine = engine
        self._tracer = _tracer()
        self._seconds: dict[str, float] = {}

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def publish(self, gate: Gate) -> None:
        """The spans of the batch that a gate has just computed: `wait`, from when Triton Server handed it over, then
        the stages, done for all together."""
        if self._tracer is None:
            return
        before, self._seconds = self._seconds, dict(self._engine.stage_seconds)
        named = [*STAGES, *(name for name in self._seconds if name not in STAGES)]  # in the order of their work
        stages = {name: self._seconds.get(name, 0) - before.get(name, 0) for name in named}
        epoch = time.time_ns() - time.perf_counter_ns()
        for carrier in gate.traced:
            parent = _parent(carrier)
            start = gate.came
            for name, seconds in {"wait": gate.began - gate.came, **{n: s for n, s in stages.items() if s}}.items():
                span = self._tracer.start_span(name, parent, start_time=epoch + int(start * 1e9))
                start += seconds
                span.end(epoch + int(start * 1e9))


def _tracer() -> Any:
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logging.getLogger(__name__).warning("stages are not traced: %s; pip install 'frontrow[trace]'", error)
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "frontrow")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("frontrow")


def _parent(carrier: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(json.loads(carrier))
