"""How long does one homepage take over gRPC, one request at a time? On a local Triton Server with the newest bundle.

    python -m frontrow.benchmarks.latency [BUNDLE]    → results/homepage-latency.json

Four kinds of request, each for a history of 200 events and 1000 candidates: a stored member's first visit this hour;
members who were there within the hour, whose rankings are kept, for a page of 40 × 20 and of the default size; and an
anonymous member whose 200 events come along.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..clients import HomepageClient
from ..foundation.bundle import load_bundle, newest_bundle
from ..serving.homepage import CANDIDATES
from ..serving.serve import serve_bundle
from .command import command
from .provenance import provenance, write_result
from .serve_load import HISTORY, events_of

REQUESTS, WARMUP = 500, 50


def milliseconds(call: Callable[[int], Any]) -> dict[str, float]:
    """Percentiles of the time of one call, in milliseconds, after a warm-up."""
    times = []
    for i in range(WARMUP + REQUESTS):
        started = time.perf_counter()
        call(i)
        times.append((time.perf_counter() - started) * 1000)
    return {f"p{q}": round(float(np.percentile(times[WARMUP:], q)), 3) for q in (50, 95, 99)}


def main(path: Path) -> None:
    bundle = load_bundle(path)
    lengths = np.diff(bundle.histories.offsets)
    # Members with at least 200 stored events, so that the model reads 200 of each.
    members = bundle.member_ids[lengths >= HISTORY].tolist()
    some, now = members[:WARMUP], int(time.time())
    sent = [events_of(bundle, m) for m in some]
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve_bundle(path, grpc_port=18001, http_port=18000, metrics_port=18002, log=Path(scratch) / "log"),
        HomepageClient("localhost:18001", timeout_s=10) as client,
    ):
        found = {
            "stored history, first visit this hour, page 40x20": milliseconds(
                lambda i: client.homepage(
                    members[i % len(members)], context={"timestamp": now - i // len(members) * 3600}, rows=40, titles=20
                )
            ),
            "stored history, again within the hour, page 40x20": milliseconds(
                lambda i: client.homepage(some[i % len(some)], context={"timestamp": now}, rows=40, titles=20)
            ),
            "200 events in the request, page 40x20": milliseconds(
                lambda i: client.homepage(events=sent[i % len(sent)], rows=40, titles=20)
            ),
            "stored history, again within the hour, page 10x8": milliseconds(
                lambda i: client.homepage(some[i % len(some)], context={"timestamp": now})
            ),
        }
    content = {
        "what": "milliseconds of client.homepage() over gRPC on the same host, concurrency 1",
        "titles": len(bundle.titles),
        "candidates": min(CANDIDATES, len(bundle.titles)),
        "history": HISTORY,
        "requests": REQUESTS,
        "milliseconds": found,
        **provenance("python -m frontrow.benchmarks.latency"),
    }
    print(found)
    print(write_result("homepage-latency", content))


if __name__ == "__main__":
    with command("latency", __doc__) as parser:
        parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the newest in bundles/")
        main(parser.parse_args().bundle or newest_bundle(Path("bundles")))
