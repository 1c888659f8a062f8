"""What happens when more requests come than the server can answer? Open loop: nobody waits for earlier answers.

    frontrow bench overload [BUNDLE] [--instances N] [--queue N]     → results/overload-<data set>.json

First the capacity: the most pages a second with some requests always in flight. Then that rate times 0.8, 1, 2 and 3,
at random times, latencies counted from when each request should have been sent. Last a burst: half the capacity, three
times it, half of it again, and how long until answers are what they were. Requests are `mixed` (serve_load.py);
client and server share the host, so at three times the capacity the client takes more of it away than at one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.bundle import load_bundle, newest_bundle
from ..serving.serve import default_instances
from .command import command, positive
from .open_loop import Outcomes, at_rate, at_times, in_flight, poisson, serialized
from .provenance import provenance, write_result
from .serve_load import draw_requests
from .serve_run import serving

CONCURRENCY = (4, 8, 16, 24)
FACTORS = (0.8, 1.0, 2.0, 3.0)
BURST = ((5.0, 0.5), (5.0, 3.0), (10.0, 0.5))  # seconds, times capacity
WINDOW = 0.25  # seconds: how finely recovery is told


def figures(found: Outcomes) -> dict[str, Any]:
    """Pages a second; milliseconds of those accepted and of those refused; what failed otherwise."""
    accepted, refused = found.accepted, found.refused
    seconds = float((found.sent + found.latency).max() - found.sent.min())

    def percentiles(of: np.ndarray) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(of, q)) * 1000, 2) for q in (50, 99)} if len(of) else {}

    return {
        "offered_per_second": round(len(found.sent) / float(np.ptp(found.sent)), 1),
        "pages_per_second": round(float(accepted.sum()) / seconds, 1),
        "accepted_ms": percentiles(found.latency[accepted]),
        "refused_share": round(float(refused.mean()), 4),
        "refused_ms": percentiles(found.latency[refused]),
        "failed": found.failed[:5],
    }


def recovery_seconds(found: Outcomes, burst_from: float, burst_to: float) -> float | None:
    """Seconds from the end of a burst to the end of the first window without a refusal in which 95 of 100 answers came
    as fast as 99 of 100 before the burst; None if there is none."""
    usual = np.percentile(found.latency[found.accepted & (found.sent < burst_from)], 99)
    for start in np.arange(burst_to, found.sent.max() - WINDOW, WINDOW):
        here = (found.sent >= start) & (found.sent < start + WINDOW)
        if here.any() and found.accepted[here].all() and np.percentile(found.latency[here], 95) <= usual:
            return round(float(start + WINDOW - burst_to), 2)
    return None


def measure(path: Path, instances: int, queue: int | None, seconds: float, command: str) -> dict[str, Any]:
    bundle = load_bundle(path)
    requests = [serialized(r) for r in draw_requests(bundle, "mixed")]
    content: dict[str, Any] = {
        "what": "pages over gRPC, requests of mixed lengths, more than the server can answer, client on the same host",
        "data_set": bundle.manifest.get("data_set") or str(path),
        "titles": len(bundle.titles),
        "instances": instances,
        "queue": queue or "default",
        "seconds": seconds,
        **provenance(command),
    }
    with serving(path, instances, queue=queue) as server:
        in_flight(server.address, requests, 8, 2.0)
        closed = {n: figures(in_flight(server.address, requests, n, seconds)) for n in CONCURRENCY}
        best = max(closed, key=lambda n: closed[n]["pages_per_second"])
        capacity = closed[best]["pages_per_second"]
        content |= {"in_flight": closed, "capacity_pages_per_second": capacity, "capacity_in_flight": best}
        loads = {}
        for factor in FACTORS:
            loads[f"{factor:g}x"] = figures(at_rate(server.address, requests, capacity * factor, seconds))
            print(f"{factor:g}x: {loads[f'{factor:g}x']}", flush=True)
        content["offered"] = loads
        times, start = [], 0.0
        for length, factor in BURST:
            times.append(start + poisson(capacity * factor, length))
            start += length
        found = at_times(server.address, requests, np.concatenate(times))
        before, burst = BURST[0][0], BURST[0][0] + BURST[1][0]
        content["recovery_seconds"] = recovery_seconds(found, before, burst)
    for of, p99 in (("in_flight", closed[best]["accepted_ms"]["p99"]), ("1x", loads["1x"]["accepted_ms"]["p99"])):
        content[f"p99_at_3x_over_{of}"] = round(loads["3x"]["accepted_ms"]["p99"] / p99, 2)
    return content


def main(given: argparse.Namespace) -> None:
    path = given.bundle or newest_bundle(Path("bundles"))
    command = "frontrow bench overload " + " ".join(sys.argv[1:])
    content = measure(path, given.instances, given.queue, given.seconds, command.strip())
    data_set = json.loads((path / "manifest.json").read_bytes()).get("data_set") or path.resolve().parent.name
    print(json.dumps({k: v for k, v in content.items() if k.startswith(("capacity", "p99", "recovery"))}))
    print(write_result(f"overload-{data_set}", content))


if __name__ == "__main__":
    with command("frontrow bench overload", __doc__) as parser:
        parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: the newest in bundles/")
        parser.add_argument(
            "--instances", type=positive, default=default_instances(), help="copies of the model; default: serve's"
        )
        parser.add_argument("--queue", type=int, help="requests that may wait in each; default: serve's")
        parser.add_argument("--seconds", type=float, default=8.0, help="of each load; default: 8")
        main(parser.parse_args())
