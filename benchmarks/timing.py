"""How long does a GPU call take: three clocks, each for another question, and the card's own ceilings.

cold: events around one call after the L2 cache was filled with something else; a call whose data was not just used.
replay: a CUDA graph of calls over rotating inputs; what a call costs in a server that replays graphs.
host: a wall clock around a call and a wait for it; what a caller sees.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

REPETITIONS = 100
FLUSH_BYTES = 256 << 20  # several times any L2
SLEEP_CYCLES = 2_000_000  # about a millisecond
IN_GRAPH = 20  # calls per graph, so that starting the graph is a small part

Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Microseconds of one call: the median of the repetitions, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def _times(microseconds: Sequence[float]) -> Times:
    tenths = statistics.quantiles(microseconds, n=10)
    return Times(statistics.median(microseconds), tenths[0], tenths[-1])


def repetitions(call: Call, calls: int = 1) -> int:
    """How often to repeat what takes `calls` calls, so that a second or so is spent: 10 to REPETITIONS."""
    call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return max(10, min(REPETITIONS, int(1.0 / ((time.perf_counter() - started) * calls))))


def cold(calls: Sequence[Call]) -> Times:
    """Each repetition takes the next of `calls`, after the L2 cache was filled with clean lines of something else. The
    GPU sleeps first for longer than Python needs to launch, so that it never waits for Python between the events."""
    other = torch.ones(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")
    for call in calls:
        call()
    often = repetitions(calls[0])
    begin = [torch.cuda.Event(enable_timing=True) for _ in range(often)]
    end = [torch.cuda.Event(enable_timing=True) for _ in range(often)]
    for i in range(often):
        torch.cuda._sleep(SLEEP_CYCLES)
        other.sum()
        begin[i].record()
        calls[i % len(calls)]()
        end[i].record()
        torch.cuda.synchronize()
    return _times([b.elapsed_time(e) * 1e3 for b, e in zip(begin, end, strict=True)])


def replay(calls: Sequence[Call]) -> Times:
    """A graph of IN_GRAPH calls in rotation, replayed; the time of a replay over IN_GRAPH."""
    for call in [*calls, *calls]:
        call()
    often = repetitions(calls[0], IN_GRAPH)
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=before):
            kept = [calls[i % len(calls)]() for i in range(IN_GRAPH)]
    finally:  # a capture that fails leaves its stream behind
        torch.cuda.set_stream(before)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    found = []
    for _ in range(often):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e3 / IN_GRAPH)
    del kept
    return _times(found)


def host(calls: Sequence[Call], often: int | None = None) -> Times:
    """A wall clock around each call and, on a GPU, a wait for it."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for call in calls:
        call()
    found = []
    for i in range(repetitions(calls[0]) if often is None else often):
        wait()
        started = time.perf_counter()
        calls[i % len(calls)]()
        wait()
        found.append((time.perf_counter() - started) * 1e6)
    return _times(found)


@dataclass(frozen=True)
class Ceilings:
    """What this card was measured to do: bytes/s of a copy (read + written), FLOP/s of a bfloat16 matrix product."""

    bytes_per_s: float
    flops_per_s: float

    def floor_us(self, moved: int, flops: int) -> float:
        """Microseconds below which no call that moves so many bytes and computes so much can be."""
        return max(moved / self.bytes_per_s, flops / self.flops_per_s) * 1e6


def ceilings() -> Ceilings:
    """Measured here and now, with random data."""
    source = torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy = cold([partial(target.copy_, source)]).median
    moved = 2 * source.numel() * 4
    del source, target
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = cold([partial(torch.mm, a, b)]).median
    return Ceilings(moved / copy * 1e6, 2 * 8192**3 / product * 1e6)
